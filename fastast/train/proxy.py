"""The proxy gate's scorer in training: its batch statistics kept fresh, its ranking checked now and then."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastast.config import TrainConfig
from fastast.data import Batch
from fastast.gate import ProxyTwin, RankCorrelation, Significance
from fastast.train.planner import proxy_size
from fastast.train.steps import logits_of


class ProxyScorer(nn.Module):
    """A `ProxyTwin` with its refreshes, and the rank correlation of its scores with those at full size.

    Refreshes fall in the first score steps and then in one of `--proxy-bn-every`; a check of the ranking falls midway
    between two refreshes. Both are work that the gate costs, and are returned as such.

    Args:
        model: the network that trains.
        twin: the network in eval mode at full size.
        config: completed options.
        dtype: compute type of the forwards.
        compiled: whether they go through `torch.compile`.

    Attributes:
        twin: scores at the proxy size.
        correlation: of the checks so far.
    """

    def __init__(
        self, model: nn.Module, twin: nn.Module, config: TrainConfig, dtype: torch.dtype, compiled: bool
    ) -> None:
        super().__init__()
        size = proxy_size(config)
        self.twin = ProxyTwin(model, size, refresh_every=config.proxy_bn_every)
        self.correlation = RankCorrelation().to(next(model.parameters()).device)
        self._full = [twin]
        self._significance = Significance(config.significance).to(next(model.parameters()).device)
        self._dtype = dtype
        self._units = (size / config.image_size) ** 2
        self._check_at = config.proxy_bn_every // 2
        self._check = torch.compile(self._compare, fullgraph=True, dynamic=False) if compiled else self._compare

    @torch.no_grad()
    def keep_up(self, batch: Batch) -> float:
        """Refreshes or checks if it is time; call before scoring a batch.

        Returns:
            The work done, in forwards of the full-size network.
        """
        step, rows = self.twin.num_steps, len(batch.valid)
        work = 0.0
        if self.twin.due() and batch.num_valid == rows:
            self._refresh(batch)
            work += self._units * rows
        if step % self.twin.refresh_every == self._check_at:
            self._check(batch.images, batch.labels, batch.valid)
            work += (1 + self._units) * rows
        return work

    def _refresh(self, batch: Batch) -> None:
        if self._dtype == torch.float32:
            self.twin.refresh(batch.images.float())
        else:
            with torch.autocast(batch.images.device.type, self._dtype):
                self.twin.refresh(batch.images)

    @torch.no_grad()
    def _compare(self, images: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> None:
        small, _, _ = self._significance(logits_of(self.twin, images, self._dtype), labels, images, valid)
        full, _, _ = self._significance(logits_of(self._full[0], images, self._dtype), labels, images, valid)
        self.correlation.add(small, full, valid)

    def read_correlation(self) -> dict[str, Any]:
        """Mean rank correlation and the number of batches behind it; waits for the device."""
        num_batches = int(self.correlation.num_batches)
        return {
            "rank_correlation": float(self.correlation.mean) if num_batches else None,
            "num_batches": num_batches,
        }
