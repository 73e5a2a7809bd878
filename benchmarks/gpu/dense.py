"""The device's ceilings, number formats, and the speed of dense training on synthetic pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.items import NotMeasured, Report, Settings
from benchmarks.gpu.timing import free_memory, largest_fitting, median_s, race, wait_for
from benchmarks.gpu.training import MODES, NUM_CLASSES, FastastStep, PlainStep, Task, fed, synthetic_batches
from fastast.device import choose_precision, open_runtime
from fastast.models.build import build_model

PLAIN, PLAIN_LAST = "plain AMP loop", "plain AMP loop, channels-last"


def count_flops(arch: str, image_size: int) -> float:
    """Floating-point operations of forward and backward for one picture, a multiply-add being two."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(arch, NUM_CLASSES)[0](torch.empty(2, 3, image_size, image_size)).sum().backward()
    return counter.get_total_flops() / 2


def ceilings(settings: Settings, report: Report) -> None:
    """Rates of matrix products and copies on random data."""
    device = open_runtime(settings.device).device
    side, copied = (64, 1 << 16) if settings.tiny else (8192, 1 << 31)
    rates = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if device.type == "cpu" and dtype == torch.float16:
            continue
        factors = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        product_s = median_s(partial(torch.matmul, *factors), device, settings.turn_s / 3)
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / product_s / 1e12
    report.add(
        matmul_tflops=rates,
        matmul_side=side,
        float32_matmul_precision=torch.get_float32_matmul_precision(),  # "high": TF32 where it exists
    )
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = median_s(partial(target.copy_, source), device, settings.turn_s / 3)
    report.add(copy_gb_per_s=2 * copied / copy_s / 1e9, copied_bytes=copied)


def dense(settings: Settings, report: Report, *, precision: str = "auto", times: int = 1) -> None:
    """Training on pictures that are on the device: our step eager, compiled, as CUDA graphs, and the plain loops.

    `precision` is "auto" or "fp16"; the batch is `times` as large as usual.
    """
    runtime = open_runtime(settings.device)
    device = runtime.device
    if precision == "fp16" and device.type == "cpu":
        raise NotMeasured("needs a GPU")
    dtype = torch.float16 if precision == "fp16" else runtime.dtype
    note = runtime.precision_note if precision == "auto" else f"{precision}: to compare"
    report.add(train_gflops=count_flops(settings.arch, settings.image_size) / 1e9, precision=note, rates={})

    def measure(batch_size: int) -> None:
        task = Task.of(settings, device, dtype, batch_size)
        batches = synthetic_batches(task)
        makers: dict[str, Callable[[], Any]] = {
            PLAIN: partial(PlainStep, task, channels_last=False),
            PLAIN_LAST: partial(PlainStep, task, channels_last=True),
            **{name: partial(FastastStep, task, mode) for name, mode in MODES.items()},
        }
        notes: dict[str, str] = {}
        steps: dict[str, Callable[[], int]] = {}
        for name, maker in makers.items():
            if device.type == "cpu" and MODES.get(name):
                notes[name] = "needs a GPU"
                continue
            began = time.perf_counter()
            try:
                step = fed(maker(), batches)
                for _ in range(3):  # compiles, records CUDA graphs, replays them
                    step()
                wait_for(device)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # the compiler stack raises its own kinds, without a common base
                notes[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                continue
            steps[name] = step
            report.add(start_s={**report.figures.get("start_s", {}), name: time.perf_counter() - began})
            # One turn each at once, so that a run that is cut off has figures; then all in turns.
            first = race({name: step}, device, rounds=1, turn_s=settings.turn_s / 3)
            report.add(rates={**report.figures["rates"], **first}, batch_size=batch_size, notes=notes)
        report.add(notes=notes, rates=race(steps, device, rounds=settings.rounds, turn_s=settings.turn_s))
        if device.type == "cuda":
            report.add(peak_gb=torch.cuda.max_memory_allocated(device) / 1e9)

    largest_fitting(measure, times * settings.batch_size, device)


# cuDNN's BatchNorm supports fp16 and not bf16, so fp16 may be the faster of the two.
dense_fp16 = partial(dense, precision="fp16")
dense_large = partial(dense, times=2)


def precisions(settings: Settings, report: Report) -> None:
    """The memory of fp16, while nothing else has reserved any; then the same steps in every number format."""
    device = open_runtime(settings.device).device
    try:
        _fp16_memory(settings, report, device)
    except torch.OutOfMemoryError as error:  # the formats are compared all the same
        report.add(fp16_note=str(error).splitlines()[0])
    free_memory(device)
    wanted: dict[str, tuple[torch.dtype, bool | str]] = {
        "fp32": (torch.float32, False),
        "bf16": (torch.bfloat16, False),
        "fp16": (torch.float16, False),
    }
    if device.type == "cuda":
        wanted["fp32, CUDA graphs"] = (torch.float32, "reduce-overhead")
        wanted["auto, CUDA graphs"] = (choose_precision(device, "auto")[0], "reduce-overhead")
    num_steps, classes, batch_size = (4 if settings.tiny else 40), 8, (8 if settings.tiny else 64)
    arch, side = (settings.arch, 32) if settings.tiny else ("resnet18", 64)
    generator = torch.Generator().manual_seed(settings.seed)
    tints = torch.randn(classes, 3, 1, 1, generator=generator)
    batches = []
    for _ in range(num_steps):
        labels = torch.randint(0, classes, (batch_size,), generator=generator)
        images = torch.randn(batch_size, 3, side, side, generator=generator) + tints[labels]
        batches.append((images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device)))
    formats: dict[str, dict[str, float]] = {}
    for name, (dtype, mode) in wanted.items():
        task = Task.of(settings, device, dtype, batch_size, arch=arch, image_size=side, num_classes=classes)
        step = FastastStep(task, mode)
        sums = []
        for images, labels in batches:
            step(images, labels)
            sums.append((step.train_step.loss_sum.item(), step.train_step.loss_rows.item()))
        late_sum, late_rows = (end - start for start, end in zip(sums[-num_steps // 4 - 1], sums[-1], strict=True))
        counts = step.guard.counts.tolist()
        formats[name] = {
            "first_loss": sums[0][0] / max(1, sums[0][1]),
            "last_loss": late_sum / max(1, late_rows),  # rows of steps that were not finite do not count
            "steps": counts[step.guard.STEPS],
            "nonfinite": counts[step.guard.NONFINITE],
            "scaler_skips": counts[step.guard.SCALER_SKIPS],
        }
        report.add(formats=formats)


def _fp16_memory(settings: Settings, report: Report, device: torch.device) -> None:
    """Peak memory of eager fp16 steps at batch 128: what a T4 needs."""
    batch_size = settings.batch_size if settings.tiny else 128
    task = Task.of(settings, device, torch.float16, batch_size, num_classes=1000)
    step = fed(FastastStep(task, False), synthetic_batches(task))
    for _ in range(3):
        step()
    if device.type == "cuda":
        wait_for(device)
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        report.add(fp16_batch_size=batch_size, fp16_peak_gb=peak / 1e9, fp16_reserved_gb=reserved / 1e9)
