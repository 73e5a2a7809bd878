"""Whether and how the steps go through `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastast.errors import InputError


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
