"""Engines and batches small enough for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.device import Runtime
from fastast.engine.engine import Engine
from fastast.feed import Batch

B, SIDE, CLASSES = 8, 16, 3
COUNTS = np.array([16, 32, 16])  # of the classes in the 8 batches


def engine(dtype: torch.dtype = torch.float32, *, compiled: bool = False, **changes: Any) -> Engine:
    """An engine of `tests.nets:tiny` on the CPU for 8 batches; `changes` are options."""
    chosen = {"image_size": SIDE, "batch_size": B, "lr": 0.1, "gate": "forward", "target": 0.5, "epochs": 4}
    chosen |= {"device": "cpu", **changes}
    config = TrainConfig(arch="tests.nets:tiny", **chosen)
    runtime = Runtime(torch.device("cpu"), dtype, "", compiled, "")
    return Engine(config, runtime, weights="none", num_classes=CLASSES, num_train=8 * B, class_counts=COUNTS)


def batch(seed: int, num_valid: int = B, dtype: torch.dtype = torch.float32, side: int = SIDE) -> Batch:
    """Pictures of random classes, each as bright as its label, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (B,), generator=generator)
    images = torch.randn(B, 3, side, side, generator=generator) + labels[:, None, None, None]
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, torch.arange(B) + seed % 8 * B, torch.arange(B) < num_valid, num_valid)
