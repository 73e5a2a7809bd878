"""The plain PyTorch loop with a DataLoader, as torchvision's references train, and two rules put into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import datasets

from benchmarks.peers import rules
from benchmarks.peers.training import Training

PRUNE, DELTA = 0.5, 0.875  # InfoBatch's published values
KEEP = 0.5  # Composer's default


class Rule:
    """Trains on all pictures."""

    def __init__(self, training: Training) -> None:
        self.training, self.num_samples = training, len(training.pictures)
        self.generator = torch.Generator().manual_seed(training.task.seed)

    def plan(self) -> tuple[Tensor, Tensor]:
        """Ids of the next epoch, int64[K], and the weight of every picture, float32[N]."""
        return torch.arange(self.num_samples), torch.ones(self.num_samples)

    def rows(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Rows of a batch to train, or None for all."""
        return None

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        """Takes the losses of a trained batch."""


class InfoBatch(Rule):
    """Leaves out well-learned pictures before they are decoded, but not in epochs that start late in the run."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.losses = torch.zeros(self.num_samples, device=training.device)

    def plan(self) -> tuple[Tensor, Tensor]:
        if self.training.spending.progress >= DELTA:
            return super().plan()
        return rules.infobatch_plan(self.losses.cpu(), PRUNE, self.generator)

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        self.losses[ids] = losses.float()


class SelectiveBackprop(Rule):
    """Trains part of a batch, chosen by a forward of all of it in training mode, as Composer runs it."""

    def rows(self, images: Tensor, labels: Tensor) -> Tensor | None:
        training = self.training
        if not rules.selective_backprop_is_on(training.spending.progress, training.steps):
            return None
        with torch.no_grad(), training.autocast():
            losses = F.cross_entropy(training.network(images), labels, reduction="none")
        return rules.selective_backprop_rows(losses, KEEP, self.generator)


class Numbered(Dataset[tuple[Any, int, int]]):
    """Pictures with their label and their number."""

    def __init__(self, pictures: datasets.ImageFolder) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, int, int]:
        return (*self.pictures[number], number)


class Order(Sampler[int]):
    """Ids in a new random order each epoch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.ids = torch.empty(0, dtype=torch.int64)
        self._generator = generator

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids[torch.randperm(len(self.ids), generator=self._generator)].tolist())


def run_loop(training: Training, kind: type[Rule]) -> None:
    """Trains with a rule until the budget is spent."""
    task, network, scaler = training.task, training.network, training.scaler
    optimizer = training.sgd()
    rule = kind(training)
    order = Order(rule.generator)
    loader: DataLoader[Any] = DataLoader(
        Numbered(training.pictures), task.batch_size, sampler=order, **training.loader_options
    )
    while not training.spending.is_over:
        order.ids, weights = rule.plan()
        weights = weights.to(training.device)
        for images, labels, ids in training.batches(loader, left_out=rule.num_samples - len(order.ids)):
            training.set_lr(optimizer)
            rows = rule.rows(images, labels)
            if rows is not None:
                images, labels, ids = images[rows], labels[rows], ids[rows]
            with training.autocast():
                logits = network(images)
                losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=task.label_smoothing)  # [B]
            optimizer.zero_grad()
            scaler.scale((weights[ids] * losses).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            rule.learn(ids, losses.detach())
