"""The functions that a run spends its time in: scoring a batch, training on a selected one, evaluating."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastast.device import compile_step
from fastast.engine.optimizer import GuardedStep
from fastast.gates.importance_weights import importance_weights
from fastast.gates.queue import Rows, SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector

# Loss histogram of selected and skipped samples: 16 bins of 0.5 nats, the last one open.
HIST_BINS, HIST_WIDTH = 16, 0.5


def run_network(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Any:
    """The network's output; below float32 it runs under autocast with float32 weights.

    Args:
        images: [B, 3, S, S], float32 or float16.
        dtype: compute type of the network.
    """
    if dtype == torch.float32:
        return model(images.float())
    with torch.autocast(images.device.type, dtype):
        return model(images)


def logits_of(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Class scores [B, C] in float32.

    Auxiliary outputs, as GoogLeNet and Inception have them, are left out. Arguments are as of `run_network`.
    """
    output = run_network(model, images, dtype)
    return cast(Tensor, getattr(output, "logits", output)).float()


class ScoreStep(nn.Module):
    """Scores an offered batch, selects from it and queues what was selected: one graph of constant shapes.

    Args:
        scorer: the network in eval mode, sharing its tensors with the one that trains (`scoring_twin`).
        selector: significance and controller.
        queue: receives the selected rows.
        dtype: compute type of the forward.
        unbiased: weigh each selected sample by rate / probability.

    Attributes:
        totals: the batch's counts and sums, which the selector folds into its state at the next call. Between two
            calls they may be summed over ranks.
        hist: int64[2, HIST_BINS]: scoring loss of skipped (row 0) and selected (row 1) samples since it was zeroed.
    """

    RANK_COUNTS = ("hist",)

    totals: Tensor
    hist: Tensor

    def __init__(
        self,
        scorer: nn.Module,
        selector: Selector,
        queue: SampleQueue,
        *,
        dtype: torch.dtype,
        unbiased: bool = False,
    ) -> None:
        super().__init__()
        # The scorer's tensors belong to the model: kept out of this module's state.
        self._scorer = [scorer]
        self.selector = selector
        self.queue = queue
        self.dtype = dtype
        self.unbiased = unbiased
        totals = selector.no_totals()
        self.register_buffer("totals", totals)
        self.register_buffer("hist", torch.zeros(2, HIST_BINS, dtype=torch.int64, device=totals.device))

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, ids: Tensor, valid: Tensor, epoch: Tensor) -> None:
        """Takes images [B, 3, S, S] channels-last, labels [B], ids [B], valid [B] bool, epoch int64 0-dim."""
        logits = logits_of(self._scorer[0], images, self.dtype)
        mask, loss, totals = self.selector(logits, labels, images, ids, epoch, valid, self.totals)
        self.totals.copy_(totals)
        bins = (loss / HIST_WIDTH).nan_to_num(nan=HIST_BINS - 1, posinf=HIST_BINS - 1).clamp(0, HIST_BINS - 1)
        self.hist.view(-1).index_add_(0, mask.long() * HIST_BINS + bins.long(), valid.long())
        weights = None
        if self.unbiased:
            controller = self.selector.controller
            weights = importance_weights(mask, controller.probability, controller.mean_probability)
        self.queue.push(images, labels, ids, mask, weights)


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weights of classes, float32[C]: the inverse of their counts, with a mean of 1 over the pictures.

    Every class then has the same part in the loss, and the loss its usual size, so that a learning rate stays right.

    Args:
        counts: int[C]; a class without pictures weighs nothing.
    """
    known = counts > 0
    shares = counts / counts.sum() * known.sum()
    return np.divide(1.0, shares, out=np.zeros(len(counts)), where=known).astype(np.float32)


class Objective(nn.Module):
    """The training forward: mean weighted cross entropy with label smoothing, and each row's plain cross entropy.

    The plain one is what gates score by: it stays comparable whatever the rows and the classes weigh.

    Args:
        model: the network that trains.
        dtype: compute type of the forward.
        label_smoothing: in [0, 1).
        class_weights: float32[C], what a row of each class weighs in the mean; None: all alike.
        compiled: whether, or in which mode, it goes through `torch.compile`.
    """

    _class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype,
        label_smoothing: float,
        class_weights: Tensor | None = None,
        compiled: bool | str,
    ) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype
        self._label_smoothing = label_smoothing
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self._run = compile_step(self._compute, compiled)

    def forward(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Takes images [B, 3, S, S], labels int64 [B], weights [B]; returns float32 0-dim and [B] without gradient."""
        return self._run(images, labels, weights)

    def _compute(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits_of(self.model, images, self._dtype), dim=1)  # [B, C]
        loss = -log_p.gather(1, labels[:, None]).squeeze(1)
        smooth = (1 - self._label_smoothing) * loss - self._label_smoothing * log_p.mean(1)
        if self._class_weights is not None:
            weights = weights * self._class_weights[labels]
        return (weights * smooth).mean(), loss.detach()


class TrainStep(nn.Module):
    """Trains on one full batch from the queue, and remembers each sample's loss.

    Args:
        objective: an `Objective`, or what averages its gradients over ranks.
        guard: the optimizer step.
        memory: takes the losses.

    Attributes:
        loss_sum: float64: cross entropy (before label smoothing) summed over the rows of steps that counted.
        loss_rows: int64: those rows.
    """

    RANK_COUNTS = ("loss_sum", "loss_rows")

    loss_sum: Tensor
    loss_rows: Tensor

    def __init__(
        self,
        objective: nn.Module,
        guard: GuardedStep,
        memory: ScoreMemory,
    ) -> None:
        super().__init__()
        self._objective = [objective]  # the model's tensors stay out of this module's state
        self.guard = guard
        self._memory = [memory]  # all ranks share one
        device = next(objective.parameters()).device
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("loss_rows", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def objective(self) -> nn.Module:
        """As given."""
        return self._objective[0]

    def forward(self, rows: Rows) -> None:
        """Runs forward, backward and one optimizer step on `rows` (B samples)."""
        self.guard.save_buffers()
        objective, loss = self.objective(rows.images, rows.labels, rows.weights)
        loss = loss.clone()  # a CUDA graph's own is overwritten when the guard puts buffers back
        skipped = self.guard.backward_and_step(objective)
        counted = ~skipped
        with torch.no_grad():
            self._memory[0].record(rows.ids, loss, counted.expand(len(loss)))
            self.loss_sum += torch.where(counted, loss.double().sum(), 0.0)
            self.loss_rows += counted * len(loss)


class EvalStep(nn.Module):
    """Adds one evaluation batch to running sums.

    Args:
        twin: the network in eval mode.
        num_classes: its outputs, C.
        dtype: compute type of the forward.

    Attributes:
        sums: float64[2]: cross entropy, and labels among the five most probable classes.
        by_class: int64[2, C]: pictures of each class, and those whose label is the most probable class.
    """

    sums: Tensor
    by_class: Tensor

    def __init__(self, twin: nn.Module, num_classes: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self._twin = [twin]
        self.dtype = dtype
        device = next(twin.parameters()).device
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64, device=device))
        self.register_buffer("by_class", torch.zeros(2, num_classes, dtype=torch.int64, device=device))

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Takes images [B, 3, S, S], labels [B], valid [B] bool; returns the logits [B, C] in float32."""
        logits = logits_of(self._twin[0], images, self.dtype)
        loss = F.cross_entropy(logits, labels, reduction="none")
        # Of equal logits, as bfloat16 makes them, the first class is the most probable, as `fastast predict` has it.
        own, place = logits.gather(1, labels[:, None]), torch.arange(logits.shape[1], device=logits.device)
        behind = (logits < own) | ((logits == own) & (place >= labels[:, None]))  # and the label itself
        rank = (~behind).sum(1)  # [B], of the label; the last where logits are no numbers
        kept = torch.stack([loss.double(), (rank < 5).double()])
        self.sums += torch.where(valid, kept, 0.0).sum(1)
        self.by_class.index_add_(1, labels, torch.stack([valid, valid & (rank < 1)]).long())
        return logits
