"""The two functions a run spends its time in: scoring an offered batch, and training on a selected one."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastast.gate import Gate, Rows, SampleQueue, ScoreMemory
from fastast.train.compiler import compile_step
from fastast.train.decision import Decision
from fastast.train.optimizer import GuardedStep


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
        scorer: the network in eval mode, sharing its tensors with the one that trains (`scoring_twin`).
        gate: significance and controller.
        queue: receives the selected rows.
        dtype: compute type of the forward.
        unbiased: as for `Decision`.

    Attributes:
        decision: the gate with its counts.
    """

    def __init__(
        self,
        scorer: nn.Module,
        gate: Gate,
        queue: SampleQueue,
        *,
        dtype: torch.dtype,
        unbiased: bool = False,
    ) -> None:
        super().__init__()
        # The scorer's tensors belong to the model: kept out of this module's state.
        self._scorer = [scorer]
        self.decision = Decision(gate, unbiased=unbiased)
        self.queue = queue
        self.dtype = dtype

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, ids: Tensor, valid: Tensor, epoch: Tensor) -> None:
        """Takes images [B, 3, S, S] channels-last, labels [B], ids [B], valid [B] bool, epoch int64 0-dim."""
        logits = logits_of(self._scorer[0], images, self.dtype)
        mask, weights = self.decision(logits, labels, images, ids, epoch, valid)
        self.queue.push(images, labels, ids, mask, weights)


class Objective(nn.Module):
    """The training forward: mean weighted cross entropy with label smoothing, and each row's plain cross entropy.

    Args:
        model: the network that trains.
        dtype: compute type of the forward.
        label_smoothing: in [0, 1).
        compiled: whether, or in which mode, it goes through `torch.compile`.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype, label_smoothing: float, compiled: bool | str) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype
        self._label_smoothing = label_smoothing
        self._run = compile_step(self._compute, compiled)

    def forward(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Takes images [B, 3, S, S], labels int64 [B], weights [B]; returns float32 0-dim and [B] without gradient."""
        return self._run(images, labels, weights)

    def _compute(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits_of(self.model, images, self._dtype), dim=1)  # [B, C]
        loss = -log_p.gather(1, labels[:, None]).squeeze(1)
        smooth = (1 - self._label_smoothing) * loss - self._label_smoothing * log_p.mean(1)
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
        self.memory = memory
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
            self.memory.record(rows.ids, loss, counted.expand(len(loss)))
            self.loss_sum += torch.where(counted, loss.double().sum(), 0.0)
            self.loss_rows += counted * len(loss)


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
