"""Real file systems that are unmounted during a run, or fail, and are mounted again."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastast.data.dataset import open_folder
from tests.data.image_files import write_tree
from tests.feed.helpers import same_batches
from tests.feed.outages import Recorder, outage_notes, pack, short_tick, tree

__all__ = ["pack", "short_tick"]  # fixtures

pytestmark = pytest.mark.system


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs root to mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, mounted."""
    point = tmp_path / "disk"
    point.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", point)
    yield point
    while os.path.ismount(point):
        subprocess.run(["umount", "-l", point], check=True)


@pytest.mark.parametrize("again", ["the same", "a copy"])
def test_disk_mounted_again(again: str, disk: Path, tmp_path: Path) -> None:
    write_tree(disk, tree())
    spare, point = tmp_path / "spare", tmp_path / "point"
    spare.mkdir()
    point.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", spare)
    try:
        subprocess.run(["cp", "-a", f"{disk}/.", spare], check=True)
        mount("--bind", disk, point)
        clean = Recorder(open_folder(point)).run()
        recorder = Recorder(open_folder(point), lambda: mount("--bind", disk if again == "the same" else spare, point))
        assert same_batches(recorder.run(lambda: subprocess.run(["umount", "-l", point], check=True)), clean)
        assert recorder.quarantined == []
        assert recorder.notes == outage_notes(point)
    finally:
        for place in (point, spare):
            subprocess.run(["umount", "-l", place], check=True)


def shut_down(point: Path) -> None:
    """The file system fails from now on, as when its disk is pulled out (EXT4_IOC_SHUTDOWN)."""
    folder = os.open(point, os.O_RDONLY)
    fcntl.ioctl(folder, 0x8004587D, struct.pack("I", 2))
    os.close(folder)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_disk_that_dies(kind: str, pack: Path, tmp_path: Path) -> None:
    """Folders of a dead disk can still be listed from the cache; its files fail."""
    source = pack if kind == "pack" else tmp_path / "source"
    images, point = [tmp_path / "a.img", tmp_path / "b.img"], tmp_path / "point"
    point.mkdir()
    for image in images:
        image.write_bytes(bytes(8 * 2**20))
        subprocess.run(["mkfs.ext4", "-q", "-d", source, image], check=True)
    mount("-o", "loop", images[0], point)

    def plug_in() -> None:
        subprocess.run(["umount", "-l", point], check=True)
        mount("-o", "loop", images[1], point)  # the same content on another device

    try:
        clean = Recorder(open_folder(source)).run()
        recorder = Recorder(open_folder(point), plug_in)
        assert same_batches(recorder.run(lambda: shut_down(point)), clean)
        assert recorder.quarantined == []
        assert recorder.notes == outage_notes(point)
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def test_pack_on_a_lazily_unmounted_disk(pack: Path, disk: Path) -> None:
    shutil.copytree(pack, disk / "pack")
    clean = Recorder(open_folder(pack)).run()
    recorder = Recorder(open_folder(disk / "pack"))
    assert same_batches(recorder.run(lambda: subprocess.run(["umount", "-l", disk], check=True)), clean)
    assert recorder.quarantined == []
    assert recorder.notes == []
