"""Everything of a run that lives on the device: the network, its gate and queue, and the steps over them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastast.config import TrainConfig
from fastast.feed import Batch
from fastast.gate import Gate, Rows, SampleQueue, ScoreMemory
from fastast.train.averaging import averaged
from fastast.train.decision import Decision
from fastast.train.distributed import Ranks
from fastast.train.model import build_model, check_fits, scoring_twin
from fastast.train.optimizer import GuardedStep, build_sgd
from fastast.train.setup import Machine
from fastast.train.status import NUM_FIELDS, Status, combined
from fastast.train.steps import EvalStep, Objective, ScoreStep, TrainStep, compile_step

# Batches that the queue holds: with several ranks fills drift apart before rows are moved.
QUEUE_BATCHES = {False: 4, True: 6}


class Engine:
    """The device's half of training. No method but `read_status` and the state dict waits for the device.

    Args:
        config: completed options.
        machine: device, number format and compiler.
        weights: what the network starts from, as `build_model` takes it.
        num_classes: outputs of the network.
        num_train: size of the training set.
        ranks: who trains it together. They call every method alike, but for the state dicts.
        num_waiting: rows that wait in a state that will be loaded.

    Attributes:
        model: the network.
        notes: what the user should know of its weights.
        memory: last loss and selection count of every training sample.
        evaluate: the evaluation step, compiled if the run is.
    """

    def __init__(
        self,
        config: TrainConfig,
        machine: Machine,
        *,
        weights: str,
        num_classes: int,
        num_train: int,
        ranks: Ranks | None = None,
        num_waiting: int = 0,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        assert config.lr is not None, "complete_config was not called"
        device, dtype = machine.device, machine.dtype
        compiled = machine.compiled and machine.compile_mode
        torch.manual_seed(config.seed)
        self.device = device
        self.ranks = ranks = ranks or Ranks()
        self.model, self.notes = build_model(config.arch, num_classes, weights)
        self.model.to(device).train()
        twin = scoring_twin(self.model)
        check_fits(twin, config.arch, config.image_size, num_classes)
        optimizer = build_sgd(self.model, momentum=config.momentum, weight_decay=config.weight_decay)
        self.guard = GuardedStep(self.model, optimizer, scale_loss=dtype == torch.float16, compiled=compiled)
        self.gate = Gate(
            config.target,
            kind=config.significance,
            selection=config.selection,
            seed=config.seed,
            explore=config.explore if config.gate == "forward" else 0.0,
        ).to(device)
        shape = (3, config.image_size, config.image_size)
        num_batches = QUEUE_BATCHES[ranks.size > 1] + num_waiting // config.batch_size
        self.queue = SampleQueue(
            config.batch_size, shape, dtype=machine.image_dtype, device=device, num_batches=num_batches
        )
        self.memory = ScoreMemory(num_train).to(device)
        self.score_step = ScoreStep(twin, self.gate, self.queue, dtype=dtype, unbiased=config.unbiased)
        objective = Objective(self.model, dtype=dtype, label_smoothing=config.label_smoothing, compiled=compiled)
        self.train_step = TrainStep(averaged(objective, self.model, config.image_size, ranks), self.guard, self.memory)
        self.eval_step = EvalStep(twin, dtype=dtype)
        self.evaluate = compile_step(self.eval_step, compiled)
        self._score = compile_step(self.score_step, compiled)
        self._target = config.target
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._totals_are_own = False  # not yet those of all ranks
        if ranks.rank:
            torch.manual_seed(config.seed + ranks.rank)  # for dropout: all ranks built the same network

    def warm_up(self) -> None:
        """Runs every step once and puts everything back, so that compiling falls outside of what is timed."""
        state = copy.deepcopy(self.state_dict())
        size = self.queue.batch_size
        images = torch.randn(self.queue.images.shape[1:], device=self.device).to(self.queue.images.dtype)
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        ids, valid = torch.arange(size, device=self.device), labels == 0
        batch = Batch(images.expand(size, -1, -1, -1).contiguous().permute(0, 3, 1, 2), labels, ids, valid, size)
        for _ in range(3):  # compiles, records CUDA graphs, replays them
            self.score(batch)
            self.enqueue(batch)
            self.train()
            self.evaluate(batch.images, labels, valid)
        self.load_state_dict(state)

    def begin_epoch(self, epoch: int) -> None:
        """Keys the gate's random numbers; a tensor, so that a new epoch compiles nothing anew."""
        self._epoch.fill_(epoch)

    def set_target(self, target: float) -> None:
        """Sets the share that the gate selects; a change solves for a new threshold at the next batch."""
        if target != self._target:
            self._target = target
            self.gate.controller.set_target(target)

    def set_lr(self, value: float) -> None:
        """Sets the learning rate of the next steps."""
        self.guard.set_lr(value)

    def score(self, batch: Batch) -> None:
        """Scores an offered batch and queues what the gate selects."""
        self._score(batch.images, batch.labels, batch.ids, batch.valid, self._epoch)
        self._totals_are_own = True

    @property
    def _decision(self) -> Decision:
        return self.score_step.decision

    def enqueue(self, batch: Batch, weights: Tensor | None = None) -> None:
        """Queues every valid row of a batch; `weights` are float32[N] or longer, by id, 1 without them."""
        self.queue.push(
            batch.images, batch.labels, batch.ids, batch.valid, None if weights is None else weights[batch.ids]
        )

    def train(self) -> None:
        """Trains the oldest full batch of the queue."""
        self.train_step(self.queue.pop())

    def move_rows(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Moves waiting rows between ranks.

        Args:
            moves: (from, to, rows) of each; the same on all ranks, each of which is in one at most.
        """
        for full, empty, num_rows in moves:
            if self.ranks.rank == full:
                rows = self.queue.give(num_rows)
                self.ranks.exchange(_flat(rows), to=empty, source=None)
            elif self.ranks.rank == empty:
                rows = self.queue.blank()
                self.ranks.exchange(_flat(rows), to=None, source=full)
                self.queue.take(rows, num_rows)

    def merge_memory(self) -> None:
        """Gives all ranks the last losses of all samples."""
        self.memory.merge(self.ranks.rank, self.ranks.size, self.ranks.reduce)

    def status(self) -> Tensor:
        """The fields of `Status` of every rank, float64[ranks x fields] on the device (exact for counts below 2^53).

        The gate learns the totals of all ranks by it, so it is called after every offered batch.
        """
        fields = [
            self.queue.pushed - self.queue.moved,
            self.queue.overflow,
            *self.guard.counts.unbind(),
            self.train_step.loss_sum,
            self.train_step.loss_rows,
            self.gate.controller.threshold,
            self.gate.controller.nan_count,
        ]
        own = torch.stack([field.double() for field in fields])
        if self.ranks.size == 1:
            return own
        rows = self.ranks.gather(torch.cat((own, self._decision.totals.double())))
        if self._totals_are_own:
            self._decision.totals.copy_(rows[:, NUM_FIELDS:].sum(0))
            self._totals_are_own = False
        return rows[:, :NUM_FIELDS].flatten()

    def read_status(self) -> Status:
        """The status of this moment, over all ranks; waits for the device."""
        return combined(self.status().cpu().numpy().reshape(-1, NUM_FIELDS))

    def settle(self) -> None:
        """Waits until the device has done all that it was given, so that it counts where it belongs."""
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            done.synchronize()

    def reset_loss_scale(self) -> None:
        """Starts the fp16 loss scale anew, for a state that was saved in another number format."""
        self.guard.reset_scale()

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values, random number generators included."""
        cuda = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "optimizer": self.guard.optimizer.state_dict(),
            "score_step": self.score_step.state_dict(),
            "train_step": self.train_step.state_dict(),
            "target": self._target,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state.

        Raises:
            RuntimeError: it is of another network or batch size.
        """
        self.model.load_state_dict(state["model"])
        self.guard.load_optimizer(state["optimizer"])
        self.score_step.load_state_dict(state["score_step"])
        self.train_step.load_state_dict(state["train_step"])
        self._target = state["target"]
        self._totals_are_own = False
        if state["rng"] is not None:
            torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def _flat(rows: Rows) -> list[Tensor]:
    """Rows as contiguous tensors, to be sent or filled."""
    return [rows.images.permute(0, 2, 3, 1), rows.labels, rows.ids, rows.weights]
