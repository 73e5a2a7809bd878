"""The plain PyTorch loop with a DataLoader, as torchvision's references train, and two rules put into it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from benchmarks.peers import rules
from benchmarks.peers.setting import (
    Numbered,
    Setting,
    Work,
    network_of,
    optimizer_of,
    outcome,
    set_lr,
    top1,
    train_pictures,
)

PRUNE, DELTA = 0.5, 0.875  # InfoBatch's published values
KEEP = 0.5  # Composer's default


class Rule:
    """Trains on all pictures."""

    def __init__(self, setting: Setting, num_samples: int) -> None:
        self.setting, self.num_samples = setting, num_samples
        self.generator = torch.Generator().manual_seed(setting.seed)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Ids of an epoch, int64[K], and the weight of every picture, float32[N]."""
        return torch.arange(self.num_samples), torch.ones(self.num_samples)

    def rows(self, network: nn.Module, images: Tensor, labels: Tensor, progress: float, batch: int) -> Tensor | None:
        """Rows of a batch to train, or None for all."""
        return None

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        """Takes the losses of a trained batch."""


class InfoBatch(Rule):
    """Leaves out well-learned pictures before they are decoded, but not in the last epochs."""

    def __init__(self, setting: Setting, num_samples: int) -> None:
        super().__init__(setting, num_samples)
        self.losses = torch.zeros(num_samples)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch >= DELTA * self.setting.epochs:
            return super().plan(epoch)
        return rules.infobatch_plan(self.losses, PRUNE, self.generator)

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        self.losses[ids] = losses


class SelectiveBackprop(Rule):
    """Trains part of a batch, chosen by a forward of all of it in training mode, as Composer runs it."""

    def rows(self, network: nn.Module, images: Tensor, labels: Tensor, progress: float, batch: int) -> Tensor | None:
        if not rules.selective_backprop_is_on(progress, batch):
            return None
        with torch.no_grad():
            losses = F.cross_entropy(network(images), labels, reduction="none")
        return rules.selective_backprop_rows(losses, KEEP, self.generator)


class Order(Sampler[int]):
    """Ids in a new random order each epoch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.ids = torch.empty(0, dtype=torch.int64)
        self._generator = generator

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids[torch.randperm(len(self.ids), generator=self._generator)].tolist())


def run_loop(setting: Setting, kind: type[Rule]) -> dict[str, Any]:
    """Trains with a rule; returns the run's figures."""
    pictures = train_pictures(setting)
    work = Work(setting.image_size)
    network = network_of(setting, len(pictures.classes), work)
    optimizer = optimizer_of(setting, network)
    rule = kind(setting, len(pictures))
    order = Order(rule.generator)
    options: dict[str, Any] = {"num_workers": setting.workers, "persistent_workers": setting.workers > 0}
    loader: DataLoader[Any] = DataLoader(Numbered(pictures), setting.batch_size, sampler=order, **options)
    network.train()
    began = time.perf_counter()
    for epoch in range(setting.epochs):
        order.ids, weights = rule.plan(epoch)
        for batch, (images, labels, ids) in enumerate(loader):
            progress = (epoch + batch / len(loader)) / setting.epochs
            set_lr(setting, optimizer, progress)
            rows = rule.rows(network, images, labels, progress, batch)
            if rows is not None:
                images, labels, ids = images[rows], labels[rows], ids[rows]
            losses = F.cross_entropy(network(images), labels, reduction="none")  # [B]
            optimizer.zero_grad()
            (weights[ids] * losses).mean().backward()
            optimizer.step()
            rule.learn(ids, losses.detach())
    seconds = time.perf_counter() - began
    offered = setting.epochs * len(pictures)
    return outcome(setting, work, top1=top1(network, setting, work), seconds=seconds, offered=offered)
