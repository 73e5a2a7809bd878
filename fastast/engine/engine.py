"""Everything of a run that lives on the device: the network, its selector and queue, and the steps over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastast.checkpoint.reshard import reshard_module
from fastast.config import TrainConfig
from fastast.device import Runtime, compile_step
from fastast.distributed.gradient_averaging import averaged
from fastast.distributed.ranks import Ranks
from fastast.engine.optimizer import GuardedStep, build_optimizer
from fastast.engine.steps import (
    HIST_BINS,
    HIST_WIDTH,
    EvalStep,
    Objective,
    ScoreStep,
    TrainStep,
    balanced_weights,
    run_network,
)
from fastast.engine.weight_average import WeightAverage
from fastast.feed import Batch
from fastast.gates.queue import SampleQueue
from fastast.gates.registry import GATES, make_gate
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector
from fastast.loggers.device_status import NUM_FIELDS, DeviceStatus, merge_status
from fastast.models.build import build_model, check_fits, scoring_twin
from fastast.models.flops import forward_flops, forward_units
from fastast.models.freezing import freeze, train_cost
from fastast.models.head import Head

# Batches that the queue holds: with several ranks fills drift apart before rows are moved.
QUEUE_BATCHES = {False: 4, True: 6}


class Engine:
    """The device's half of training. Of what the loop calls at each batch, only `read_status` waits for the device.

    Args:
        config: completed options.
        runtime: device, number format and compiler.
        weights: what the network starts from, as `build_model` takes it.
        num_classes: outputs of the network.
        classes: what they stand for; None: whatever those of `weights` do.
        num_train: size of the training set.
        class_counts: training pictures of each class, for `--class-weights`; None: all classes weigh alike.
        ranks: who trains it together. They call every method alike, but for the state dicts.
        num_waiting: rows that wait on one rank in a state that will be loaded, at most.

    Attributes:
        model: the network.
        notes: what the user should know of its weights.
        image_size, train_sizes: sides of the pictures that it is evaluated on and trained on, pixels.
        units: cost of one picture's forward by its size, in forwards at `image_size`.
        train_cost: cost of training one picture, in forwards; 3 unless a part is frozen.
        class_weights: float32[C] on the device, what a picture of each class weighs in the loss; None: all alike.
        memory: last loss and selection count of every training sample, the same on all ranks once merged.
        evaluate: the evaluation step, compiled if the run is.
        ema: the average of the weights, or None without `--ema`.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        *,
        weights: str,
        num_classes: int,
        classes: Sequence[str] | None = None,
        num_train: int,
        class_counts: np.ndarray | None = None,
        ranks: Ranks | None = None,
        num_waiting: int = 0,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        assert config.lr is not None, "complete_config was not called"
        assert config.weight_decay is not None
        device, dtype = runtime.device, runtime.dtype
        compiled = runtime.compiled and runtime.compile_mode
        torch.manual_seed(config.seed)
        self.device = device
        self.ranks = ranks = ranks or Ranks()
        self.model, self.notes = build_model(config.arch, num_classes, weights, classes)
        self.model.to(device).train()
        twin = scoring_twin(self.model)
        check_fits(twin, config.arch, config.image_size, num_classes)
        self._arch, self.image_size, self.train_sizes = config.arch, config.image_size, config.train_sizes
        for size in self.train_sizes:
            if size != config.image_size:
                check_fits(twin, config.arch, size, num_classes, grows_to=config.image_size)
        self.units = forward_units(twin, self.train_sizes, config.image_size)
        freeze(self.model, config.freeze, statistics=config.keeps_statistics)
        optimizer = build_optimizer(  # which refuses a network that has nothing to train
            self.model, momentum=config.momentum, weight_decay=config.weight_decay, kind=config.optimizer
        )
        self.train_cost = train_cost(self.model, config.image_size)
        self.guard = GuardedStep(self.model, optimizer, scale_loss=dtype == torch.float16, compiled=compiled)
        self.selector = Selector(
            config.target,
            kind=config.significance or GATES["forward"].significance[0],
            label_smoothing=config.label_smoothing,
            selection=config.selection,
            seed=config.seed,
            explore=config.explore if make_gate(config.gate, asdict(config)).scores else 0.0,
        ).to(device)
        shape = (3, self.train_sizes[-1], self.train_sizes[-1])
        num_batches = QUEUE_BATCHES[ranks.size > 1] + num_waiting // config.batch_size
        self.queue = SampleQueue(
            config.batch_size, shape, dtype=runtime.image_dtype, device=device, num_batches=num_batches
        )
        self.memory = ScoreMemory(num_train).to(device)
        self.score_step = ScoreStep(twin, self.selector, self.queue, dtype=dtype, unbiased=config.unbiased)
        self.class_weights: Tensor | None = None
        if config.class_weights == "balanced" and class_counts is not None:
            self.class_weights = torch.from_numpy(balanced_weights(class_counts)).to(device)
        objective: nn.Module = Objective(
            self.model,
            dtype=dtype,
            label_smoothing=config.label_smoothing,
            class_weights=self.class_weights,
            compiled=compiled,
        )
        objective = averaged(objective, self.model, self.train_sizes[-1], ranks)
        self.train_step = TrainStep(objective, self.guard, self.memory)
        self.ema = WeightAverage(self.model) if config.ema == "auto" else None
        self.eval_step = EvalStep(twin, num_classes, dtype=dtype)
        self.evaluate = compile_step(self.eval_step, compiled)
        self._score = compile_step(self.score_step, compiled)
        self._target = config.target
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._totals_are_own = False  # not yet those of all ranks
        if ranks.rank:
            torch.manual_seed(config.seed + ranks.rank)  # for dropout: all ranks built the same network

    def begin_epoch(self, epoch: int) -> None:
        """Keys the selector's random numbers; a tensor, so that a new epoch recompiles nothing."""
        self._epoch.fill_(epoch)

    def set_target(self, target: float | str) -> None:
        """Sets the share that a scoring gate selects, or "auto"; a change solves for a new threshold."""
        if target != self._target:
            self._target = target
            self.selector.set_target(target, self.score_step.totals)

    def set_lr(self, value: float) -> None:
        """Sets the learning rate of the next steps."""
        self.guard.set_lr(value)

    def score(self, batch: Batch) -> None:
        """Scores an offered batch and queues what the gate selects; `train_size` becomes that of its pictures."""
        self._take_size(batch)
        self._score(batch.images, batch.labels, batch.ids, batch.valid, self._epoch)
        self._totals_are_own = True

    def enqueue(self, batch: Batch, weights: Tensor | None = None) -> None:
        """Like `score`, but queues every valid row; `weights` are float32[N] or longer, by id, 1 without them."""
        self._take_size(batch)
        self.queue.push(
            batch.images, batch.labels, batch.ids, batch.valid, None if weights is None else weights[batch.ids]
        )

    @property
    def train_size(self) -> int:
        """Side of the pictures that `train` takes, pixels."""
        return self.queue.image_size[0]

    def _take_size(self, batch: Batch) -> None:
        """Resizes the rows that wait if the batch is of another size: on all ranks it is the same batch."""
        height, width = batch.images.shape[2:]
        if (height, width) != self.queue.image_size:
            self.queue.resize(height, width)

    def train(self) -> None:
        """Trains the oldest full batch of the queue."""
        self.train_step(self.queue.pop())
        if self.ema is not None:
            self.ema.update()

    def open_head(self) -> Head:
        """The network's head, which a probe sets.

        Raises:
            InputError: the network does not end in a linear layer.
        """
        head = Head(self.model, self._arch)
        head.check(self.image_size)
        return head

    def forward_flops(self) -> int:
        """Operations of one picture's forward at `--image-size`."""
        return forward_flops(scoring_twin(self.model), self.image_size)

    def run(self, network: nn.Module, images: Tensor) -> Tensor:
        """Calls a part of the network on pictures [B, 3, S, S] in the run's number format."""
        return run_network(network, images, self.eval_step.dtype)

    def merge_memory(self) -> None:
        """Gives all ranks the last losses of all samples."""
        self.memory.merge(self.ranks.rank, self.ranks.size, self.ranks.all_reduce)

    def best_weights(self) -> dict[str, Tensor]:
        """The state dict that did best in the last evaluation: the network's, or its average."""
        return self.ema.weights() if self.ema is not None and self.ema.is_better else self.model.state_dict()

    def status(self) -> Tensor:
        """The fields of `DeviceStatus` of this rank, float64[fields] on the device (exact for counts below 2^53)."""
        fields = [
            self.queue.pushed - self.queue.moved,
            self.queue.overflow,
            *self.guard.counts.unbind(),
            self.train_step.loss_sum,
            self.train_step.loss_rows,
            self.selector.controller.threshold,
            self.selector.controller.target,
            self.selector.controller.nan_count,
        ]
        return torch.stack([field.double() for field in fields])

    def gather_status(self) -> Tensor:
        """The statuses of all ranks, float64[ranks, fields] on the device; the selector gets the totals of all ranks.

        Call it after every offered batch.
        """
        if self.ranks.size == 1:
            return self.status()[None]
        totals = self.score_step.totals
        rows = self.ranks.all_gather(torch.cat((self.status(), totals.double())))
        if self._totals_are_own:
            totals.copy_(rows[:, NUM_FIELDS:].sum(0))
            self._totals_are_own = False
        return rows[:, :NUM_FIELDS]

    def read_status(self) -> DeviceStatus:
        """The status over all ranks after all steps so far; waits for the device."""
        return merge_status(self.ranks.all_gather(self.status()).cpu().numpy())

    def read_hist(self) -> dict[str, Any]:
        """Scoring losses of the epoch by bin (lower edges in nats, the last bin open), over all ranks; zeroes them."""
        hist = self.score_step.hist
        skipped, selected = self.ranks.all_reduce(hist).tolist()
        hist.zero_()
        return {"edges": [bin * HIST_WIDTH for bin in range(HIST_BINS)], "selected": selected, "skipped": skipped}

    def synchronize(self) -> None:
        """Waits until the device has done all its work, so that it is timed where it belongs."""
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            done.synchronize()

    def shared_state(self) -> dict[str, Any]:
        """What all ranks have in common, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.guard.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.shared_state(),
            "memory": self.memory.state_dict(),
            "target": self._target,
            "lr": self.guard.lr,
        }

    def rank_state(self) -> dict[str, Any]:
        """What each rank has of its own: selector, queue, counts, BatchNorm statistics, random number generators."""
        saved = self.model.state_dict()
        return {
            "score_step": self.score_step.state_dict(),
            "train_step": self.train_step.state_dict(),
            "buffers": {name: saved[name] for name, _ in self.model.named_buffers() if name in saved},
            "ema": None if self.ema is None else self.ema.rank_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_states(self, shared: dict[str, Any], own: dict[str, Any]) -> None:
        """Loads a `shared_state` and this rank's `rank_state`.

        Raises:
            RuntimeError: they are of another network or batch size.
        """
        self.model.load_state_dict({**shared["model"], **own["buffers"]})
        self.guard.load_optimizer(shared["optimizer"])
        if self.ema is not None:
            self.ema.load(shared["ema"], own["ema"])
        self.memory.load_merged(shared["memory"], self.ranks.rank)
        self._target = shared["target"]
        self.set_lr(shared["lr"])
        self.score_step.load_state_dict(own["score_step"])
        self.train_step.load_state_dict(own["train_step"])
        self._totals_are_own = False
        if own["rng"] is not None:
            torch.set_rng_state(own["rng"])
        if own["cuda_rng"] is not None:
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)

    def reshard(self, states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The `rank_state`s of a checkpoint for this run's number of ranks; as they are if that is theirs.

        New ranks start with the BatchNorm statistics of the first, and with random number generators of their own, or
        all would drop out the same units.
        """
        old, size = len(states), self.ranks.size
        if old == size:
            return list(states)
        resharded = {
            name: reshard_module(module, [state[name] for state in states], size)
            for name, module in (("score_step", self.score_step), ("train_step", self.train_step))
        }
        shards = []
        for rank in range(size):
            own = {**states[rank if rank < old else 0], **{name: parts[rank] for name, parts in resharded.items()}}
            shards.append(own if rank < old else {**own, "rng": None, "cuda_rng": None})
        return shards

    @staticmethod
    def num_waiting(states: Sequence[dict[str, Any]], size: int) -> int:
        """The most rows that will wait on one of `size` ranks once the `rank_state`s of all ranks are loaded."""
        rows = [SampleQueue.num_waiting(queue) for queue in Engine.queue_states(states)]
        return max(rows) if len(rows) == size else -(-sum(rows) // size)

    @staticmethod
    def queue_states(states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The queue's part of every rank's `rank_state`."""
        return [state["score_step"]["queue._extra_state"] for state in states]
