"""Children that see a fake NVIDIA driver: compiled C behind the real pynvml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What sets the models apart; T4 and V100-like GPUs count energy, Pascal does not.
MODELS = {
    "t4": "name=Tesla T4,cc=75,counter=1,usage=instant",
    "p100": "name=Tesla P100,cc=60,counter=0,usage=instant",
    "a100": "name=A100,cc=80,counter=1,usage=instant",
    "h200": "name=H200,cc=90,counter=1,instant=1,usage=average,step=0.1",
    "h200-old-driver": "name=H200,cc=90,counter=1,usage=average",
    "l4-no-counter": "name=L4,cc=89,counter=0,usage=average",
    "counter-only": "name=Odd,cc=90,counter=1,usage=none",
    "stuck": "name=A100,cc=80,counter=1,stuck=1,usage=instant",
    "mig": "name=A100,cc=80,counter=1,usage=instant,mig=1",
    "vgpu": "name=GRID T4,cc=75,counter=0,usage=none,vgpu=1",
    "blind": "name=Tesla M4,cc=52,counter=0,usage=none",
    "lost": "name=Tesla T4,cc=75,counter=1,usage=instant,lost=2.0",
    "flaky": "name=Tesla T4,cc=75,counter=1,usage=instant,flaky=7",
}


class FakeDriver:
    """Starts Python children that see fake GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def build(cls, folder: Path) -> FakeDriver:
        """Compiles the fake library into a folder.

        Raises:
            FileNotFoundError: there is no C compiler.
        """
        library, source = folder / "libnvidia-ml.so.1", Path(__file__).with_name("fake_nvml.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-lm"], check=True)
        return cls(folder)

    def environment(self, *models: str, curve: str = "0:100", init: int | None = None, **extra: str) -> dict[str, str]:
        """Environment of a child with one GPU per model; second 0 of the curve is now."""
        devices = [
            f"{MODELS[model]},uuid=GPU-{index:08d}-aaaa-bbbb-cccc-0123456789ab,curve={curve}"
            for index, model in enumerate(models)
        ]
        environ = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
        environ |= {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": ";".join(devices)}
        environ["FAKE_NVML_T0"] = f"{time.monotonic():.6f}"
        if init is not None:
            environ["FAKE_NVML_INIT"] = str(init)
        return environ | extra

    def start(self, script: str, environ: dict[str, str], *arguments: str) -> Callable[[], Any]:
        """Starts a script; the returned function waits and gives the JSON that it printed last."""
        child = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def finish() -> Any:
            out, err = child.communicate(timeout=240)
            assert child.returncode == 0, err
            return json.loads(out.splitlines()[-1])

        return finish
