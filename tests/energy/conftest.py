"""The fake NVIDIA driver, built once per session."""

from __future__ import annotations

import shutil

import pytest

from tests.energy.fake_driver import FakeDriver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    """The compiled fake driver."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: the fake NVIDIA driver cannot be built")
    return FakeDriver.build(tmp_path_factory.mktemp("nvml"))
