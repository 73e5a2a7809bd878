"""A logistic regression on a network's features: a head for it, and what that says of each picture unseen.

After Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (ICLR 2022): a
head that fits keeps the first steps of fine-tuning from destroying what the weights know. Cross-fitting (no picture is
judged by a head that was fitted to it) makes the remembered losses those of unseen pictures, so that a gate can choose
by them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastast.distributed.ranks import Ranks
from fastast.errors import InputError
from fastast.feed import Batch
from fastast.gates.sampling import seeded_keys
from fastast.models.feature_store import FeatureStore
from fastast.models.head import Head
from fastast.models.logistic_regression import NUM_ITERATIONS, Heads, Scaling, fit, measure
from fastast.philox import STREAM_FOLD

# Parts of the training set. A head that is fitted without one judges it; the first one chooses the penalty.
NUM_FOLDS = 4
# The optimum is flat: a step beside it, accuracy differs by less than a point (benchmarks/results/probe_*.md).
PENALTIES = (1e-3, 1.8e-4, 3.2e-5, 5.6e-6, 1e-6)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found.

    Attributes:
        head: weight [F, C] and bias [C] for the network's last layer, the same on all ranks.
        losses: float32 [N], cross entropy of each picture under a head that was not fitted to it; NaN for a picture
            that could not be read.
        penalty: the chosen one.
        held_out_loss: mean cross entropy on the first fold under it, nats; its pictures weigh as their classes do.
        num_pictures: that went through the network.
        fit_flops: floating-point operations of the regression, over all ranks.
    """

    head: tuple[Tensor, Tensor]
    losses: Tensor
    penalty: float
    held_out_loss: float
    num_pictures: int
    fit_flops: float

    def units(self, forward_flops: int) -> float:
        """The work of the regression, in forwards of a picture.

        Args:
            forward_flops: operations of such a forward.
        """
        return self.fit_flops / forward_flops if forward_flops else 0.0


def folds_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each picture, int64 [N]: seeded, of equal size, and with as many pictures of each class.

    Args:
        labels: int [N].
        seed: any integer.
    """
    order = np.lexsort((seeded_keys(len(labels), seed, 0, STREAM_FOLD), labels))
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % NUM_FOLDS
    return folds


def fit_flops(num_rows: int, num_features: int, num_classes: int) -> float:
    """Operations of all fits of a probe: products with the features, and the turns of the gradient."""
    outputs = (len(PENALTIES) + NUM_FOLDS + 1) * num_classes
    once = 2.0 * num_rows * num_features * (num_features + outputs)
    return once + NUM_ITERATIONS * 4.0 * num_features * outputs * (num_rows + num_features)


@torch.no_grad()
def collect(
    store: FeatureStore,
    head: Head,
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Tensor], Tensor],
    on_batch: Callable[[], object],
) -> None:
    """Appends the features of pictures to a store.

    Args:
        store: of this rank.
        head: of the network.
        batches: this rank's pictures as evaluation shows them.
        run: calls a network on pictures [B, 3, S, S] in the run's number format.
        on_batch: called after each batch; may raise to end it there.
    """
    for batch in batches:
        rows = slice(batch.num_valid)
        store.append(run(head.features, batch.images)[rows], batch.ids[rows])
        on_batch()


def fit_probe(
    store: FeatureStore,
    class_weights: Tensor,
    num_pictures: int,
    ranks: Ranks,
    on_iteration: Callable[[int, int], object],
) -> Probe:
    """Fits a head to the features of the training pictures; all ranks call it.

    Args:
        store: this rank's features.
        class_weights: float32 [C], what a picture of each class weighs in the regression, as in the training loss.
        num_pictures: N, of the training set.
        ranks: who takes part.
        on_iteration: called with iterations done and to do; may raise to end it there.

    Raises:
        InputError: no picture could be read, or the features are not finite.
    """
    num_read = int(_sum(ranks, torch.tensor(store.num_rows)))
    if not num_read:
        raise InputError("no training picture could be decoded; quarantine.jsonl says why")
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        heads = _Heads(store, class_weights, ranks, on_iteration)
        penalty, held_out_loss = heads.choose_penalty()
        head_of_all, loss = heads.cross_fit(penalty)
    finally:
        torch.set_float32_matmul_precision(precision)
    losses = torch.zeros(num_pictures, device=store.device)
    known = torch.zeros_like(losses)
    losses[store.ids], known[store.ids] = loss, 1.0
    losses = torch.where(_sum(ranks, known) > 0, _sum(ranks, losses), torch.nan)
    flops = fit_flops(num_read, store.num_features, len(class_weights))
    return Probe(head_of_all, losses, penalty, held_out_loss, num_read, flops)


class _Heads:
    """Fits heads to a store's features."""

    def __init__(
        self, store: FeatureStore, class_weights: Tensor, ranks: Ranks, on_iteration: Callable[[int, int], object]
    ) -> None:
        self._store, self._ranks = store, ranks
        self._on_iteration, self._iteration = on_iteration, 0
        self._scaling: Scaling = measure(store, class_weights, NUM_FOLDS, ranks.all_reduce)

    def choose_penalty(self) -> tuple[float, float]:
        """The penalty whose head judges the first fold best, and the mean loss there."""
        tried = self._fit([0] * len(PENALTIES), PENALTIES)
        weights = self._scaling.class_weights[self._store.labels] * (self._store.folds == 0)
        sums = (tried.losses(self._store) * weights).sum(1, dtype=torch.float64)
        means = _sum(self._ranks, sums) / self._scaling.fold_weights[0]
        best = int(means.argmin())
        return PENALTIES[best], float(means[best])

    def cross_fit(self, penalty: float) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The head fitted to all rows, and each row's loss under the head that was fitted without its fold."""
        heads = self._fit([*range(NUM_FOLDS), -1], [penalty] * (NUM_FOLDS + 1))
        losses = heads.losses(self._store).gather(0, self._store.folds[None])[0]
        # The same on all ranks to the last bit, whatever their arithmetic.
        mine = (part[..., -1, :] * (self._ranks.rank == 0) for part in heads)
        weight, bias = (self._ranks.all_reduce(part.contiguous()) for part in mine)
        return (weight, bias), losses

    def _fit(self, left_out: list[int], penalties: list[float] | tuple[float, ...]) -> Heads:
        device = self._scaling.mean.device
        return fit(
            self._store,
            self._scaling,
            torch.tensor(left_out, device=device),
            torch.tensor(penalties, device=device),
            self._ranks.all_reduce,
            self._count,
        )

    def _count(self) -> None:
        self._iteration += 1
        self._on_iteration(self._iteration, 2 * NUM_ITERATIONS)


def _sum(ranks: Ranks, tensor: Tensor) -> Tensor:
    """Over the ranks; the tensor stays as it is."""
    return ranks.all_reduce(tensor.clone())


def as_trained(losses: Tensor, smoothing: float, num_classes: int) -> Tensor:
    """The losses that a network trained with label smoothing has where it is as sure of the label.

    Args:
        losses: float [N], of a network that was trained without.
        smoothing: of the training loss, in [0, 1).
        num_classes: of the network.
    """
    if not smoothing:
        return losses
    floor = math.log(smoothing / num_classes) - math.log1p(-smoothing)
    return -torch.logaddexp(-losses, torch.full_like(losses, floor)) - math.log1p(-smoothing)
