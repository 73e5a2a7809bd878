"""A run in Python: what it measured, its report, and its network, which predicts."""

from __future__ import annotations

import functools
import html
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastast.device import Runtime, open_runtime
from fastast.engine.steps import logits_of
from fastast.errors import InputError
from fastast.models.trained import TrainedNetwork, find_trained, top_classes
from fastast.predict.find_pictures import PathName, find_pictures
from fastast.predict.picture_stream import stream_pictures
from fastast.predict.prediction import Prediction
from fastast.run_folder import RunFolder, read_json

_REPORT_PX = 800  # height of the report in a notebook


class Run:
    """A run folder, or a file of weights alone: then there is a network, and nothing else.

    What it tells is read when it is asked for. The network predicts with the same preparation and numbers as
    `fastast evaluate`.

    Args:
        path: a run folder, or a file of weights.
        arch: the network, where neither the file nor a run folder around it says it.
        image_size: side of the pictures, pixels; None: what the file was trained for.
        device: "auto", "cuda" or "cpu"; where the network predicts.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        arch: str | None = None,
        image_size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.path = Path(path)
        self._arch, self._image_size, self._device = arch, image_size, device

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str | None:
        """The report, in a notebook."""
        try:
            page = self.report().read_text(encoding="utf-8")
        except InputError:
            return None  # which shows `repr`
        return f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: {_REPORT_PX}px; border: 0"></iframe>'

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`.

        Raises:
            InputError: the run has not ended, or this is a file of weights.
        """
        return read_json(self._folder.summary)

    @property
    def metrics(self) -> Any:
        """The lines of its epochs in `metrics.jsonl`: a pandas.DataFrame, or a list of dicts without pandas.

        Raises:
            InputError: this is a file of weights.
        """
        return self._lines("epoch")

    @property
    def steps(self) -> Any:
        """The same of the lines of its steps."""
        return self._lines("step")

    def report(self, out: str | Path | None = None) -> Path:
        """Writes its page, as `fastast report` does, and returns the path: `report.html` in the folder by default.

        Raises:
            InputError: this is a file of weights, or the page cannot be written.
        """
        from fastast.report.run_page import write_report  # which takes a second

        return write_report(self._folder.path, out)

    @property
    def _folder(self) -> RunFolder:
        folder = RunFolder(self.path)
        if not folder.config.exists():
            raise InputError(f"{self.path}: not a run folder (no config.json); only a run has metrics and a report")
        return folder

    def _lines(self, kind: str) -> Any:
        path = self._folder.metrics
        try:
            with path.open("rb") as file:
                lines = [line for line in map(json.loads, file) if line["kind"] == kind]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        try:
            import pandas
        except ImportError:
            return lines
        return pandas.DataFrame(lines)

    # ------------------------------------------------------------------------------------------ the network

    @functools.cached_property
    def trained(self) -> TrainedNetwork:
        """Its weights, and all that is needed to use them; those of the best epoch.

        Raises:
            InputError: there are none.
        """
        return find_trained(self.path, self._arch, self._image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, C.

        Raises:
            InputError: nothing says them.
        """
        return self.trained.required_classes()

    @property
    def image_size(self) -> int:
        """Side of the pictures that the network takes, S, pixels."""
        return self.trained.image_size

    @functools.cached_property
    def _runtime(self) -> Runtime:
        return open_runtime(self._device)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode; takes normalised pictures [B, 3, S, S], returns logits [B, C].

        Raises:
            InputError: the weights do not fit it.
        """
        return self.trained.build(self._runtime.device, len(self.classes))

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


def load(path: str | Path, *, arch: str | None = None, image_size: int | None = None, device: str = "auto") -> Run:
    """Opens a run folder, or a file of weights, and its network. See `Run`.

    Raises:
        InputError: there is no such network, or nothing says what its classes are.
    """
    run = Run(path, arch=arch, image_size=image_size, device=device)
    _ = run.model  # so that what is wrong with it is said here
    return run
