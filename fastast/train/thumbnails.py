"""A gated stretch that is scored from thumbnails: only the pictures that the gate selects are decoded in full.

The loader of full pictures pulls the ids that it is to decode from `ThumbnailPass.slices`, which scores thumbnails
until a batch of them is selected. How far it pulls ahead is fixed, so a run is the same each time, and a checkpoint
holds what was pulled but not yet trained.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastast.data import Batch, ThumbnailLoader, rank_slices
from fastast.gate import LaggedReader
from fastast.train.account import PhaseCounts
from fastast.train.engine import Engine
from fastast.train.passage import NO_IDS, Moment, Passage


@dataclass(slots=True)
class _Slice:
    """Pictures to be decoded in full: int64[n] ids, and the thumbnails whose ranking they are to check, if any."""

    ids: np.ndarray
    thumbs: Batch | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ids": torch.from_numpy(self.ids), "thumbs": _save(self.thumbs)}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> _Slice:
        return cls(state["ids"].numpy(), _load(state["thumbs"], device))


def _save(batch: Batch | None) -> list[Any] | None:
    return None if batch is None else list(batch)


def _load(state: list[Any] | None, device: torch.device) -> Batch | None:
    if state is None:
        return None
    images, labels, ids, valid, num_valid = state
    return Batch(images.to(device), labels.to(device), ids.to(device), valid.to(device), num_valid)


class ThumbnailPass:
    """Scores the thumbnails of stretches and hands over the selected pictures.

    Args:
        engine: of the run, built for thumbnails.
        loader: of the thumbnails.
        batch_size: rows of a batch, B.
    """

    def __init__(self, engine: Engine, loader: ThumbnailLoader, batch_size: int) -> None:
        self._engine, self._loader, self._batch_size = engine, loader, batch_size
        self._ranks = engine.ranks
        self._decisions = LaggedReader(self._ranks.size * 2 * batch_size, engine.device, torch.float64)
        self._scored: tuple[int, Batch | None] | None = None  # valid rows of the batch whose decision is on its way
        self._selected = NO_IDS  # by all ranks, who share them out batch by batch
        self._ready: collections.deque[_Slice] = collections.deque()  # to be pulled
        self._pulled: collections.deque[_Slice] = collections.deque()  # by the loader of full pictures
        self._counts = PhaseCounts()
        self._offered = NO_IDS  # since the last moment
        self._first = 0

    def slices(self, passage: Passage) -> Iterator[np.ndarray]:
        """Scores what is left of a stretch; yields int64[n] ids to decode, n <= B, as they are selected.

        All ranks yield as many slices, in which each has its part of a batch of selected ids.
        """
        for piece in tuple(self._pulled):  # before the run was stopped
            yield piece.ids
        yield from self._pull()
        for thumbs in self._loader.stream(passage.stretch.epoch, passage.slices()):
            assert self._engine.proxy is not None, "the engine was built without a proxy"
            check = self._engine.proxy.check_due()
            decision, extra = self._engine.select(thumbs)
            passage.advance()
            self._counts.scored += thumbs.num_valid
            self._counts.extra_units += extra
            self._decide(self._decisions.push(decision.flatten()))
            self._scored = thumbs.num_valid, thumbs if check else None
            yield from self._pull()
        self._decide(self._decisions.flush())
        self._cut(len(self._selected))
        yield from self._pull()

    def _pull(self) -> Iterator[np.ndarray]:
        while self._ready:
            self._pulled.append(self._ready.popleft())
            yield self._pulled[-1].ids

    def _decide(self, decision: np.ndarray | None) -> None:
        """Takes in the decision on the batch before."""
        if decision is None:
            return
        assert self._scored is not None, "a decision without a batch"
        (num_valid, thumbs), self._scored = self._scored, None
        rows = decision.reshape(self._ranks.size, 2, -1)  # ids and weights of every rank
        ids, weights = rows[:, 0].astype(np.int64), rows[:, 1]
        scored = ids[self._ranks.rank, :num_valid]
        self._offered = np.concatenate((self._offered, scored))
        if thumbs is not None:
            self._ready.append(_Slice(scored, thumbs))
        self._selected = np.concatenate((self._selected, ids[weights > 0]))
        size = self._batch_size * self._ranks.size
        self._cut(len(self._selected) // size * size)

    def _cut(self, num_ids: int) -> None:
        """Shares out the oldest selected ids."""
        ids, self._selected = self._selected[:num_ids], self._selected[num_ids:]
        for mine in rank_slices(ids, self._batch_size, self._ranks.rank, self._ranks.size):
            self._ready.append(_Slice(mine))

    def take(self, batch: Batch) -> None:
        """Queues a batch of full pictures, or checks the ranking with it: in the order of `slices`."""
        piece = self._pulled.popleft()
        if piece.thumbs is None:
            self._engine.enqueue(batch, self._engine.selected_weights)
        else:
            assert self._engine.proxy is not None, "the engine was built without a proxy"
            self._counts.extra_units += self._engine.proxy.check(piece.thumbs, batch)

    def moment(self, passage: Passage) -> Moment:
        """The work since the last call."""
        first, self._first = self._first, passage.offered
        counts, self._counts = self._counts, PhaseCounts()
        offered, self._offered = self._offered, NO_IDS
        counts.offered = len(offered)
        return Moment(first, passage.offered, counts, offered)

    def begin(self) -> None:
        """Starts a new stretch; nothing of the last one is left."""
        self._first = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, at any place between two batches."""
        return {
            "decision": self._decisions.state(),
            "scored": None if self._scored is None else [self._scored[0], _save(self._scored[1])],
            "selected": torch.from_numpy(self._selected),
            "ready": [piece.state_dict() for piece in self._ready],
            "pulled": [piece.state_dict() for piece in self._pulled],
            "moment": Moment(self._first, self._first, self._counts, NO_IDS).state_dict(),
            "offered": torch.from_numpy(self._offered),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        device = self._engine.device
        self._decisions.restore(state["decision"])
        if state["scored"] is not None:
            num_valid, thumbs = state["scored"]
            self._scored = num_valid, _load(thumbs, device)
        self._selected = state["selected"].numpy()
        self._ready.extend(_Slice.from_state(piece, device) for piece in state["ready"])
        self._pulled.extend(_Slice.from_state(piece, device) for piece in state["pulled"])
        moment = Moment.from_state(state["moment"])
        self._first, self._counts, self._offered = moment.first, moment.counts, state["offered"].numpy()
