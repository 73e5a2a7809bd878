"""Significance and controller, as a scoring step calls them: they learn one step late, on any number of ranks."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.gates.controller import PIController
from fastast.gates.registry import AUTO, LEAST_SHARE, SHARE_POWER
from fastast.gates.significance import MEMORY, Significance


class Total(IntEnum):
    """Places in a totals vector. All entries are sums over samples, so vectors of ranks add up."""

    OFFERED = 0  # valid rows, those with unusable scores included
    SELECTED = 1  # of these, the selected
    NAN = 2  # of these, those with a NaN or infinite score; all of them are selected
    EXPECTED = 3  # sum of the usable rows' selection probabilities
    SLIP = 4  # usable rows (offered - NaN) x the limiter's move
    LOG_SLOPE = 5  # usable rows x the batch's log slope
    SCORE = 6  # sum of the usable scores
    SQUARE = 7  # and of their squares
    FIRST_TERM = 8  # sums for the running means of the significance
    SECOND_TERM = 9
    TERM_COUNT = 10


def share_of_sums(sums: Tensor) -> Tensor:
    """`fastast.gates.sampling.adaptive_share` from count, sum and sum of squares (float32 [3]), on the device.

    1 for sums of nothing.
    """
    count, total, squares = sums.unbind()
    size = total.square() / (count * squares).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(squares > 0, size**SHARE_POWER, 1.0).clamp(LEAST_SHARE, 1.0)


class Selector(nn.Module):
    """Scores a batch, selects from it, and reports the batch's totals, all on the device.

    The state learns from `totals`: each call first folds in those of the call before, summed over the ranks, then
    decides. Given the same totals all ranks hold the same state.

    Args:
        target: as for `PIController`; or "auto", where it follows `adaptive_share` of the scores of recent batches.
        selection, seed, explore: as for `PIController`.
        kind, label_smoothing: as for `Significance`.

    Raises:
        InputError: as `PIController` and `Significance`; or explore is not below the least target of "auto".
    """

    spread: Tensor

    def __init__(
        self,
        target: float | str,
        *,
        selection: str = "soft",
        kind: str = "loss+std",
        label_smoothing: float = 0.0,
        seed: int = 0,
        explore: float = 0.0,
    ) -> None:
        super().__init__()
        self.significance = Significance(kind, label_smoothing=label_smoothing)
        self.controller = PIController(1.0, selection=selection, seed=seed, explore=explore)
        self.register_buffer("spread", torch.zeros(3))  # count, sum and sum of squares of the recent scores
        self.set_target(target, self.no_totals())

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
        usable = valid & torch.isfinite(scores)
        offered, num_usable = valid.sum().float(), usable.sum().float()
        counted = torch.where(usable, scores, 0.0)
        spread = torch.stack((counted.sum(), counted.square().sum()))
        if self.adapts:  # until the first totals are folded in, the batch has only itself to go by
            own = torch.cat((num_usable[None], spread))
            controller.follow(share_of_sums(torch.where(self.spread[0] > 0, self.spread, own)))
        mask = controller.decide(scores, ids, epoch, valid)
        expected = (controller.probability * usable).sum()
        counts = (offered, mask.sum().float(), offered - num_usable, expected)
        moves = (num_usable * controller.slip, num_usable * controller.batch_log_slope)
        return mask, loss, torch.cat((torch.stack(counts + moves), spread, sums))

    @torch.no_grad()
    def fold(self, totals: Tensor) -> None:
        """Learns from one batch's totals, summed over all ranks. Zeros change nothing."""
        nan = totals[Total.NAN]
        usable = totals[Total.OFFERED] - nan
        moves = totals[Total.SLIP : Total.LOG_SLOPE + 1] / usable.clamp(min=1.0)
        selected, expected = totals[Total.SELECTED] - nan, totals[Total.EXPECTED]
        spread = torch.cat((usable[None], totals[Total.SCORE : Total.SQUARE + 1]))
        self.spread.copy_(torch.where(usable > 0, MEMORY * self.spread + spread, self.spread))
        if self.adapts:
            self.controller.follow(torch.where(self.spread[0] > 0, share_of_sums(self.spread), self.controller.target))
        self.controller.update(selected, usable, expected, *moves.unbind())
        self.significance.update(totals[Total.FIRST_TERM :])

    @torch.no_grad()
    def set_target(self, target: float | str, totals: Tensor) -> None:
        """Changes the target; the next batch solves for a new threshold.

        Args:
            target: share to select, in (0, 1], or "auto".
            totals: the last call's, summed over all ranks. They were counted under the old target: they are folded in
                now, and zeroed so that the next call does not take them for the new target's.
        """
        self.adapts = False
        self.fold(totals)
        totals.zero_()
        self.adapts = target == AUTO
        if self.adapts and self.controller.explore >= LEAST_SHARE:
            raise InputError(f"explore share {self.controller.explore}: with target auto give less than {LEAST_SHARE}")
        self.controller.set_target(1.0 if isinstance(target, str) else target)

    def no_totals(self) -> Tensor:
        """The totals of no batch, for the first call and after steps without the gate."""
        return torch.zeros(len(Total), device=self.controller.target.device)
