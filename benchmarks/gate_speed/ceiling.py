"""The parts of a training step timed alone, and the speed-up that they leave room for."""

from __future__ import annotations

import time

import numpy as np
import torch

from fastast.device import compile_step
from fastast.engine.steps import logits_of
from fastast.feed import Batch
from fastast.models.build import scoring_twin
from fastast.train.trainer import Trainer

TRAIN_BATCHES, SCORE_BATCHES, DECODE_BATCHES = 2, 4, 8  # timed in each round


class PartTimer:
    """Times training, scoring and decoding alone, with a trainer that does not compete."""

    def __init__(self, spare: Trainer) -> None:
        self._spare = spare
        self._twin = scoring_twin(spare.engine.model)
        # Eager or compiled, as in the score step.
        self._logits = compile_step(logits_of, spare.runtime.compiled and spare.runtime.compile_mode)
        self._ids = np.arange(spare.dataset.train.num_samples)[: DECODE_BATCHES * spare.batch_size]

    def _now(self) -> float:
        """Seconds, once the device has finished its work."""
        if self._spare.runtime.device.type == "cuda":
            torch.cuda.synchronize(self._spare.runtime.device)
        return time.perf_counter()

    def _train_s(self, batch: Batch) -> float:
        engine, seconds = self._spare.engine, 0.0
        for _ in range(TRAIN_BATCHES):
            engine.enqueue(batch)
            rows = engine.queue.pop()
            began = self._now()
            engine.train_step(rows)
            seconds += self._now() - began
        return seconds / TRAIN_BATCHES / len(batch.valid)

    @torch.no_grad()
    def _score_s(self, batch: Batch) -> float:
        dtype = self._spare.runtime.dtype
        self._logits(self._twin, batch.images, dtype)  # the first call compiles or tunes, and is not timed
        began = self._now()
        for _ in range(SCORE_BATCHES):
            self._logits(self._twin, batch.images, dtype)
        return (self._now() - began) / SCORE_BATCHES / len(batch.valid)

    def measure(self, epoch: int) -> dict[str, float]:
        """Seconds per sample: "t", forward, backward and step; "d", decode; "f", the scoring forward."""
        began = self._now()
        batch, *_ = self._spare.loaders.train.epoch(epoch, self._ids)
        decode_s = (self._now() - began) / len(self._ids)
        return {"t": self._train_s(batch), "d": decode_s, "f": self._score_s(batch)}


def machine_ceiling(times: dict[str, float], activation: float, *, scores: bool, plans: bool) -> float:
    """The machine's ceiling of a speed-up over dense training, from times of the same round.

    Args:
        times: as `PartTimer.measure` found them.
        activation: share of the offered samples that was trained.
        scores: whether the gate scores every offered sample.
        plans: whether it decides before anything is decoded.
    """
    train_s, decode_s = times["t"], times["d"]
    if plans:
        return 1 / activation
    return (decode_s + train_s) / (decode_s + scores * times["f"] + activation * train_s)
