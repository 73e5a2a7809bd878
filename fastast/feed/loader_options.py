"""What both loaders take: the shape of the batches, where they are made, and whom to tell what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastast.cores import usable_cores
from fastast.preprocessing import MEAN, STD

OnQuarantine = Callable[[int, str, str], None]
OnWait = Callable[[], None]
OnNote = Callable[[str], None]

_MAX_THREADS = 32  # hosts with hundreds of cores need no thread on each


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """Options of `TrainLoader` and `EvalLoader`. All callbacks run in the thread that iterates.

    Attributes:
        batch_size: rows of each batch, B.
        image_size: side of the pictures in a batch, S, pixels; the largest, if training pictures change their size.
        device: where the batches are made: cpu, or cuda (which decodes there too).
        dtype: of the images, torch.float32 or torch.float16.
        mean, std: of the channels, in 8-bit levels; pixels become (level - mean) / std.
        prefetch: batches that DALI holds at once.
        num_threads: decoder threads; None: one for each core that this process may use, at most 32.
        num_local: processes that share those cores.
        decode: on a GPU, where pictures are decoded: gpu, cpu, or auto, which decodes as many of the training
            batches on the CPU as it can without the training loop waiting for them.
        deterministic: on a GPU, use one decoder only, whose bits do not depend on the rest of the batch (those of the
            JPEG engine do); auto is then gpu.
        on_quarantine: called as `on_quarantine(id, path, reason)`, once for each bad picture.
        on_wait: called about every second while reads are waited for; an exception in it ends the pass.
        on_note: called as `on_note(line)` when the folder of the pictures is gone and when it is back; the pass waits
            in between.
    """

    batch_size: int
    image_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    prefetch: int = 2
    num_threads: int | None = None
    num_local: int = 1
    decode: str = "auto"
    deterministic: bool = False
    on_quarantine: OnQuarantine | None = None
    on_wait: OnWait | None = None
    on_note: OnNote | None = None

    @property
    def decoder_threads(self) -> int:
        """`num_threads` with None resolved."""
        return self.num_threads or max(1, min(_MAX_THREADS, usable_cores() // self.num_local))
