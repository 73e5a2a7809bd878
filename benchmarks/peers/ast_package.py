"""The original Adaptive Sparse Training: the package `adaptive-sparse-training`, nothing in it changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.training import Training, require_package


class Passes:
    """A loader that sets the learning rate of every step, and each pass over which ends when the budget is spent."""

    def __init__(self, training: Training, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
        self.training, self.loader, self.optimizer = training, loader, optimizer

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.training.batches(self.loader):
            self.training.set_lr(self.optimizer)
            yield batch


def run_ast(training: Training) -> None:
    """Trains until the budget is spent by `AdaptiveSparseTrainer.train_epoch`, as its `train` does with its defaults.

    Its defaults hold, no warm-up and a target of 40 % among them, but not its Adam with a constant learning rate: it
    gets the optimizer and the schedule of the others. The trainer's evaluation after every epoch is left out.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from adaptive_sparse_training import AdaptiveSparseTrainer, ASTConfig
    except ImportError as error:
        raise require_package("adaptive-sparse-training", error) from error
    task = training.task
    optimizer = training.sgd()
    loader: DataLoader[Any] = DataLoader(training.pictures, task.batch_size, shuffle=True, **training.loader_options)
    criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=task.label_smoothing)
    on_gpu = training.device.type == "cuda"
    config = ASTConfig(use_amp=on_gpu and training.runtime.dtype != torch.float32, device=training.device.type)
    trainer = AdaptiveSparseTrainer(
        training.network, Passes(training, loader, optimizer), None, config, optimizer=optimizer, criterion=criterion
    )
    torch.manual_seed(task.seed)
    for epoch in count(1):
        trainer.train_epoch(epoch)
        if training.spending.is_over:
            return
