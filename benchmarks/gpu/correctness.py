"""The machine with its doctor, and the tests marked gpu."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import torch

from benchmarks.common import ROOT, provenance
from benchmarks.gpu.items import NotMeasured, Report, Settings
from fastast.commands.doctor_checks import diagnose, exit_code
from fastast.device import open_runtime
from fastast.energy.nvml import open_nvml

_TEST = re.compile(r"^(tests/gpu/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)")


def machine(settings: Settings, report: Report) -> None:
    """Hardware, driver and versions; and the findings of `fastast doctor`."""
    device = open_runtime(settings.device).device
    origin = provenance(device)
    origin["hardware"].update(driver=open_nvml().driver, cores=len(os.sched_getaffinity(0)))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        origin["hardware"].update(
            capability=list(torch.cuda.get_device_capability(device)),
            memory_gb=properties.total_memory / 1e9,
            multiprocessors=properties.multi_processor_count,
        )
        origin["versions"].update(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    report.add(**origin)
    checks = diagnose()
    here = os.getcwd()  # a result names no folder of the machine
    found = [{**asdict(check), "value": str(check.value).replace(here, ".")} for check in checks]
    report.add(can_train=exit_code(checks) == 0, checks=found)


def gpu_tests(settings: Settings, report: Report) -> None:
    """`pytest -m gpu tests/gpu`; outcomes are reported test by test."""
    if settings.device != "cuda":
        raise NotMeasured("needs a GPU")
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasured("pytest is not installed")
    command = [
        sys.executable,
        *["-m", "pytest", "-o", "addopts=", "-m", "gpu", "-v", "--tb=short", "--color=no", "tests/gpu"],
    ]
    outcomes: dict[str, str] = {}
    tail = ["no output"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            tail = [*tail[-60:], line.rstrip()]
            if (match := _TEST.match(line)) is not None:
                outcomes[match[1]] = match[2].lower()
                report.add(outcomes=outcomes, counts=dict(Counter(outcomes.values())))
    if process.returncode:
        report.add(exit_code=process.returncode, tail=tail)
        raise RuntimeError(tail[-1])
