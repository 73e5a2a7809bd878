"""timm's `train.py`: its data set, loader, loss, optimizer, schedule and loop, by the package's public functions."""

from __future__ import annotations

from benchmarks.peers.training import CHANNEL_MEAN, CHANNEL_STD, Training, require_package

STEPS = 100_000  # of timm's schedule, which counts in whole ones: the budget


def run_timm(training: Training) -> None:
    """Trains until the budget is spent as the script does with SGD and a cosine.

    Crops, flips, label smoothing and weight decay are the bench's; the script's own colour jitter is off, as nobody
    else has it. The schedule follows the budget.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from timm.data import create_dataset, create_loader
        from timm.loss import LabelSmoothingCrossEntropy
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import random_seed
    except ImportError as error:
        raise require_package("timm", error) from error
    task, network, scaler = training.task, training.network, training.scaler
    random_seed(task.seed)
    loader = create_loader(
        create_dataset("", root=task.data, split="train", is_training=True, batch_size=task.batch_size),
        input_size=(3, task.image_size, task.image_size),
        batch_size=task.batch_size,
        is_training=True,
        scale=(task.min_crop, 1.0),
        hflip=0.0 if task.no_flip else 0.5,
        color_jitter=0.0,
        mean=CHANNEL_MEAN,
        std=CHANNEL_STD,
        num_workers=task.workers,
        pin_memory=training.device.type == "cuda",
        device=training.device,
    )
    optimizer = create_optimizer_v2(
        network, opt="sgd", lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=STEPS,
        warmup_epochs=round(task.lr_warmup * STEPS),
    )
    loss_fn = LabelSmoothingCrossEntropy(smoothing=task.label_smoothing)
    while not training.spending.is_over:
        for images, labels in training.batches(loader):
            scheduler.step(round(training.spending.progress * STEPS))
            with training.autocast():
                loss = loss_fn(network(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
