"""Where and how a network runs: device, number format, compiler."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastast.cores import usable_cores
from fastast.errors import InputError

_WANTED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True, slots=True)
class Runtime:
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
        """Type of the pictures in loaders and queue: float16, except on a CPU without bf16."""
        return torch.float16 if self.device.type == "cuda" or self.dtype != torch.float32 else torch.float32


def open_runtime(
    device: str = "auto", precision: str = "auto", compile: str = "off", *, deterministic: bool = False
) -> Runtime:
    """Chooses device, number format and compiler.

    Args:
        device: "auto", "cuda" or "cpu".
        precision: "auto", "fp32", "fp16" or "bf16".
        compile: "auto", "on", "off" or "reduce-overhead".
        deterministic: keep to CUDA kernels that give the same bits every time.

    Raises:
        InputError: CUDA was asked for and torch finds no usable GPU, or it does not have the format or CUDA graphs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch finds no usable GPU; `fastast doctor` says why, --device cpu trains here"
        )
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    place = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            use_deterministic_kernels()
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    dtype, precision_note = choose_precision(place, precision)
    compiled, compile_note = choose_compile(place, compile, dtype)
    mode = compile if compile == "reduce-overhead" else "default"
    return Runtime(place, dtype, precision_note, compiled, compile_note, mode)


def limit_torch_threads(num_processes: int) -> None:
    """Gives torch no more threads than cores that this process may use; OMP_NUM_THREADS, where it is set, decides.

    Args:
        num_processes: processes of the run on this machine, which share its cores.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores() // num_processes)))


def use_deterministic_kernels() -> None:
    """Makes torch choose kernels that give the same bits every time; call it before the first use of CUDA.

    An operation that has no such kernel runs all the same, with a warning of torch that names it. Other versions of
    torch, CUDA or the driver, another model of GPU, or another number of GPUs may still give other bits.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def choose_precision(device: torch.device, wanted: str) -> tuple[torch.dtype, str]:
    """The number format to train in, and why.

    `auto`: bf16 where the hardware has it (CUDA from capability 8.0 on; a CPU with AMX or AVX512 bf16), else fp16 on
    CUDA, else fp32.

    Args:
        device: where the network runs.
        wanted: "auto", "fp32", "fp16" or "bf16".

    Raises:
        InputError: fp16 on a CPU.
    """
    if device.type != "cuda":
        return _choose_cpu(wanted, _cpu_flags())
    capability = torch.cuda.get_device_capability(device)
    # By default bf16 counts as supported where it is emulated, such as on a T4.
    has_bf16 = capability >= (8, 0) and torch.cuda.is_bf16_supported(including_emulation=False)
    return _choose_cuda(wanted, capability, has_bf16)


def _choose_cuda(wanted: str, capability: tuple[int, int], has_bf16: bool) -> tuple[torch.dtype, str]:
    where = f"capability {capability[0]}.{capability[1]}"
    if wanted == "bf16" and not has_bf16:
        return torch.bfloat16, f"bf16: asked for; {where} only emulates it"
    if wanted != "auto":
        return _WANTED[wanted], f"{wanted}: asked for"
    if has_bf16:
        return torch.bfloat16, f"bf16: {where} has it in hardware"
    return torch.float16, f"fp16 with loss scaling: {where} has no bf16"


def _choose_cpu(wanted: str, flags: set[str]) -> tuple[torch.dtype, str]:
    if wanted == "fp16":
        raise InputError("--precision fp16: no CPU trains in it; use --precision auto, fp32 or bf16")
    native = [flag for flag in _CPU_FLAGS if flag in flags]
    if wanted == "bf16" and not native:
        return torch.bfloat16, "bf16: asked for; this CPU only emulates it"
    if wanted != "auto":
        return _WANTED[wanted], f"{wanted}: asked for"
    if native:
        return torch.bfloat16, f"bf16: the CPU has {native[0]}"
    return torch.float32, "fp32: the CPU has neither AMX nor AVX512 bf16"


def _cpu_flags(path: str = "/proc/cpuinfo") -> set[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def choose_compile(device: torch.device, wanted: str, dtype: torch.dtype = torch.float32) -> tuple[bool, str]:
    """Whether to use `torch.compile`, and the reason for `model.compile_note`.

    `auto` is off on CPU, where compiling a ResNet-18 costs more than a short run gains, and on CUDA needs
    capability 7.0 and a probe that compiles and runs.

    Args:
        device: where the steps run.
        wanted: "auto", "on", "off" or "reduce-overhead".
        dtype: compute type of the network, which the probe takes: Triton knows fewer types than torch on older GPUs.

    Raises:
        InputError: "reduce-overhead" on a CPU.
    """
    if wanted == "off":
        return False, "off: asked for"
    if wanted == "on":
        return True, "on: asked for"
    if wanted == "reduce-overhead":
        if device.type != "cuda":
            raise InputError("--compile reduce-overhead: CUDA graphs need a GPU; use --compile on, or off")
        return True, "on: asked for, with CUDA graphs"
    if device.type != "cuda":
        return False, "off: auto leaves it off on CPU, where compiling takes longer than it saves"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0):
        return False, f"off: capability {capability[0]}.{capability[1]} is below 7.0, which Triton needs"
    try:
        probe = torch.compile(lambda x: torch.relu(x) + 1, fullgraph=True)
        probe(torch.zeros(32, device=device, dtype=dtype))
    except Exception as error:  # the compiler stack raises its own kinds, none of them a common base
        return False, f"off: the probe failed to compile ({type(error).__name__})"
    return True, f"on: the probe compiled on capability {capability[0]}.{capability[1]}"


def compile_step(step: Callable[..., Any], compiled: bool | str) -> Callable[..., Any]:
    """The step as one compiled graph of fixed shapes, or as it is.

    Args:
        step: a function or module. What it changes must be buffers of modules, or tensors marked with
            `torch._dynamo.mark_static_address`: a graph that changes any other input is never recorded.
        compiled: False, True, or a mode of `torch.compile`. With "reduce-overhead" the tensors that the step returns
            are overwritten by the next call of any compiled step: clone what must outlive it.
    """
    if not compiled:
        return step
    mode = compiled if isinstance(compiled, str) else "default"
    return torch.compile(step, fullgraph=True, dynamic=False, mode=mode)


# As torch's allocators, CUDA, cuDNN, cuBLAS, nvJPEG, DALI and libstdc++ put it.
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to|unable to) allocate|allocation failed|bad_alloc"
    r"|ALLOC_FAILED|ALLOCATOR_FAILURE|MemoryAllocation",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, means that host or device memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def device_name(device: torch.device) -> str:
    """The model name of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"
