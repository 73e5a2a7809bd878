"""Real file systems that are unmounted under a run, or die, and are mounted again."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastast.data.layout import open_folder
from tests.data.pictures import write_tree
from tests.data.watched import Watched, pack, quick, same, tree, waited_for

__all__ = ["pack", "quick"]  # fixtures

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
def test_a_disk_that_is_unmounted_and_mounted_again(again: str, disk: Path, tmp_path: Path) -> None:
    write_tree(disk, tree())
    spare, point = tmp_path / "spare", tmp_path / "point"
    spare.mkdir()
    point.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", spare)
    try:
        subprocess.run(["cp", "-a", f"{disk}/.", spare], check=True)
        mount("--bind", disk, point)
        clean = Watched(open_folder(point)).run()
        watched = Watched(open_folder(point), lambda: mount("--bind", disk if again == "the same" else spare, point))
        assert same(watched.run(lambda: subprocess.run(["umount", "-l", point], check=True)), clean)
        assert watched.quarantined == []
        assert watched.notes == waited_for(point)
    finally:
        for place in (point, spare):
            subprocess.run(["umount", "-l", place], check=True)


def shut_down(point: Path) -> None:
    """The file system fails from now on, as it does when its disk is pulled out (EXT4_IOC_SHUTDOWN)."""
    folder = os.open(point, os.O_RDONLY)
    fcntl.ioctl(folder, 0x8004587D, struct.pack("I", 2))
    os.close(folder)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_a_disk_that_dies_and_is_plugged_in_again(kind: str, pack: Path, tmp_path: Path) -> None:
    """Where its entries are cached, a dead disk's folders can still be listed; its files fail."""
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
        clean = Watched(open_folder(source)).run()
        watched = Watched(open_folder(point), plug_in)
        assert same(watched.run(lambda: shut_down(point)), clean)
        assert watched.quarantined == []
        assert watched.notes == waited_for(point)
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def test_a_pack_on_a_disk_that_is_unmounted_lazily_is_read_on(pack: Path, disk: Path) -> None:
    shutil.copytree(pack, disk / "pack")
    clean = Watched(open_folder(pack)).run()
    watched = Watched(open_folder(disk / "pack"))
    assert same(watched.run(lambda: subprocess.run(["umount", "-l", disk], check=True)), clean)
    assert watched.quarantined == []
    assert watched.notes == []
