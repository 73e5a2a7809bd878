"""The parts of a training step timed alone, and the speed-up that they leave room for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fastast.data import ThumbnailLoader
from fastast.device import compile_step
from fastast.feed import Batch
from fastast.models.build import scoring_twin
from fastast.train.steps import logits_of
from fastast.train.trainer import Trainer

TRAIN_BATCHES, SCORE_BATCHES, DECODE_BATCHES = 2, 4, 8  # timed in each round


class Parts:
    """Times the parts of training alone.

    Args:
        spare: a trainer that is in no race; its pipelines and engine are used.
        trainers: one of each contender's by its name, whatever the target: their scorers are used.
    """

    def __init__(self, spare: Trainer, trainers: dict[str, Trainer]) -> None:
        self._spare = spare
        self._twin = scoring_twin(spare.engine.model)
        self._dtype = spare.machine.dtype
        # As the score step runs: eager, or compiled.
        self._logits = compile_step(logits_of, spare.machine.compiled and spare.machine.compile_mode)
        ids = np.arange(spare.dataset.train.num_samples)
        self._ids = ids[: DECODE_BATCHES * spare.batch_size]
        self._proxies = {name: trainer for name, trainer in trainers.items() if trainer.engine.proxy is not None}
        self._thumbs: dict[str, ThumbnailLoader] = {}
        for name, trainer in self._proxies.items():
            if trainer.engine.select_step is not None and trainer.engine.proxy is not None:
                self._thumbs[name] = ThumbnailLoader(trainer.feeds.train, trainer.engine.proxy.size)

    def close(self) -> None:
        """Frees the pipelines."""
        for loader in self._thumbs.values():
            loader.close()

    def _train_s(self, batch: Batch) -> float:
        engine, seconds = self._spare.engine, 0.0
        for _ in range(TRAIN_BATCHES):
            engine.enqueue(batch)
            rows = engine.queue.pop()
            began = self._now()
            engine.train_step(rows)
            seconds += self._now() - began
        return seconds / TRAIN_BATCHES / len(batch.valid)

    def _score_s(self, scorer: nn.Module, batch: Batch, learn: Callable[[Batch], float]) -> float:
        with torch.no_grad():
            self._logits(scorer, batch.images, self._dtype)  # what the first call compiles or looks for is not timed
        began = self._now()
        for _ in range(SCORE_BATCHES):
            with torch.no_grad():
                self._logits(scorer, batch.images, self._dtype)
            learn(batch)
        return (self._now() - began) / SCORE_BATCHES / len(batch.valid)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self._spare.machine.device.type == "cuda":
            torch.cuda.synchronize(self._spare.machine.device)
        return time.perf_counter()

    def _decode_s(self, loader: Any, ids: np.ndarray, epoch: int) -> tuple[float, Batch]:
        began = self._now()
        first, *_ = loader.epoch(epoch, ids)
        return (self._now() - began) / len(ids), first

    def measure(self, epoch: int) -> dict[str, float]:
        """Seconds a sample: "t", "d", "f" of the network itself, and "f" and "d" of each proxy by its name."""
        decode_s, batch = self._decode_s(self._spare.feeds.train, self._ids, epoch)
        found = {"t": self._train_s(batch), "d": decode_s, "f": self._score_s(self._twin, batch, lambda _: 0.0)}
        for name, trainer in self._proxies.items():
            shown = batch
            if name in self._thumbs:
                found[f"d {name}"], shown = self._decode_s(self._thumbs[name], self._ids, epoch)
            assert trainer.engine.proxy is not None
            found[f"f {name}"] = self._score_s(trainer.engine.proxy.scorer, shown, trainer.engine.learn_proxy)
        return found


def ceiling(name: str, trainer: Trainer, parts: dict[str, float], activation: float) -> float:
    """The machine's ceiling of a contender's speed-up, from times of the same round.

    Args:
        name: of the contender.
        trainer: its own.
        parts: as `Parts.measure` found them.
        activation: share of the offered samples that was trained.
    """
    train_s, decode_s = parts["t"], parts["d"]
    score_s = all_s = 0.0
    selected_s = decode_s
    if trainer.policy.scores:
        score_s = parts.get(f"f {name}", parts["f"])
        thumb_s = parts.get(f"d {name}")
        all_s, selected_s = (decode_s, 0.0) if thumb_s is None else (thumb_s, decode_s)
    elif not trainer.policy.plans:
        all_s, selected_s = decode_s, 0.0
    return (decode_s + train_s) / (all_s + score_s + activation * (selected_s + train_s))
