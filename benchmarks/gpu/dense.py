"""What the device can do, and what dense training makes of it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.loops import MODES, Ours, Pictures, Plain, fed
from benchmarks.gpu.settings import NotMeasured, Report, Settings
from benchmarks.gpu.timing import median_s, race, wait_for
from benchmarks.gpu.traffic import count_work
from fastast.device import choose_precision, open_machine
from fastast.models.build import build_model
from fastast.train.steps import logits_of

NUM_CLASSES = 100
PLAIN, PLAIN_LAST = "plain AMP loop", "plain AMP loop, channels-last"


def ceilings(settings: Settings, report: Report) -> None:
    """Rates of matrix products and copies on random data, and times of the network's forward and backward."""
    machine = open_machine(settings.device)
    device = machine.device
    side, copied = (64, 1 << 16) if settings.tiny else (8192, 1 << 31)
    seconds = settings.block_s / 3
    rates = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if device.type == "cpu" and dtype == torch.float16:
            continue
        factors = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
        product_s = median_s(partial(torch.matmul, *factors), device, seconds)
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / product_s / 1e12
    report.add(
        matmul_tflops=rates,
        matmul_side=side,
        float32_matmul_precision=torch.get_float32_matmul_precision(),  # "high": TF32 where there is
    )
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = median_s(partial(target.copy_, source), device, seconds)
    report.add(copy_gb_per_s=2 * copied / copy_s / 1e9, copied_bytes=copied)
    del source, target, factors
    _network_times(settings, report, device, machine.dtype)


def _network_times(settings: Settings, report: Report, device: torch.device, dtype: torch.dtype) -> None:
    def measure(batch_size: int) -> dict[str, Any]:
        model, _ = build_model(settings.arch, NUM_CLASSES)
        model.to(device)
        images, labels = next(_pictures(settings, device, batch_size))
        with torch.no_grad():
            model.eval()
            forward_s = median_s(lambda: logits_of(model, images, dtype), device, settings.block_s)
        model.train()

        def both() -> None:
            nn.functional.cross_entropy(logits_of(model, images, dtype), labels).backward()
            model.zero_grad()

        train_s = median_s(both, device, settings.block_s)
        return {
            "batch_size": batch_size,
            "eval_forward_ms": 1e3 * forward_s,
            "forward_and_backward_ms": 1e3 * train_s,
            "dtype": str(dtype).removeprefix("torch."),
        }

    report.add(network=largest_fitting(measure, settings.batch_size, device))


def dense(settings: Settings, report: Report, *, precision: str = "auto", times: int = 1) -> None:
    """Training on pictures that lie on the device: our step eager, compiled, as CUDA graphs, and the plain loops.

    Args:
        settings: the suite's orders.
        report: gets the figures.
        precision: "auto" or "fp16".
        times: the batch is so many times as large as usual.
    """
    machine = open_machine(settings.device)
    device = machine.device
    if precision == "fp16" and device.type == "cpu":
        raise NotMeasured("needs a GPU")
    dtype = torch.float16 if precision == "fp16" else machine.dtype
    with torch.device("meta"):
        model, _ = build_model(settings.arch, NUM_CLASSES)
    work = count_work(model, settings.image_size)
    report.add(
        work={
            "forward_gflops": work.forward_flops / 1e9,
            "train_gflops": work.train_flops / 1e9,
            "train_mb": work.train_bytes / 1e6,
        },
        precision=machine.precision_note if precision == "auto" else f"{precision}: to compare",
        rates={},
    )

    def measure(batch_size: int) -> None:
        pictures = _pictures(settings, device, batch_size)
        common: dict[str, Any] = {"num_classes": NUM_CLASSES, "seed": settings.seed}
        sized = {**common, "batch_size": batch_size, "image_size": settings.image_size}
        makers: dict[str, Callable[[], Any]] = {
            PLAIN: lambda: Plain(settings.arch, device, dtype, channels_last=False, **common),
            PLAIN_LAST: lambda: Plain(settings.arch, device, dtype, channels_last=True, **common),
        }
        for name, mode in MODES.items():
            makers[name] = lambda mode=mode: Ours(settings.arch, device, dtype, mode, **sized)  # type: ignore[misc]
        notes: dict[str, str] = {}
        steps: dict[str, Callable[[], int]] = {}
        for name, maker in makers.items():
            reason = _skip(name, device)
            if reason is not None:
                notes[name] = reason
                continue
            began = time.perf_counter()
            try:
                step = fed(maker(), pictures)
                for _ in range(3):  # compiles, records CUDA graphs, replays them
                    step()
                wait_for(device)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # the compiler stack raises its own kinds, none of them a common base
                notes[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                continue
            steps[name] = step
            report.add(start_s={**report.figures.get("start_s", {}), name: time.perf_counter() - began}, notes=notes)
            # One turn each as it comes, so that a cut-off run has figures; then all in turns.
            first = race({name: step}, device, rounds=1, block_s=settings.block_s / 3)
            report.add(rates={**report.figures["rates"], **first}, batch_size=batch_size)
        report.add(notes=notes)
        report.add(rates=race(steps, device, rounds=settings.rounds, block_s=settings.block_s))
        if device.type == "cuda":
            report.add(peak_gb=torch.cuda.max_memory_allocated(device) / 1e9)

    largest_fitting(measure, times * settings.batch_size, device)


# cuDNN's BatchNorm takes fp16 and not bf16, so fp16 may be the faster of the two.
dense_fp16 = partial(dense, precision="fp16")
dense_large = partial(dense, times=2)


def fp16_memory(settings: Settings, report: Report) -> None:
    """Peak memory of eager fp16 steps at batch 128: what a T4 needs."""
    device = open_machine(settings.device).device
    batch_size = settings.batch_size if settings.tiny else 128
    step = Ours(
        settings.arch,
        device,
        torch.float16,
        False,
        batch_size=batch_size,
        image_size=settings.image_size,
        num_classes=1000,
        seed=settings.seed,
    )
    pictures = _pictures(settings, device, batch_size)
    for _ in range(3):
        step(*next(pictures))
    wait_for(device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    reserved = torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None
    report.add(fp16_batch_size=batch_size, fp16_peak_gb=peak, fp16_reserved_gb=reserved)


def precisions(settings: Settings, report: Report) -> None:
    """The memory of fp16, before anything else reserves some; the same steps in every number format, as CUDA graphs."""
    device = open_machine(settings.device).device
    try:
        fp16_memory(settings, report)
    except torch.OutOfMemoryError as error:  # the formats are compared all the same
        report.add(fp16_note=str(error).splitlines()[0])
    _free_memory(device)
    wanted: dict[str, tuple[torch.dtype, bool | str]] = {
        "fp32": (torch.float32, False),
        "bf16": (torch.bfloat16, False),
    }
    wanted["fp16"] = (torch.float16, False)
    if device.type == "cuda":
        auto = choose_precision(device, "auto")[0]
        wanted["fp32, CUDA graphs"] = (torch.float32, "reduce-overhead")
        wanted["auto, CUDA graphs"] = (auto, "reduce-overhead")
    num_steps, classes, batch_size = (4 if settings.tiny else 40), 8, (8 if settings.tiny else 64)
    arch, side = (settings.arch, 32) if settings.tiny else ("resnet18", 64)
    generator = torch.Generator().manual_seed(settings.seed)
    marks = torch.randn(classes, 3, 1, 1, generator=generator)
    batches = []
    for _ in range(num_steps):
        labels = torch.randint(0, classes, (batch_size,), generator=generator)
        images = torch.randn(batch_size, 3, side, side, generator=generator) + marks[labels]
        batches.append((images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device)))
    for name, (dtype, mode) in wanted.items():
        step = Ours(
            arch, device, dtype, mode, batch_size=batch_size, image_size=side, num_classes=classes, seed=settings.seed
        )
        losses = []
        for images, labels in batches:
            before = step.train_step.loss_sum.item(), step.train_step.loss_rows.item()
            step(images, labels)
            rows = step.train_step.loss_rows.item() - before[1]
            if rows:  # none for a step that was not finite
                losses.append((step.train_step.loss_sum.item() - before[0]) / rows)
        counts = step.guard.counts.tolist()
        report.add(
            **{
                name: {
                    "first_loss": losses[0] if losses else None,
                    "last_loss": statistics.fmean(losses[-num_steps // 4 :]) if losses else None,
                    "steps": counts[step.guard.STEPS],
                    "nonfinite": counts[step.guard.NONFINITE],
                    "scaler_skips": counts[step.guard.SCALER_SKIPS],
                }
            }
        )


def largest_fitting(measure: Callable[[int], Any], batch_size: int, device: torch.device) -> Any:
    """Calls `measure` with ever smaller batches until memory suffices."""
    while True:
        try:
            return measure(batch_size)
        except torch.OutOfMemoryError:
            if batch_size < 16:
                raise
        finally:
            _free_memory(device)
        batch_size //= 2


def _free_memory(device: torch.device) -> None:
    """Gives back what nothing refers to any more, also to other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _pictures(settings: Settings, device: torch.device, batch_size: int) -> Pictures:
    return Pictures(
        device,
        batch_size=batch_size,
        image_size=settings.image_size,
        num_classes=NUM_CLASSES,
        seed=settings.seed,
    )


def _skip(name: str, device: torch.device) -> str | None:
    if device.type == "cpu" and MODES.get(name):
        return "needs a GPU"
    return None
