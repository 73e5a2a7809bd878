"""A full disk is one clear line, and what was saved before stays whole."""

import json
import os
import subprocess

import pytest
import torch

from fastast.cli import main
from tests.train.test_run import options


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.system
def test_a_full_disk_ends_the_run_with_one_line_and_leaves_the_last_checkpoint_whole(pictures, small_disk, capsys):
    out = small_disk / "run"
    assert main(["train", *options(pictures, out, epochs=1)]) == 0
    checkpoint = (out / "checkpoints" / "last.pt").read_bytes()
    capsys.readouterr()
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 30_000))  # too little for a checkpoint
    assert main(["train", *options(pictures, small_disk / "other")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "space" in error.lower()
    assert (small_disk / "other" / "config.json").exists()
    for path in (small_disk / "other" / "checkpoints").iterdir():  # what was finished is whole, and no more is there
        assert torch.load(path, weights_only=True)["schema"] == 1
    assert (out / "checkpoints" / "last.pt").read_bytes() == checkpoint
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["schema"] == 1
    assert json.loads((out / "summary.json").read_text())["stopped"] is None
