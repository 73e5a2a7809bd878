"""The number format that a device trains in."""

from __future__ import annotations

from pathlib import Path

import torch

from fastast.errors import InputError

_WANTED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")


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
