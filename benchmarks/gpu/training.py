"""Training steps to compare: the one of fastast without the rest of it, and those that people write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.items import Settings
from fastast.engine.optimizer import GuardedStep, build_optimizer
from fastast.engine.steps import Objective, TrainStep
from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.models.build import build_model

LR, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.01, 0.9, 1e-4, 0.1
MIN_AREA = 0.25  # of a crop, in every loop
NUM_CLASSES = 100
MODES: dict[str, bool | str] = {"eager": False, "compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained: network, device, compute type, and the shape of a batch."""

    arch: str
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    image_size: int
    seed: int
    num_classes: int = NUM_CLASSES

    @classmethod
    def of(cls, settings: Settings, device: torch.device, dtype: torch.dtype, batch_size: int, **changes: Any) -> Task:
        """The suite's usual network and picture size, with changes."""
        usual = {"arch": settings.arch, "image_size": settings.image_size, "seed": settings.seed}
        return cls(device=device, dtype=dtype, batch_size=batch_size, **{**usual, **changes})

    @property
    def image_dtype(self) -> torch.dtype:
        """Of the pictures that the feed delivers."""
        return torch.float16 if self.device.type == "cuda" else torch.float32


def synthetic_batches(task: Task, num_batches: int = 4) -> Batches:
    """Random pictures on the device as the feed delivers them: half, channels-last; several, so that none is cached."""
    generator = torch.Generator(task.device).manual_seed(task.seed)
    shape = (task.batch_size, task.image_size, task.image_size, 3)
    options: dict[str, Any] = {"device": task.device, "generator": generator}
    batches = [
        (
            torch.randn(shape, **options).to(task.image_dtype).permute(0, 3, 1, 2),
            torch.randint(0, task.num_classes, (task.batch_size,), **options),
        )
        for _ in range(num_batches)
    ]
    return itertools.cycle(batches)


class FastastStep:
    """The dense step of `fastast train`: queue, guarded fused optimizer, memory of losses; `compiled` as in `MODES`."""

    def __init__(self, task: Task, compiled: bool | str) -> None:
        torch.manual_seed(task.seed)
        model, _ = build_model(task.arch, task.num_classes)
        model.to(task.device).train()
        optimizer = build_optimizer(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.guard = GuardedStep(model, optimizer, scale_loss=task.dtype == torch.float16, compiled=compiled)
        self.guard.set_lr(LR)
        objective = Objective(model, dtype=task.dtype, label_smoothing=LABEL_SMOOTHING, compiled=compiled)
        self.train_step = TrainStep(objective, self.guard, ScoreMemory(task.batch_size).to(task.device))
        shape = (3, task.image_size, task.image_size)
        self._queue = SampleQueue(task.batch_size, shape, dtype=task.image_dtype, device=task.device)
        self._ids = torch.arange(task.batch_size, device=task.device)
        self._all = torch.ones(task.batch_size, dtype=torch.bool, device=task.device)

    def __call__(self, images: Tensor, labels: Tensor) -> int:
        """One step on a full batch; returns its number of pictures."""
        self._queue.push(images, labels, self._ids, self._all)
        self.train_step(self._queue.pop())
        return len(images)


class PlainStep:
    """The step of PyTorch's examples with mixed precision: autocast, GradScaler in fp16, SGD.

    Channels-last is NVIDIA's advice, which PyTorch's own reference scripts do not follow.
    """

    def __init__(self, task: Task, *, channels_last: bool) -> None:
        torch.manual_seed(task.seed)
        self._task = task
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        model, _ = build_model(task.arch, task.num_classes)
        self._model = model.to(task.device).to(memory_format=self._format).train()
        self._optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self._scaler = torch.amp.GradScaler(task.device.type, enabled=task.dtype == torch.float16)

    def __call__(self, images: Tensor, labels: Tensor) -> int:
        """One step on a batch, after moving it to the device, to float32 and to the memory format."""
        device, dtype = self._task.device, self._task.dtype
        images = images.to(device, torch.float32, non_blocking=True, memory_format=self._format)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(self._model(images), labels, label_smoothing=LABEL_SMOOTHING)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return len(images)


def fed(step: Callable[[Tensor, Tensor], int], batches: Batches) -> Callable[[], int]:
    """A step that takes the next batch itself."""
    return lambda: step(*next(batches))


def nvidia_batches(folder: Path, task: Task, num_threads: int) -> Batches:
    """Endless training batches by the pipeline of NVIDIA's ResNet-50 recipe for DALI and PyTorch.

    Source: NVIDIA/DALI docs/examples/use_cases/pytorch/resnet50/main.py (file reader, fused random crop, triangular
    resize without antialiasing), with our smallest crop. float32, channels-last.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    from fastast.preprocessing import MEAN, STD

    on_gpu = task.device.type == "cuda"
    hints: dict[str, Any] = {"preallocate_width_hint": 5980, "preallocate_height_hint": 6430} if on_gpu else {}

    @pipeline_def
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, pad_last_batch=True, name="reader")
        crop: dict[str, Any] = {"random_aspect_ratio": [3 / 4, 4 / 3], "random_area": [MIN_AREA, 1.0]}
        device, kind = "mixed" if on_gpu else "cpu", types.DALIInterpType.INTERP_TRIANGULAR
        pixels: Any = fn.decoders.image_random_crop(jpegs, device=device, num_attempts=100, **crop, **hints)
        pixels = fn.resize(pixels, size=(task.image_size, task.image_size), interp_type=kind, antialias=False)
        mirror, levels = fn.random.coin_flip(probability=0.5), {"mean": list(MEAN), "std": list(STD)}
        dtype = types.DALIDataType.FLOAT
        pixels = fn.crop_mirror_normalize(pixels, dtype=dtype, output_layout="HWC", mirror=mirror, **levels)
        return pixels, labels.gpu() if on_gpu else labels

    host: dict[str, Any] = {"num_threads": num_threads, "device_id": 0 if on_gpu else None, "seed": task.seed}
    built = pipeline(batch_size=task.batch_size, **host)
    options: dict[str, Any] = {"last_batch_policy": LastBatchPolicy.DROP, "auto_reset": True, "reader_name": "reader"}
    iterator = DALIGenericIterator(built, ["data", "label"], **options)
    while True:
        for (batch,) in iterator:
            yield batch["data"].permute(0, 3, 1, 2), batch["label"].squeeze(-1).long()
