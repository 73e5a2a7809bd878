"""Small real pictures, and the command line as a function and as a process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported: two threads on a core that another test uses are far slower than one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, runs would rightly ignore it
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell sets it for `pytest &`
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_pictures(root: Path, *, num_classes: int, per_class: int, seed: int, side: int = 40) -> None:
    """Class folders of JPEG pictures told apart by their tint and the direction of a brightness ramp, under noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-40, 40, side)[:, None, None]  # from top to bottom, so that a flip does not change the class
    for label in range(num_classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        tint = np.eye(3)[label // 2 % 3] * 25
        for i in range(per_class):
            noise = rng.normal(0, 80, (side, side, 3))
            pixels = 128 + ramp * (1 - label % 2 * 2) * rng.uniform(0.3, 1.3) + tint + noise
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)


def damaged_png() -> bytes:
    """A picture whose header passes the scan and whose pixels do not decode."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    whole = bytearray(buffer.getvalue())
    whole[100:1000] = bytes(900)
    return bytes(whole)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (4 classes x 60) and val/ (4 x 15)."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "train", num_classes=4, per_class=60, seed=0)
    write_pictures(root / "val", num_classes=4, per_class=15, seed=1)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run_fastast(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "fastast", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        **options,  # type: ignore[call-overload]
    )
