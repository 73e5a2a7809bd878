"""`fastast doctor`: what this machine can do for training, and how to fix the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastast._version import __version__
from fastast.cores import usable_cores
from fastast.energy.nvml import NO_DRIVER, NvmlSystem, open_nvml
from fastast.energy.rapl import Rapl
from fastast.loggers.console import open_console

OK, WARN, MISSING = "ok", "warn", "missing"

# First driver of each CUDA major version; within one, newer minor versions run on older drivers.
# https://docs.nvidia.com/deploy/cuda-compatibility/
FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
INSTALL_CUDA_12 = 'pip install "torch==2.10.*" torchvision nvidia-dali-cuda120'
INSTALL_CUDA_13 = "pip install -U torch torchvision nvidia-dali-cuda130"
# The last torch on PyPI whose default build (CUDA 12.6) carries code for Pascal and Volta.
INSTALL_OLD_GPU = 'pip install "torch==2.7.*" torchvision nvidia-dali-cuda120'
# torch's own index has builds without CUDA's libraries; PyPI has none for Linux.
INSTALL_CPU = (
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu && pip install nvidia-dali-cuda120"
)
GIB = 2**30
MIN_DISK_B = 2 * GIB
MIN_SHARED_B = 1 * GIB


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str  # what was looked at
    status: str  # "ok"; "warn": training runs, but something is slower or unmeasured; "missing": not there
    value: str  # what was found
    remedy: str | None = None  # what to do, or None
    needed: bool = False  # training cannot run while this is missing


def run_doctor(as_json: bool = False) -> int:
    """Prints the report; returns 0 when training can run here, on CPU too, else 1."""
    checks = diagnose()
    if as_json:
        print(json.dumps(report_data(checks), indent=1))
    else:
        print_report(checks, open_console())
    return exit_code(checks)


def diagnose() -> list[Check]:
    """Checks everything that training uses. Takes a few seconds: torch and DALI are imported and tried."""
    nvml = open_nvml()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's long warning about an old driver; ours has the remedy
        system = f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
        checks = [Check("fastast", OK, system), *check_torch()]
        if all(check.status != MISSING for check in checks):
            checks += [*check_gpus(nvml), check_precision(), check_compiler()]
        checks += check_dali()
        if nvml.devices or (nvml.reason == NO_DRIVER and _device() == "cpu"):
            checks.append(Check("install", OK, f"the smallest set that fits: {install_line(nvml)}"))
    return [*checks, *check_energy(nvml), *check_host(len(nvml.devices))]


def exit_code(checks: Iterable[Check]) -> int:
    """1 when something that training needs is missing, else 0."""
    return int(any(check.needed and check.status == MISSING for check in checks))


def report_data(checks: Sequence[Check]) -> dict[str, Any]:
    """The report as plain values (schema 1)."""
    return {"schema": 1, "can_train": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}


def print_report(checks: Sequence[Check], console: Console) -> None:
    """Prints a table of the checks, then the remedies."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    colours = {OK: "green", WARN: "yellow", MISSING: "red"}
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(status, f"[bold]{escape(check.name)}[/]", escape(check.value))
    console.print(table)
    remedies = [check for check in checks if check.remedy is not None]
    if remedies:
        console.print("\n[bold]What to do[/]")
    for check in remedies:
        console.print(escape(f"  {check.name}: {check.remedy}"))
    if exit_code(checks) == 0:
        console.print("\nTraining can run here.\nnext: fastast train, or fastast train --data D")
    else:
        console.print("\nTraining cannot run here yet.\nnext: what is named above, then fastast doctor")


def check_torch() -> list[Check]:
    """torch and torchvision, and whether they fit each other."""
    checks: list[Check] = []
    for name in ("torch", "torchvision"):
        try:
            module = importlib.import_module(name)
            if name == "torchvision":
                importlib.import_module("torchvision.ops")  # fails when built for another torch
        # A broken binary raises nearly anything: ImportError, OSError, RuntimeError, AttributeError.
        except Exception as error:
            remedy = "pip install -U torch torchvision (both at once: their versions go together)"
            return [*checks, Check(name, MISSING, _error_line(error), remedy, needed=True)]
        checks.append(Check(name, OK, module.__version__))
    return checks


def check_gpus(nvml: NvmlSystem) -> list[Check]:
    """The GPUs, and whether this torch can use them with this driver."""
    import torch

    usable = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if usable else []
    return gpu_findings(nvml, torch.version.cuda, usable, names, torch.cuda.get_arch_list())


def gpu_findings(
    nvml: NvmlSystem, torch_cuda: str | None, usable: bool, names: Sequence[str], arches: Sequence[str]
) -> list[Check]:
    """Findings from what NVML and torch report of the GPUs.

    Args:
        nvml: from NVML.
        torch_cuda: CUDA version that torch was built for, such as "12.8"; None for a build without CUDA.
        usable: torch can use a GPU.
        names: the GPUs that torch sees.
        arches: architectures that torch has code for, such as "sm_90".
    """
    if not nvml.devices and usable:
        remedy = "for joules: in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return [Check("GPU", WARN, f"{', '.join(names)}; NVML: {nvml.reason}", remedy)]
    if not nvml.devices:
        status = OK if nvml.reason == NO_DRIVER else WARN
        return [Check("GPU", status, f"none that can be used, training runs on CPU ({nvml.reason})")]
    found = ", ".join(device.name for device in nvml.devices)
    driver = f"{nvml.driver}, serves CUDA {nvml.cuda[0]}.{nvml.cuda[1]}" if nvml.cuda else "unknown"
    checks = []
    if torch_cuda is None:
        line = install_line(nvml)
        checks.append(Check("driver", WARN, f"{driver}; this torch is built without CUDA", line))
    elif nvml.cuda is not None and int(torch_cuda.split(".")[0]) > nvml.cuda[0]:
        value = f"{driver}; this torch is newer than the driver: built for CUDA {torch_cuda}"
        checks.append(Check("driver", WARN, value, install_line(nvml)))
    else:
        checks.append(Check("driver", OK, f"{driver}; torch is built for CUDA {torch_cuda}"))
    if not usable:
        line = "see CUDA_VISIBLE_DEVICES and /dev/nvidia*; in a container pass the GPU (--gpus all)"
        value = f"{found}, but torch cannot use it: training runs on CPU"
        checks.insert(0, Check("GPU", WARN, value, None if checks[0].remedy else line))
        return checks
    checks.insert(0, Check("GPU", OK, ", ".join(names)))
    for device in nvml.devices:
        if device.capability != (0, 0) and not _has_code_for(device.capability, arches):
            capability = f"{device.capability[0]}.{device.capability[1]}"
            value = f"{device.name}: this torch has no code for capability {capability}"
            line = INSTALL_OLD_GPU if device.capability < (7, 5) else install_line(nvml)
            checks.append(Check("GPU code", WARN, value, line))
    return checks


def install_line(nvml: NvmlSystem) -> str:
    """The one pip line that fits the driver and the GPUs found; without a driver the one for the CPU."""
    if nvml.reason == NO_DRIVER:
        return INSTALL_CPU
    if nvml.cuda is None or nvml.cuda[0] < 12:
        return f"update the NVIDIA driver to {FIRST_DRIVER[12]} or newer, then: {INSTALL_CUDA_12}"
    if any((0, 0) < device.capability < (7, 5) for device in nvml.devices):
        return INSTALL_OLD_GPU
    return INSTALL_CUDA_13 if nvml.cuda[0] >= 13 else INSTALL_CUDA_12


def _has_code_for(capability: tuple[int, int], arches: Sequence[str]) -> bool:
    """Machine code runs on its major version from its minor version on; PTX runs on everything newer."""
    for match in filter(None, (re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]*", arch) for arch in arches)):
        major, minor = int(match[2]), int(match[3])
        if match[1] == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if match[1] == "compute" and (major, minor) <= capability:
            return True
    return False


def check_precision() -> Check:
    """What `--precision auto` chooses."""
    import torch

    from fastast.device import choose_precision

    return Check("precision", OK, choose_precision(torch.device(_device()), "auto")[1])


def check_compiler() -> Check:
    """Whether `torch.compile` has what it needs: Triton on CUDA, and a C compiler on both."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    lacking = [] if compiler else ["a C compiler"]
    if _device() == "cuda" and importlib.util.find_spec("triton") is None:
        lacking.append("Triton")
    if lacking:
        remedy = "apt-get install gcc (and pip install triton on CUDA), or train with --compile off"
        return Check("torch.compile", WARN, f"lacks {' and '.join(lacking)}", remedy)
    return Check("torch.compile", OK, f"{compiler}" + (", Triton" if _device() == "cuda" else "; auto: off on CPU"))


def check_dali() -> list[Check]:
    """DALI, tried on one picture on the CPU and, with a GPU, on the `mixed` backend."""
    torch = sys.modules.get("torch")
    cuda = (torch and torch.version.cuda) or "12"
    cuda_major = 13 if int(cuda.split(".")[0]) >= 13 and _device() == "cuda" else 12
    remedy = f"pip install nvidia-dali-cuda{cuda_major}0"
    try:
        dali = importlib.import_module("nvidia.dali")
        _decode(dali, "cpu")
    except Exception as error:
        return [Check("DALI", MISSING, _error_line(error), remedy, needed=True)]
    checks = [Check("DALI", OK, f"{dali.__version__}, decodes on CPU")]
    if _device() == "cuda":
        try:
            _decode(dali, "mixed")
        except Exception as error:
            return [*checks, Check("DALI mixed", WARN, f"{_error_line(error)}; pictures are decoded on CPU", remedy)]
        checks.append(Check("DALI mixed", OK, f"decodes on GPU, {_jpeg_engine()}"))
    return checks


def _decode(dali: Any, backend: str) -> None:
    import numpy as np
    from PIL import Image

    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(jpeg, "JPEG")
    picture = np.frombuffer(jpeg.getvalue(), np.uint8)
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None if backend == "cpu" else 0)
    with pipeline:
        source = dali.fn.external_source(lambda: [picture], dtype=dali.types.UINT8)
        pipeline.set_outputs(dali.fn.decoders.image(source, device=backend))
    pipeline.build()
    (pictures,) = pipeline.run()
    if tuple(pictures.as_cpu().at(0).shape) != (16, 16, 3):
        raise RuntimeError("decoded to a wrong shape")


def _jpeg_engine() -> str:
    """https://docs.nvidia.com/cuda/nvjpeg/: the data-centre GPUs from A100 on have one."""
    import torch

    known = {(7, 5): "no JPEG engine", (8, 0): "JPEG engine", (9, 0): "JPEG engine", (10, 0): "JPEG engine"}
    return known.get(torch.cuda.get_device_capability(), "JPEG engine unknown")


def check_energy(nvml: NvmlSystem) -> list[Check]:
    """What NVML can measure of each GPU's energy, and RAPL of the CPU's."""
    rapl = Rapl()
    cpu = Check("CPU energy", MISSING, rapl.reason) if rapl.reason else Check("CPU energy", OK, ", ".join(rapl.names))
    if not nvml.devices:
        return [Check("GPU energy", MISSING, f"{nvml.reason}"), cpu]
    checks = []
    for device in nvml.devices:
        if device.refusal is not None:
            checks.append(Check("GPU energy", MISSING, f"{device.name}: {device.refusal}"))
            continue
        counter = "energy counter" if device.has_counter else "no energy counter"
        power = f"power ({device.power_kind})" if device.power_kind else "no power readings"
        checks.append(Check("GPU energy", OK if device.has_counter else WARN, f"{device.name}: {counter}, {power}"))
    return [*checks, cpu]


def check_host(num_gpus: int) -> list[Check]:
    """Cores, shared memory, disk."""
    cores, allowed = usable_cores(), len(os.sched_getaffinity(0))
    value = f"{cores} usable of {os.cpu_count()}" + (", by affinity" if allowed < (os.cpu_count() or 0) else "")
    value += f"; the CPU quota of the control group leaves {cores} of {allowed}" if cores < allowed else ""
    checks = [Check("cores", OK if cores >= 2 else WARN, value)]
    if os.path.isdir("/dev/shm"):
        free_b = shutil.disk_usage("/dev/shm").free
        # Ranks on one machine exchange gradients through it; a container's default is 64 MB.
        short = num_gpus > 1 and free_b < MIN_SHARED_B
        remedy = "start the container with --shm-size=1g or --ipc=host" if short else None
        checks.append(Check("shared memory", WARN if short else OK, f"{free_b / GIB:.1f} GiB free", remedy))
    free_b = shutil.disk_usage(os.getcwd()).free
    short = free_b < MIN_DISK_B
    remedy = "a run folder can need 1 GiB: free some, or name another disk with --out" if short else None
    checks.append(Check("disk", WARN if short else OK, f"{free_b / GIB:.1f} GiB free in {os.getcwd()}", remedy))
    return checks


def _device() -> str:
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _error_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"
