"""A pack's headers are scanned once on a machine, and again whenever something could have changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastast.atomic_files import cache_root
from fastast.data import pack_catalog
from fastast.data.catalog import UnreadableError
from fastast.data.dataset import open_folder
from fastast.packing.packer import run_pack
from fastast.scan import pack_scans
from fastast.scan.pack_index import RECORD, read_index
from tests.data.image_files import jpeg, write_tree

COUNT = 12


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_scans, "_TICK_NS", 0)
    tree = {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(30, 40, i) for i in range(COUNT)}
    run_pack(write_tree(tmp_path / "d", tree), tmp_path / "p", shard_size_mb=0.01, say=lambda line: None)
    return tmp_path / "p"


@pytest.fixture
def scans(pack: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Opens the pack as another process does, reads some pictures, and returns how many were scanned."""
    real = pack_catalog.scan_bytes

    def count(ids: np.ndarray | None = None, take: np.ndarray | None = None) -> int:
        scanned = []
        monkeypatch.setattr(pack_catalog, "scan_bytes", lambda data: scanned.append(len(data)) or real(data))
        catalog = open_folder(pack)
        if take is not None:
            catalog = catalog.take(take)
        catalog.read(np.arange(catalog.num_samples) if ids is None else ids)
        return len(scanned)

    return count


def cache_files() -> list[Path]:
    return list(cache_root().glob("pack-*"))


def overwrite(shard: Path, offset: int, data: bytes) -> None:
    """Changes a shard in place and sets its times back, as far as one can."""
    status = shard.stat()
    with open(shard, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_one_scan_serves_all_processes(pack: Path, scans: Callable[..., int]) -> None:
    early = open_folder(pack)
    assert scans(np.arange(5)) == 5
    assert scans() == COUNT - 5
    assert scans() == 0
    early.read(np.arange(COUNT))
    assert scans(take=np.array([7, 3])) == 0
    assert len(cache_files()) == 1


def test_part_of_a_pack_counts_by_its_rows(scans: Callable[..., int]) -> None:
    assert scans(take=np.array([7, 3])) == 2
    assert scans(np.array([0, 1])) == 2
    assert scans(np.array([3, 7])) == 0


@pytest.mark.parametrize("harm", ["overwritten", "replaced", "touched"])
def test_changed_shard_is_scanned_again(harm: str, pack: Path, scans: Callable[..., int]) -> None:
    scans()
    record = read_index(pack).splits["train"].records[7]
    shard = pack / f"train-{record['shard']:05d}.tar"
    if harm == "touched":
        os.utime(shard)
    elif harm == "overwritten":
        overwrite(shard, int(record["offset"]), b"GIF89a")
    else:
        other = shutil.copy2(shard, shard.with_suffix(".new"))
        overwrite(Path(other), int(record["offset"]), b"GIF89a")
        os.replace(other, shard)
    if harm == "touched":
        assert scans() == COUNT
        assert len(cache_files()) == 1  # of the earlier state nothing is left
    else:
        with pytest.raises(UnreadableError, match="GIF"):
            scans()


def test_overwritten_with_old_times_while_open(pack: Path, scans: Callable[..., int]) -> None:
    scans()
    catalog = open_folder(pack)
    catalog.read(np.arange(COUNT))
    record = read_index(pack).splits["train"].records[7]
    overwrite(pack / f"train-{record['shard']:05d}.tar", int(record["offset"]), b"GIF89a")
    with pytest.raises(UnreadableError, match="GIF"):
        catalog.read_one(7)


def test_other_index_over_the_same_shards(pack: Path, scans: Callable[..., int]) -> None:
    """An index may point to bytes inside a picture that no scan has seen; its checksums can all be made to fit."""
    scans()
    data = bytearray((pack / "train.index").read_bytes())
    records = np.frombuffer(data, RECORD, COUNT)  # a view: `data` changes with it
    wide = int(np.flatnonzero(records["length"] > 512)[0])
    records["offset"][wide] += 512
    records["length"][wide] -= 512
    (pack / "train.index").write_bytes(data)
    header = json.loads((pack / "pack.json").read_text())
    header["splits"]["train"]["index_sha256"] = hashlib.sha256(data).hexdigest()
    (pack / "pack.json").write_text(json.dumps(header))
    with pytest.raises(UnreadableError, match="damaged in the shard"):
        scans()


def test_fresh_shards_are_not_trusted(scans: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tick of the file system's clock, a further change would leave no trace."""
    monkeypatch.setattr(pack_scans, "_TICK_NS", 3600 * 10**9)
    assert scans() == COUNT
    assert scans() == COUNT


@pytest.mark.parametrize("harm", ["writable by all", "of another user", "link", "no cache folder"])
def test_cache_that_others_could_have_written(
    harm: str, tmp_path: Path, scans: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans()
    (file,) = cache_files()
    if harm == "writable by all":
        file.chmod(0o666)
    elif harm == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif harm == "link":
        target = file.rename(tmp_path / "elsewhere")
        file.symlink_to(target)
    else:
        monkeypatch.setattr(pack_scans, "cache_root", lambda: Path("/dev/null/cache"))
    assert scans() == COUNT
    assert scans() == COUNT
