"""Significance and controller, as a scoring step calls them: they learn one step late, on any number of ranks."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor, nn

from fastast.gates.controller import PIController
from fastast.gates.significance import Significance


class Total(IntEnum):
    """Places in a totals vector. All entries are sums over samples, so vectors of ranks add up."""

    OFFERED = 0  # valid rows, those with unusable scores included
    SELECTED = 1  # of these, the selected
    NAN = 2  # of these, those with a NaN or infinite score; all of them are selected
    EXPECTED = 3  # sum of the usable rows' selection probabilities
    SLIP = 4  # usable rows (offered - NaN) x the limiter's move
    LOG_SLOPE = 5  # usable rows x the batch's log slope
    FIRST_TERM = 6  # sums for the running means of the significance
    SECOND_TERM = 7
    TERM_COUNT = 8


class Selector(nn.Module):
    """Scores a batch, selects from it, and reports the batch's totals, all on the device.

    The state learns from `totals`: each call first folds in those of the call before, summed over the ranks, then
    decides. Given the same totals all ranks hold the same state.

    Args:
        target, selection, seed, explore: as for `PIController`.
        kind: as for `Significance`.
    """

    def __init__(
        self,
        target: float,
        *,
        selection: str = "soft",
        kind: str = "loss+std",
        seed: int = 0,
        explore: float = 0.0,
    ) -> None:
        super().__init__()
        self.significance = Significance(kind)
        self.controller = PIController(target, selection=selection, seed=seed, explore=explore)

    @torch.no_grad()
    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        images: Tensor,
        ids: Tensor,
        epoch: int | Tensor,
        valid: Tensor,
        totals: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Folds in the last batch's totals, then decides on this one.

        Args:
            logits: float [B, classes].
            labels, ids: int64 [B].
            images: float [B, C, H, W].
            epoch: int or 0-dim int64.
            valid: bool [B]; rows where it is false are never selected and count nowhere.
            totals: float32 [len(Total)], the last call's, summed over all ranks; `no_totals` at first.

        Returns:
            mask: bool [B], the selected rows.
            loss: float32 [B], cross entropy.
            totals: float32 [len(Total)], of this batch on this rank.
        """
        self.fold(totals)
        scores, loss, sums = self.significance(logits, labels, images, valid)
        controller = self.controller
        mask = controller.decide(scores, ids, epoch, valid)
        usable = valid & torch.isfinite(scores)
        offered, num_usable = valid.sum().float(), usable.sum().float()
        expected = (controller.probability * usable).sum()
        counts = (offered, mask.sum().float(), offered - num_usable, expected)
        moves = (num_usable * controller.slip, num_usable * controller.batch_log_slope)
        return mask, loss, torch.cat((torch.stack(counts + moves), sums))

    @torch.no_grad()
    def fold(self, totals: Tensor) -> None:
        """Learns from one batch's totals, summed over all ranks. Zeros change nothing."""
        nan = totals[Total.NAN]
        usable = totals[Total.OFFERED] - nan
        moves = totals[Total.SLIP : Total.LOG_SLOPE + 1] / usable.clamp(min=1.0)
        selected, expected = totals[Total.SELECTED] - nan, totals[Total.EXPECTED]
        self.controller.update(selected, usable, expected, *moves.unbind())
        self.significance.update(totals[Total.FIRST_TERM :])

    @torch.no_grad()
    def set_target(self, target: float, totals: Tensor) -> None:
        """Changes the target; the next batch solves for a new threshold.

        Args:
            target: share to select, in (0, 1].
            totals: the last call's, summed over all ranks. They were counted under the old target: they are folded in
                now, and zeroed so that the next call does not take them for the new target's.
        """
        self.fold(totals)
        totals.zero_()
        self.controller.set_target(target)

    def no_totals(self) -> Tensor:
        """The totals of no batch, for the first call and after steps without the gate."""
        return torch.zeros(len(Total), device=self.controller.target.device)
