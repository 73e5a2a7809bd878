"""What a trained network says of every picture, and which labels it contradicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from fastast.audit.pictures import Pictures
from fastast.device import open_runtime
from fastast.engine.steps import logits_of
from fastast.errors import InputError
from fastast.feed import EvalLoader
from fastast.models.trained import TrainedNetwork, top_classes
from fastast.report.gallery import IMPROBABLE
from fastast.scan.file_index import some_names

# A label is suspected if it is improbable, and another class has more than this probability.
PROBABLE = 0.5


class Judgement(NamedTuple):
    """Of N pictures; NaN and -1 where a picture could not be read.

    Attributes:
        label: float32 [N], probability of the label.
        other: int32 [N], the most probable class, as an index into the classes of the pictures.
        sure: float32 [N], its probability.
    """

    label: np.ndarray
    other: np.ndarray
    sure: np.ndarray

    def suspects(self) -> np.ndarray:
        """Rows whose label is suspected, the least probable label first, int64 [S]."""
        rows = np.flatnonzero((self.label < IMPROBABLE) & (self.sure > PROBABLE))  # false for NaN
        return rows[np.argsort(self.label[rows], kind="stable")]


@torch.no_grad()
def judge(
    network: TrainedNetwork, pictures: Pictures, *, batch_size: int, device: str, progress: Callable[[int, int], object]
) -> Judgement:
    """One forward of each picture, prepared as `fastast evaluate` does.

    Args:
        network: knows all classes of the pictures.
        pictures: all of them.
        batch_size: pictures at a time.
        device: "auto", "cuda" or "cpu".
        progress: called as `progress(done, total)`.

    Raises:
        InputError: the network does not know a class, or its weights do not fit.
    """
    names = list(network.required_classes())
    if unknown := [name for name in pictures.classes if name not in names]:
        raise InputError(
            f"{network.weights}: does not know the classes {some_names(unknown)}; name the run of this data"
        )
    runtime = open_runtime(device)
    output_of = torch.tensor([names.index(name) for name in pictures.classes], device=runtime.device)  # by label
    label_of = np.full(len(names), -1, np.int32)
    label_of[output_of.cpu().numpy()] = np.arange(len(pictures.classes))
    model = network.build(runtime.device, len(names))
    options = network.loader_options(batch_size=batch_size, device=runtime.device, dtype=runtime.image_dtype)
    num, before = len(pictures), 0
    found = Judgement(np.full(num, np.nan, np.float32), np.full(num, -1, np.int32), np.full(num, np.nan, np.float32))
    for catalog in pictures.splits.values():
        loader = EvalLoader(catalog, options)
        try:
            for batch in loader:
                logits = logits_of(model, batch.images, runtime.dtype)
                sure, other = top_classes(logits, 1)
                label = logits.softmax(1).gather(1, output_of[batch.labels][:, None])
                valid = batch.valid.cpu().numpy()
                rows = before + batch.ids.cpu().numpy()[valid]
                found.label[rows], found.sure[rows] = (part[:, 0].cpu().numpy()[valid] for part in (label, sure))
                found.other[rows] = label_of[other[:, 0].cpu().numpy()[valid]]
                progress(int(rows.max(initial=0)) + 1, num)
        finally:
            loader.close()
        before += catalog.num_samples
    return found
