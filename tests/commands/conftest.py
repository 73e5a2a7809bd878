"""A trained network, and the fake NVIDIA driver for `fastast meter`."""

from pathlib import Path

import pytest

from fastast.cli import main
from tests.energy.conftest import driver as driver


@pytest.fixture(scope="package")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the smallest network, trained for two epochs on `pictures` at 32 px."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    words = ["--arch", "tests.nets:tiny", "--image-size", 32, "--batch-size", 16, "--epochs", 2, "--lr", 0.05]
    assert main(["train", "--data", str(pictures), "--out", str(out), "--gate", "dense", *map(str, words)]) == 0
    return out
