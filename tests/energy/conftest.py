"""The fake NVIDIA driver, built once per session."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.energy.fake_driver import FakeDriver

SOURCE = Path(__file__).with_name("fake_nvml.c")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """The compiled fake driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the fake NVIDIA driver cannot be built")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return FakeDriver(folder)
