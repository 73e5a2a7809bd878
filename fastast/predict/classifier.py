"""A trained network as an object: paths of pictures in, their most probable classes out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fastast.device import open_runtime
from fastast.models.trained import find_trained, top_classes
from fastast.predict.find_pictures import PathName, find_pictures
from fastast.predict.picture_stream import stream_pictures
from fastast.train.steps import logits_of


class Prediction(NamedTuple):
    """What a network says of one picture.

    Attributes:
        path: of the picture, or of a folder that cannot be listed.
        top: classes with their probabilities, the most probable first; empty if the picture cannot be read.
        error: why it cannot, with the remedy; else None.
    """

    path: str
    top: list[tuple[str, float]]
    error: str | None = None


class Classifier:
    """A trained network that predicts with the same preparation and numbers as `fastast evaluate`.

    Args:
        path: a run folder, or a file of weights.
        arch: the network, where neither the file nor a run folder around it says it.
        image_size: side of the pictures, pixels; None: what the file was trained for.
        device: "auto", "cuda" or "cpu".

    Attributes:
        model: the network, in eval mode; takes normalised pictures [B, 3, S, S], returns logits [B, C].
        classes: their names, C.
        image_size: S, pixels.

    Raises:
        InputError: there is no such network, or nothing says what its classes are.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        arch: str | None = None,
        image_size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.trained = find_trained(path, arch, image_size)
        self.classes = self.trained.required_classes()
        self.image_size = self.trained.image_size
        self._runtime = open_runtime(device)
        self.model = self.trained.build(self._runtime.device, len(self.classes))

    def predict(self, paths: PathName | Iterable[PathName], *, top: int = 3, batch_size: int = 64) -> list[Prediction]:
        """Predicts all pictures of some paths; see `stream`."""
        return list(self.stream(paths, top=top, batch_size=batch_size))

    def stream(
        self, paths: PathName | Iterable[PathName], *, top: int = 3, batch_size: int = 64
    ) -> Iterator[Prediction]:
        """Predicts pictures one batch after the other, in memory that does not grow with their number.

        Args:
            paths: one or many of files, folders (flat or nested) and patterns such as `**/*.jpg`; may be a generator.
            top: classes for each picture, all if there are fewer.
            batch_size: pictures at a time.

        Yields:
            One for each picture, in the order of the paths.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        runtime = self._runtime
        options = self.trained.loader_options(batch_size=batch_size, device=runtime.device, dtype=runtime.image_dtype)
        refused: list[Prediction] = []
        found = find_pictures(paths, lambda folder, reason: refused.append(Prediction(os.fsdecode(folder), [], reason)))
        for images, pictures in stream_pictures(found, options):
            probabilities, labels = self._top(images, top)
            for name, row in pictures:
                if isinstance(row, str):
                    yield Prediction(os.fsdecode(name), [], row)
                else:
                    classes = [self.classes[label] for label in labels[row]]
                    yield Prediction(os.fsdecode(name), list(zip(classes, probabilities[row], strict=True)))
            yield from refused
            refused.clear()
        yield from refused

    @torch.no_grad()
    def _top(self, images: torch.Tensor, top: int) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and labels [B, K] of pictures [B, 3, S, S]."""
        logits = logits_of(self.model, images, self._runtime.dtype)
        probabilities, labels = top_classes(logits, min(top, len(self.classes)))
        return probabilities.tolist(), labels.tolist()


def load(path: str | Path, *, arch: str | None = None, device: str = "auto") -> Classifier:
    """Opens a trained network: a run folder, or a file of weights. See `Classifier`."""
    return Classifier(path, arch=arch, device=device)
