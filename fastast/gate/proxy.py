"""Scoring at a smaller side: pictures made small, a network with statistics of its own, and how well it ranks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastast.errors import InputError

# The running statistics move half of the way in a refresh. They begin with the network's own, so the first score
# steps each refresh: after four of them 94 % of the way is done.
MOMENTUM = 0.5
NUM_FIRST = 4


def shrink(images: Tensor, size: int) -> Tensor:
    """Averages pixels down to a smaller side, keeping type and memory format.

    Args:
        images: float [B, C, S, S].
        size: s, at most S.

    Returns:
        float [B, C, s, s], each pixel the mean of the area that it covers (rounded to whole pixels of the source).
    """
    side = images.shape[-1]
    if size == side:
        return images
    if side == 2 * size:
        # Halfway between pixels bilinear weights are all 1/4: the same mean, three times as fast on a CPU.
        return F.interpolate(images, size=(size, size), mode="bilinear")
    return F.adaptive_avg_pool2d(images, size)


class ProxyTwin(nn.Module):
    """A network that scores small pictures: the parameters of the trained one, batch statistics of its own.

    Batch normalisation layers keep running means and variances for one picture size. The twin has buffers of its own
    for them, which `refresh` moves by a train-mode pass without gradient, and shares every other tensor. The trained
    network's buffers are not reached by either call, and neither switches a mode: both compile once.

    The state dict holds the twin's own statistics alone.

    Args:
        model: the network that is trained, left as it is. Its parameters must stay the same tensors.
        size: side s of the scored pictures.
        refresh_every: score steps from one refresh to the next.

    Raises:
        InputError: size or refresh_every is below 1.
    """

    def __init__(self, model: nn.Module, size: int, *, refresh_every: int = 50) -> None:
        super().__init__()
        if size < 1 or refresh_every < 1:
            raise InputError(f"proxy size {size} and refresh interval {refresh_every} must be 1 or more")
        self.size = size
        self.refresh_every = refresh_every
        self.num_steps = 0
        own = [buffer for layer in _norms(model) for buffer in layer.buffers()]
        shared = _shared(model, without=own)
        # In lists, so that no tensor of the model enters this module's state.
        self._scorer = [copy.deepcopy(model, shared).eval()]
        self._refresher = [copy.deepcopy(self._scorer[0], _shared(self._scorer[0]))]
        for layer in _norms(self._refresher[0]):
            layer.train()
            layer.momentum = MOMENTUM

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """The network's output for images [B, C, S, S], in eval mode at side s."""
        return self._scorer[0](shrink(images, self.size))

    @torch.no_grad()
    def refresh(self, images: Tensor) -> None:
        """Moves the statistics towards those of a batch, all of whose rows must be valid: one forward at side s."""
        self._refresher[0](shrink(images, self.size))

    def due(self) -> bool:
        """Counts a score step, and says whether to refresh before it: the first few, then one in `refresh_every`."""
        step, self.num_steps = self.num_steps, self.num_steps + 1
        return step < NUM_FIRST or step % self.refresh_every == 0

    def get_extra_state(self) -> dict[str, Any]:
        """Steps counted and the twin's own statistics."""
        return {"num_steps": self.num_steps, "norms": [dict(layer.named_buffers()) for layer in self._own_norms()]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.num_steps = state["num_steps"]
        for layer, own in zip(self._own_norms(), state["norms"], strict=True):
            layer.load_state_dict(own, strict=False)

    def _own_norms(self) -> list[_BatchNorm]:
        return _norms(self._scorer[0])


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """Layers that keep running statistics."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


def _shared(model: nn.Module, without: list[Tensor] | None = None) -> dict[int, Any]:
    """A memo with which `copy.deepcopy` shares the model's tensors instead of copying them."""
    left_out = {id(tensor) for tensor in without or []}
    tensors = itertools.chain(model.parameters(), model.buffers())
    return {id(tensor): tensor for tensor in tensors if id(tensor) not in left_out}


def rank_correlation(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Spearman's rank correlation of two scores of the same samples; equal scores share their mean rank.

    Ranks come from comparing all pairs, which is quick for a batch, needs no sort and has a fixed shape.

    Args:
        first, second: float [B].
        valid: bool [B]; rows where it is false, or where a score is NaN, have no part.

    Returns:
        float32 0-dim in [-1, 1]; NaN if a score is the same for all.
    """
    valid = valid & ~first.isnan() & ~second.isnan()
    num = valid.sum().clamp(min=1)
    deviations = []
    for scores in (first, second):
        below = (scores[None, :] < scores[:, None]) & valid  # [B, B]
        equal = (scores[None, :] == scores[:, None]) & valid
        rank = below.sum(1).float() + 0.5 * equal.sum(1).float()  # [B]
        rank = torch.where(valid, rank, 0.0)
        deviations.append(torch.where(valid, rank - rank.sum() / num, 0.0))
    a, b = deviations
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()


class RankCorrelation(nn.Module):
    """The mean over batches of the rank correlation between two scores, summed on the device."""

    total: Tensor
    num_batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    @property
    def mean(self) -> Tensor:
        """float32 0-dim, NaN before the first batch."""
        return self.total / self.num_batches

    @torch.no_grad()
    def add(self, first: Tensor, second: Tensor, valid: Tensor) -> None:
        """Takes in one batch, as `rank_correlation` does; one whose correlation is NaN is left out."""
        value = rank_correlation(first, second, valid)
        known = ~value.isnan()
        self.total += torch.where(known, value, 0.0)
        self.num_batches += known
