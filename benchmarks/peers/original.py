"""The original Adaptive Sparse Training: the package `adaptive-sparse-training`, driven as it documents itself."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.peers.setting import (
    Setting,
    UnseenBatches,
    Work,
    network_of,
    optimizer_of,
    outcome,
    set_lr,
    train_pictures,
    val_loader,
)
from fastast.errors import InputError

WARMUP_EPOCHS = 1  # with two or more, version 1.0.1 never leaves the warm-up's target of 1


def run_original(setting: Setting) -> dict[str, Any]:
    """Trains with its `AdaptiveSparseTrainer`, nothing in it changed; returns the run's figures.

    Its own defaults hold but for the target, no mixed precision, and our optimizer, whose learning rate follows our
    schedule through a hook of the optimizer.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from adaptive_sparse_training import AdaptiveSparseTrainer, ASTConfig
    except ImportError as error:
        raise InputError(f"{error}; pip install adaptive-sparse-training") from error
    pictures = train_pictures(setting)
    work = Work(setting.image_size)
    network = network_of(setting, len(pictures.classes), work)
    optimizer = optimizer_of(setting, network)
    options: dict[str, Any] = {"num_workers": setting.workers, "persistent_workers": setting.workers > 0}
    loader: DataLoader[Any] = DataLoader(pictures, setting.batch_size, shuffle=True, **options)
    steps, total = iter(range(setting.epochs * len(loader))), setting.epochs * len(loader)
    optimizer.register_step_pre_hook(lambda *_: set_lr(setting, optimizer, next(steps) / total))
    config = ASTConfig(target_activation_rate=setting.target, use_amp=False, device="cpu")
    trainer = AdaptiveSparseTrainer(
        network, loader, UnseenBatches(val_loader(setting), work), config, optimizer=optimizer
    )
    torch.manual_seed(setting.seed)
    began = time.perf_counter()
    results = trainer.train(epochs=setting.epochs, warmup_epochs=WARMUP_EPOCHS)
    seconds = time.perf_counter() - began - work.unseen_s
    rates = results["history"]["activation_rates"][WARMUP_EPOCHS:]
    claim = f"savings {results['energy_savings']:.1f} %"
    if rates:
        claim += f" at {100 * sum(rates) / len(rates):.1f} % active"
    offered, accuracy = setting.epochs * len(pictures), results["final_accuracy"] / 100
    return outcome(setting, work, top1=accuracy, seconds=seconds, offered=offered, claim=claim)
