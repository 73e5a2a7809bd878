"""A run of the packer that was killed is completed by the next one, at the same bytes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastast.data.dataset import open_folder
from fastast.errors import InputError
from fastast.packing import packer
from fastast.packing.packer import run_pack
from tests.data.image_files import encode, jpeg, picture, write_tree

ROOT = Path(__file__).resolve().parents[2]


def pack(source: Path, out: Path, **options: Any) -> None:
    run_pack(source, out, say=lambda line: None, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = {f"train/{'ab'[i % 2]}/{i}.jpg": jpeg(40, 50, i) for i in range(14)}
    tree |= {"train/a/text.jpg": b"text", "train/b/p.png": encode(picture(30, 30), "PNG")}
    return write_tree(tmp_path / "d", tree | {"val/a/0.jpg": jpeg(9, 9), "val/b/0.jpg": jpeg(9, 9)})


@pytest.mark.slow
def test_killed_at_every_step(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.packing.kill_packer", str(source), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    steps = int(result.stdout)
    whole = contents(tmp_path / "out" / "whole")
    assert sorted(name for name in whole if "train-" in name) == [f"train-0000{i}.tar" for i in range(2)]
    assert sorted(name for name in whole if "train-" not in name) == [
        "pack.json",
        "train.index",
        "val-00000.tar",
        "val.index",
    ]
    assert steps > 30
    for step in range(1, steps + 1):
        assert contents(tmp_path / "out" / str(step)) == whole, step


@pytest.mark.parametrize("damage", ["shard cut", "no shard", "part cut", "part noise"])
def test_damaged_parts_are_rewritten(
    damage: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(source, tmp_path / "p", shard_size_mb=0.03)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "q"
    with monkeypatch.context() as patch:
        patch.setattr(packer, "_place", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(source, out, shard_size_mb=0.03)
    shard, part = out / "train-00001.tar", out / ".parts" / "train-00001.npz"
    if damage == "shard cut":
        os.truncate(shard, 5000)
    elif damage == "no shard":
        shard.unlink()
    else:
        data = part.read_bytes()
        part.write_bytes(data[: len(data) // 2] if damage == "part cut" else bytes(len(data)))
    pack(source, out, shard_size_mb=0.03)
    assert contents(out) == contents(tmp_path / "p")


def test_only_the_same_pack_is_completed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    pack(source, out)
    before = contents(out)
    pack(source, out)
    assert contents(out) == before
    with pytest.raises(InputError, match="holds a pack of other pictures, options or versions"):
        pack(source, out, quality=50)
    (source / "train/a/0.jpg").write_bytes(jpeg(41, 51))
    with pytest.raises(InputError, match="holds a pack of other"):
        pack(source, out)
    assert contents(out) == before
    begun = tmp_path / "begun"
    (begun / ".parts").mkdir(parents=True)
    (begun / ".parts" / "plan").write_text("another")
    with pytest.raises(InputError, match="unfinished pack of other pictures"):
        pack(source, begun)


def test_one_process_at_a_time(source: Path, tmp_path: Path) -> None:
    (tmp_path / "p" / ".parts").mkdir(parents=True)
    with open(tmp_path / "p" / ".parts" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process packs into it"):
            pack(source, tmp_path / "p")
    pack(source, tmp_path / "p")
    assert open_folder(tmp_path / "p").num_samples == 2
