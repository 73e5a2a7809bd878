"""Training loops to compare: ours without the rest of fastast, and those that people write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.models.build import build_model
from fastast.train.optimizer import GuardedStep, build_optimizer
from fastast.train.steps import Objective, TrainStep

LR, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.01, 0.9, 1e-4, 0.1
MIN_AREA = 0.25  # of a crop, in every loop
MODES: dict[str, bool | str] = {"eager": False, "compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}


class Pictures:
    """Random pictures that lie on the device, as fastast's feed delivers them: half, channels-last.

    Args:
        num_batches: batches to go round, so that no cache holds the next one.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        batch_size: int,
        image_size: int,
        num_classes: int,
        seed: int,
        num_batches: int = 4,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        shape = (batch_size, image_size, image_size, 3)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._batches = [
            (
                torch.randn(shape, device=device, generator=generator).to(dtype).permute(0, 3, 1, 2),
                torch.randint(0, num_classes, (batch_size,), device=device, generator=generator),
            )
            for _ in range(num_batches)
        ]
        self._turn = itertools.cycle(self._batches)

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self._turn)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self


class Ours:
    """The dense step of `fastast train`: the queue, the guarded fused optimizer, the memory of losses.

    Args:
        arch, num_classes: as `build_model` takes them.
        compiled: as `compile_step` takes it.
        dtype: compute type.
    """

    def __init__(
        self,
        arch: str,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool | str,
        *,
        batch_size: int,
        image_size: int,
        num_classes: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.model, _ = build_model(arch, num_classes)
        self.model.to(device).train()
        optimizer = build_optimizer(self.model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.guard = GuardedStep(self.model, optimizer, scale_loss=dtype == torch.float16, compiled=compiled)
        self.guard.set_lr(LR)
        objective = Objective(self.model, dtype=dtype, label_smoothing=LABEL_SMOOTHING, compiled=compiled)
        self.train_step = TrainStep(objective, self.guard, ScoreMemory(batch_size).to(device))
        image_dtype = torch.float16 if device.type == "cuda" else torch.float32
        shape = (3, image_size, image_size)
        self._queue = SampleQueue(batch_size, shape, dtype=image_dtype, device=device)
        self._ids = torch.arange(batch_size, device=device)
        self._all = torch.ones(batch_size, dtype=torch.bool, device=device)

    def __call__(self, images: Tensor, labels: Tensor) -> int:
        """One step on a full batch."""
        self._queue.push(images, labels, self._ids, self._all)
        self.train_step(self._queue.pop())
        return len(images)


class Plain:
    """The loop of PyTorch's examples with automatic mixed precision: autocast, GradScaler in fp16, SGD as it comes.

    Args:
        channels_last: NVIDIA's advice, which PyTorch's own reference scripts leave out.
    """

    def __init__(
        self,
        arch: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        channels_last: bool,
        num_classes: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        model, _ = build_model(arch, num_classes)
        self.model = model.to(device).to(memory_format=self._format).train()
        self._optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self._device, self._dtype = device, dtype

    def __call__(self, images: Tensor, labels: Tensor) -> int:
        """One step on a batch, which is brought to the device and into float32 and the format."""
        images = images.to(self._device, torch.float32, non_blocking=True, memory_format=self._format)
        labels = labels.to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=LABEL_SMOOTHING)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return len(images)


def fed(step: Callable[[Tensor, Tensor], int], batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], int]:
    """A step that takes its batch itself."""
    return lambda: step(*next(batches))


def nvidia_batches(
    folder: Path, device: torch.device, *, batch_size: int, image_size: int, num_threads: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training batches by the pipeline of NVIDIA's ResNet-50 recipe for DALI and PyTorch.

    Source: NVIDIA/DALI docs/examples/use_cases/pytorch/resnet50/main.py (file reader, fused random crop, triangular
    resize without antialiasing), with our smallest crop. float32, channels-last.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = device.type == "cuda"

    @pipeline_def
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, pad_last_batch=True, name="reader")
        hints: dict[str, Any] = {"preallocate_width_hint": 5980, "preallocate_height_hint": 6430} if on_gpu else {}
        pixels: Any = fn.decoders.image_random_crop(
            jpegs,
            device="mixed" if on_gpu else "cpu",
            random_aspect_ratio=[3 / 4, 4 / 3],
            random_area=[MIN_AREA, 1.0],
            num_attempts=100,
            **hints,
        )
        pixels = fn.resize(
            pixels,
            resize_x=image_size,
            resize_y=image_size,
            interp_type=types.DALIInterpType.INTERP_TRIANGULAR,
            antialias=False,
        )
        pixels = fn.crop_mirror_normalize(
            pixels,
            dtype=types.DALIDataType.FLOAT,
            output_layout="HWC",
            mirror=fn.random.coin_flip(probability=0.5),
            mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
            std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
        )
        return pixels, labels.gpu() if on_gpu else labels

    iterator = DALIGenericIterator(
        pipeline(batch_size=batch_size, num_threads=num_threads, device_id=0 if on_gpu else None, seed=seed),
        ["data", "label"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )
    while True:
        for (batch,) in iterator:
            yield batch["data"].permute(0, 3, 1, 2), batch["label"].squeeze(-1).long()
