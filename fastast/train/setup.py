"""What a run needs to know of its machine, and the options that follow from machine and data."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from fastast.config import TrainConfig
from fastast.errors import InputError
from fastast.precision import choose_precision
from fastast.train.compiler import choose_compile


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how a network runs.

    Attributes:
        device: the torch device.
        dtype: compute type of the network; below float32 it runs under autocast with float32 weights.
        precision_note: why `dtype` was chosen.
        compiled: whether steps go through `torch.compile`.
        compile_note: why, or why not.
        compile_mode: the mode of `torch.compile`; "reduce-overhead" records CUDA graphs.
    """

    device: torch.device
    dtype: torch.dtype
    precision_note: str
    compiled: bool
    compile_note: str
    compile_mode: str = "default"

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of the pictures that the feed delivers and the queue holds: half, but on a CPU without bf16."""
        return torch.float16 if self.device.type == "cuda" or self.dtype != torch.float32 else torch.float32


def open_machine(
    device: str = "auto", precision: str = "auto", compile: str = "off", *, deterministic: bool = False
) -> Machine:
    """Chooses device, number format and compiler.

    Args:
        device: "auto", "cuda" or "cpu".
        precision: "auto", "fp32", "fp16" or "bf16".
        compile: "auto", "on", "off" or "reduce-overhead".
        deterministic: keep to CUDA kernels that give the same bits every time.

    Raises:
        InputError: CUDA was asked for and torch finds no usable GPU, or the format or CUDA graphs are not to be had
            there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch finds no usable GPU; `fastast doctor` says why, --device cpu trains here"
        )
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    place = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    dtype, precision_note = choose_precision(place, precision)
    compiled, compile_note = choose_compile(place, compile, dtype)
    mode = compile if compile == "reduce-overhead" else "default"
    return Machine(place, dtype, precision_note, compiled, compile_note, mode)


def complete_config(
    config: TrainConfig, machine: Machine, num_train: int, *, num_ranks: int = 1, num_local: int = 1
) -> None:
    """Fills in the options that were left to the machine.

    Args:
        config: to be completed.
        machine: the device.
        num_train: size of the training set.
        num_ranks: processes that train together; the default learning rate goes with the batch of all of them.
        num_local: those of them on this machine, which share its cores.

    Raises:
        InputError: a batch of all processes is larger than the training set.
    """
    if config.batch_size is None:
        config.batch_size = 256 if machine.device.type == "cuda" else 64
    if config.lr is None:
        config.lr = 0.1 * config.batch_size * num_ranks / 256 * (1.0 if config.weights == "none" else 0.01)
    if config.threads is None:
        config.threads = max(1, min(8, len(os.sched_getaffinity(0)) // num_local))
    if config.batch_size * num_ranks > num_train:
        fitting = 2 ** int(math.log2(num_train / num_ranks)) if num_train >= 2 * num_ranks else 2
        times = f" x {num_ranks} processes" if num_ranks > 1 else ""
        raise InputError(
            f"--batch-size {config.batch_size}{times}: larger than the training set of {num_train:,} pictures; "
            f"use --batch-size {fitting}"
        )


def device_name(device: torch.device) -> str:
    """The model name of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"
