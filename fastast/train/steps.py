"""The two functions a run spends its time in: scoring an offered batch, and training on a selected one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastast.gate import Gate, Rows, SampleQueue, ScoreMemory, importance_weights
from fastast.train.optimizer import GuardedStep

# Loss histogram of selected and skipped samples: 16 bins of 0.5 nats, the last one open.
HIST_BINS, HIST_WIDTH = 16, 0.5


def logits_of(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Class scores [B, C] in float32.

    Below float32 the network runs under autocast with float32 weights. Auxiliary outputs, as GoogLeNet and Inception
    have them, are left out.

    Args:
        images: [B, 3, S, S], float32 or float16.
        dtype: compute type of the network.
    """
    if dtype == torch.float32:
        output = model(images.float())
    else:
        with torch.autocast(images.device.type, dtype):
            output = model(images)
    return cast(Tensor, getattr(output, "logits", output)).float()


class ScoreStep(nn.Module):
    """Scores an offered batch, selects from it and queues what was selected: one graph of constant shapes.

    Args:
        scorer: the network in eval mode, sharing its tensors with the one that trains (`scoring_twin`), or one that
            scores smaller pictures (`ProxyTwin`).
        gate: significance and controller.
        queue: receives the selected rows.
        dtype: compute type of the forward.
        unbiased: weigh each selected sample by rate / probability.
        clip_weights: largest weight, or None.

    Attributes:
        num_clipped: int64: weights that were cut.
        totals: the batch's counts and sums, which the gate folds into its state at the next call. Between two
            calls it may be summed over ranks.
        hist: int64[2, HIST_BINS]: scoring loss of skipped (row 0) and selected (row 1) samples since it was zeroed.
    """

    totals: Tensor
    hist: Tensor
    num_clipped: Tensor

    def __init__(
        self,
        scorer: nn.Module,
        gate: Gate,
        queue: SampleQueue,
        *,
        dtype: torch.dtype,
        unbiased: bool = False,
        clip_weights: float | None = None,
    ) -> None:
        super().__init__()
        # The scorer's tensors belong to the model: kept out of this module's state.
        self._scorer = [scorer]
        self.gate = gate
        self.queue = queue
        self.dtype = dtype
        self.unbiased = unbiased
        self.clip_weights = clip_weights
        device = queue.images.device
        self.register_buffer("totals", gate.no_totals().to(device))
        self.register_buffer("num_clipped", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("hist", torch.zeros(2, HIST_BINS, dtype=torch.int64, device=device))

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, ids: Tensor, valid: Tensor, epoch: Tensor) -> None:
        """Takes images [B, 3, S, S] channels-last, labels [B], ids [B], valid [B] bool, epoch int64 0-dim."""
        logits = logits_of(self._scorer[0], images, self.dtype)
        mask, loss, totals = self.gate(logits, labels, images, ids, epoch, valid, self.totals)
        self.totals.copy_(totals)
        weights = None
        if self.unbiased:
            controller = self.gate.controller
            rate = controller.mean_probability
            weights, num_clipped = importance_weights(mask, controller.probability, rate, self.clip_weights)
            self.num_clipped += num_clipped
        self.queue.push(images, labels, ids, mask, weights)
        bins = (loss / HIST_WIDTH).nan_to_num(nan=HIST_BINS - 1, posinf=HIST_BINS - 1).clamp(0, HIST_BINS - 1)
        cell = mask.long() * HIST_BINS + bins.long()
        self.hist.view(-1).index_add_(0, cell, valid.long())


class TrainStep(nn.Module):
    """Trains on one full batch from the queue, and remembers each sample's loss.

    Attributes:
        loss_sum: float64: cross entropy (before label smoothing) summed over the rows of steps that counted.
        loss_rows: int64: those rows.
    """

    loss_sum: Tensor
    loss_rows: Tensor

    def __init__(
        self,
        model: nn.Module,
        guard: GuardedStep,
        memory: ScoreMemory,
        *,
        dtype: torch.dtype,
        label_smoothing: float,
        compiled: bool,
    ) -> None:
        super().__init__()
        self._model = [model]
        self.guard = guard
        self.memory = memory
        self.dtype = dtype
        self.label_smoothing = label_smoothing
        device = next(model.parameters()).device
        self.register_buffer("loss_sum", torch.zeros((), dtype=torch.float64, device=device))
        self.register_buffer("loss_rows", torch.zeros((), dtype=torch.int64, device=device))
        self.objective: Callable[..., tuple[Tensor, Tensor]] = self._objective
        if compiled:
            self.objective = torch.compile(self._objective, fullgraph=True, dynamic=False)

    def forward(self, rows: Rows) -> None:
        """Runs forward, backward and one optimizer step on `rows` (B samples)."""
        self.guard.save_buffers()
        objective, loss = self.objective(rows.images, rows.labels, rows.weights)
        skipped = self.guard.backward_and_step(objective)
        counted = ~skipped
        with torch.no_grad():
            self.memory.record(rows.ids, loss, counted.expand(len(loss)))
            self.loss_sum += torch.where(counted, loss.double().sum(), 0.0)
            self.loss_rows += counted * len(loss)

    def _objective(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean weighted cross entropy with label smoothing, and the plain cross entropy [B] of each row."""
        log_p = F.log_softmax(logits_of(self._model[0], images, self.dtype), dim=1)  # [B, C]
        loss = -log_p.gather(1, labels[:, None]).squeeze(1)
        smooth = (1 - self.label_smoothing) * loss - self.label_smoothing * log_p.mean(1)
        return (weights * smooth).mean(), loss.detach()


class EvalStep(nn.Module):
    """Adds one evaluation batch to running sums: cross entropy, top-1 hits, top-5 hits, samples (float64[4])."""

    sums: Tensor

    def __init__(self, twin: nn.Module, *, dtype: torch.dtype) -> None:
        super().__init__()
        self._twin = [twin]
        self.dtype = dtype
        device = next(twin.parameters()).device
        self.register_buffer("sums", torch.zeros(4, dtype=torch.float64, device=device))

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Takes images [B, 3, S, S], labels [B], valid [B] bool; returns the logits [B, C] in float32."""
        logits = logits_of(self._twin[0], images, self.dtype)
        loss = F.cross_entropy(logits, labels, reduction="none")
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [B, 5]
        kept = torch.stack([loss.double(), hits[:, 0].double(), hits.any(1).double(), torch.ones_like(loss).double()])
        self.sums += torch.where(valid, kept, 0.0).sum(1)
        return logits


def compile_step(step: nn.Module, compiled: bool) -> Callable[..., Any]:
    """The step's forward as one compiled graph, or as it is."""
    return torch.compile(step, fullgraph=True, dynamic=False) if compiled else step
