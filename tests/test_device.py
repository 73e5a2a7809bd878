"""Device, precision, compiler and memory errors; a T4 as far as a CPU can imitate it."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import torch

from fastast import device
from fastast.device import (
    _choose_cpu,
    _choose_cuda,
    choose_compile,
    choose_precision,
    is_out_of_memory,
    limit_torch_threads,
    open_runtime,
)
from fastast.errors import InputError
from tests.conftest import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def t4(monkeypatch):
    """CUDA as torch describes it on a T4, where bf16 is emulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    for name in ("benchmark", "deterministic", "allow_tf32"):  # to be put back
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)


def test_t4_trains_in_fp16_and_says_why(t4, monkeypatch):
    monkeypatch.setattr(device, "choose_compile", lambda device, wanted, dtype: (False, "off"))
    runtime = open_runtime("auto")
    assert (runtime.device, runtime.dtype, runtime.image_dtype) == (CUDA, torch.float16, torch.float16)
    assert runtime.precision_note == "fp16 with loss scaling: capability 7.5 has no bf16"


@pytest.mark.parametrize(
    ("wanted", "capability", "has_bf16", "dtype", "reason"),
    [
        ("auto", (9, 0), True, torch.bfloat16, "in hardware"),
        ("auto", (7, 5), False, torch.float16, "no bf16"),
        ("auto", (6, 0), False, torch.float16, "no bf16"),
        ("bf16", (7, 5), False, torch.bfloat16, "emulates"),
        ("fp32", (9, 0), True, torch.float32, "asked for"),
        ("fp16", (9, 0), True, torch.float16, "asked for"),
    ],
)
def test_precision_on_cuda(wanted, capability, has_bf16, dtype, reason):
    found, why = _choose_cuda(wanted, capability, has_bf16)
    assert found == dtype
    assert reason in why


@pytest.mark.parametrize(
    ("wanted", "flags", "dtype", "reason"),
    [
        ("auto", {"avx2"}, torch.float32, "neither"),
        ("auto", {"avx2", "amx_bf16", "avx512_bf16"}, torch.bfloat16, "amx_bf16"),
        ("auto", {"avx512_bf16"}, torch.bfloat16, "avx512_bf16"),
        ("bf16", {"avx2"}, torch.bfloat16, "emulates"),
        ("fp32", {"amx_bf16"}, torch.float32, "asked for"),
    ],
)
def test_precision_on_cpu(wanted, flags, dtype, reason):
    found, why = _choose_cpu(wanted, flags)
    assert found == dtype
    assert reason in why


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="fp16"):
        choose_precision(torch.device("cpu"), "fp16")


def test_compiler_needs_sm_70_and_a_probe_that_compiles(t4, monkeypatch):
    ran = []
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, dtype: ran.append((device, dtype)))
    monkeypatch.setattr(torch, "compile", lambda probe, fullgraph: lambda x: None)
    assert choose_compile(CUDA, "auto", torch.float16) == (True, "on: the probe compiled on capability 7.5")
    assert ran == [(CUDA, torch.float16)]  # the type that it will have to compile

    def too_old(probe, fullgraph):
        raise RuntimeError("Triton needs 8.0")

    monkeypatch.setattr(torch, "compile", too_old)
    assert choose_compile(CUDA, "auto") == (False, "off: the probe failed to compile (RuntimeError)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 0))
    assert choose_compile(CUDA, "auto") == (False, "off: capability 6.0 is below 7.0, which Triton needs")


def test_compiler_on_a_cpu():
    assert choose_compile(CPU, "auto")[0] is False
    assert "CPU" in choose_compile(CPU, "auto")[1]
    assert choose_compile(CPU, "on")[0] is True
    with pytest.raises(InputError, match=r"^--compile reduce-overhead: .* --compile on.*$"):
        choose_compile(CPU, "reduce-overhead")


def raised_from(cause):
    try:
        raise InputError("--arch x takes no pictures of --image-size 224") from cause
    except InputError as error:
        return error


MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("nvJPEG error (5): NVJPEG_STATUS_ALLOCATOR_FAILURE"),
    RuntimeError("Critical error in pipeline:\nCan't allocate 1048576 bytes on device 0."),
    RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"),
    RuntimeError("CUDA allocation failed"),
    RuntimeError("Failed to allocate 123 bytes"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    raised_from(RuntimeError("CUDA error: out of memory")),
]
OTHER_ERRORS = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    InputError("pictures/out of memory/train: no pictures"),
    OSError(errno.ENOSPC, "No space left on device"),
    raised_from(RuntimeError("Given groups=1, expected input to have 3 channels")),
    None,
]


@pytest.mark.parametrize("error", MEMORY_ERRORS + OTHER_ERRORS)
def test_memory_errors_are_known_by_all_names(error):
    assert is_out_of_memory(error) == (error in MEMORY_ERRORS)


def test_deterministic_kernels_are_asked_for():
    """`--deterministic` set cuDNN's flags only."""
    code = (
        "import os, torch; from fastast.device import use_deterministic_kernels; use_deterministic_kernels();"
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.are_deterministic_algorithms_enabled(),"
        "torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.deterministic)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [":4096:8", "True", "True", "True"]


def test_torch_threads_follow_usable_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("fastast.device.usable_cores", lambda: 1)
        limit_torch_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
