"""One DALI pipeline and the batches under way in it."""

from __future__ import annotations

import collections
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastast.data.graph import build_pipeline


class Lane:
    """A pipeline that takes batches one by one and gives them back in the same order.

    Args:
        train: which graph.
        prefetch: batches in it at once.
        options: the rest of `build_pipeline`'s arguments.

    Attributes:
        num_flying: batches that went in and have not come out.
    """

    def __init__(self, *, train: bool, prefetch: int, **options: Any) -> None:
        self.num_flying = 0
        self._prefetch = prefetch
        self._inputs: collections.deque[tuple] = collections.deque()
        self._pipeline = build_pipeline(self._inputs, train=train, prefetch=prefetch, **options)
        # Run dry once, since the first `schedule_run` alone starts `prefetch` batches.
        self._inputs.extend([reference_inputs(train)] * prefetch)
        self._pipeline.schedule_run()
        while not self._pipeline.empty():
            self._pipeline.outputs()
        self._inputs.clear()

    @property
    def is_full(self) -> bool:
        """Whether it holds as many batches as it may."""
        return self.num_flying == self._prefetch

    def submit(self, inputs: tuple) -> None:
        """Schedules a batch of at least one picture; `inputs` as in `build_pipeline`, kept alive by the caller."""
        self._inputs.append(inputs)
        self._pipeline.schedule_run()
        self.num_flying += 1

    def collect(self, stream: torch.cuda.Stream | None) -> Any:
        """The output of the oldest batch, a list of tensors of DALI, ordered on the consumer's `stream` if given.

        Raises:
            RuntimeError: a picture of it cannot be decoded; the batch is gone, and the lane goes on.
        """
        self.num_flying -= 1
        # Bound to the consumer's stream, the hand-over is ordered on the GPU and the host does not wait.
        (output,) = self._pipeline.outputs(stream)
        return output

    def drain(self) -> None:
        """Throws away what is under way."""
        while not self._pipeline.empty():
            try:
                self._pipeline.outputs()
            except RuntimeError:
                continue  # a damaged picture that nobody waits for any more
        self.num_flying = 0


def reference_inputs(train: bool) -> tuple:
    """A picture that every sound decoder decodes, with its geometry; of the train graph or the eval graph."""
    side = 16
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(buffer, "JPEG")
    encoded = [np.frombuffer(buffer.getvalue(), np.uint8)]
    corners = np.zeros((1, 2)), np.full((1, 2), side)
    if train:
        return encoded, corners[0].astype(np.int32), corners[1].astype(np.int32), np.zeros(1, np.int32)
    return encoded, corners[0].astype(np.float32), corners[1].astype(np.float32)
