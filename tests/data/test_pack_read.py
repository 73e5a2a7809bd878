"""Reading packs: by map or by pread, and what a shard that changes under a run costs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data import pack_catalog
from fastast.data.catalog import UnreadableError
from fastast.data.layout import open_dataset, open_folder
from fastast.data.loader import TrainLoader
from fastast.data.pack import run_pack
from fastast.data.pack_catalog import choose_read
from fastast.data.pack_index import read_index
from fastast.errors import InputError
from tests.data.pictures import jpeg, write_tree

CPU = torch.device("cpu")
COUNT = 60


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    tree = {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(30 + i, 40, i) for i in range(COUNT)}
    run_pack(write_tree(tmp_path / "d", tree), tmp_path / "p", shard_size_mb=0.05, say=lambda line: None)
    return tmp_path / "p"


def make(pack: Path, log: list, read: str = "auto") -> TrainLoader:
    catalog = open_folder(pack, read=read)
    return TrainLoader(
        catalog,
        batch_size=6,
        image_size=32,
        device=CPU,
        seed=0,
        num_threads=1,
        prefetch=1,
        on_quarantine=lambda *line: log.append(line),
    )


@pytest.mark.parametrize(
    ("harm", "read"),
    [
        *[(harm, "auto") for harm in ("cut off", "emptied", "overwritten", "overwritten by other pictures", "removed")],
        ("cut off", "pread"),
        ("removed", "mmap"),  # the other harms end a process that maps: why `auto` does not
    ],
)
def test_a_shard_that_changes_mid_epoch(harm: str, read: str, pack: Path) -> None:
    log: list[tuple[int, str, str]] = []
    loader = make(pack, log, read)
    clean = {int(b.ids[r]): b.images[r].clone() for b in loader.epoch(0, np.arange(COUNT)) for r in range(b.num_valid)}
    shards = read_index(pack).splits["train"]
    at_risk = set(np.flatnonzero(shards.records["shard"] == 0).tolist())
    path = pack / "train-00000.tar"
    seen: list[int] = []
    for number, batch in enumerate(loader.epoch(0, np.arange(COUNT))):
        if number == 1:  # some pictures are read ahead, most are not
            size = path.stat().st_size
            if harm == "cut off":
                os.truncate(path, size // 2)
            elif harm == "emptied":
                os.truncate(path, 0)
            elif harm == "removed":
                path.unlink()
            else:
                filling = b"junk" if harm == "overwritten" else jpeg(20, 20, 99)
                with open(path, "r+b") as file:
                    file.write((filling + bytes(-len(filling) % 512)) * (size // 512))
                    file.truncate(size)
        for row in range(batch.num_valid):
            sample = int(batch.ids[row])
            seen.append(sample)
            assert batch.labels[row] == loader.catalog.labels[sample]
            assert torch.equal(batch.images[row], clean[sample])
    lost = {sample for sample, _, _ in log}
    assert sorted(seen + sorted(lost)) == list(range(COUNT))
    assert lost <= at_risk
    if harm == "removed":  # the open descriptor keeps it
        assert not lost
    else:
        assert lost  # how many depends on how far the reads were ahead
        reasons = {reason for _, _, reason in log}
        phrase = {"cut off": "cut off", "emptied": "cut off"}.get(harm, "damaged in the shard|not the picture")
        assert all(any(part in reason for part in phrase.split("|")) for reason in reasons), reasons
    assert all(".tar:" in place for _, place, _ in log)
    loader.close()
    if harm != "overwritten" and "pictures" not in harm:
        with pytest.raises(InputError, match=r"train-00000\.tar"):
            open_folder(pack)


def test_what_is_read_must_be_what_the_index_says(pack: Path) -> None:
    """Shard bytes are scanned on first use even if nothing changed since the pack was opened."""
    records = read_index(pack).splits["train"].records
    record = records[7]
    with open(pack / f"train-{record['shard']:05d}.tar", "r+b") as file:
        file.seek(int(record["offset"]))
        file.write(b"GIF89a")
    catalog = open_folder(pack)
    with pytest.raises(UnreadableError, match="damaged in the shard: GIF"):
        catalog.read_one(7)
    assert len(catalog.read(np.array([6, 8]))) == 2


def test_pictures_are_scanned_once(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_folder(pack)
    scanned = []
    real = pack_catalog.scan_bytes
    monkeypatch.setattr(pack_catalog, "scan_bytes", lambda data: scanned.append(len(data)) or real(data))
    for _ in range(3):
        catalog.read(np.arange(COUNT))
    assert len(scanned) == COUNT


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 21 0:31 / /mnt/nfs rw,relatime shared:20 - nfs4 server:/x rw,vers=4.2
40 21 {device} / /mnt/a\\040b ro,relatime shared:2 master:3 - {kind} /dev/loop0 ro
short line
"""


@pytest.mark.parametrize(
    ("kind", "read_only", "expected"),
    [("squashfs", True, "mmap"), ("ext4", True, "mmap"), ("ext4", False, "pread"), ("nfs4", True, "pread")],
)
def test_only_what_cannot_change_is_mapped(
    kind: str, read_only: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(device=f"{os.major(device)}:{os.minor(device)}", kind=kind))
    assert pack_catalog._file_system(tmp_path, str(mounts)) == kind
    assert pack_catalog._file_system(tmp_path, str(tmp_path / "absent")) is None
    monkeypatch.setattr(pack_catalog, "_file_system", lambda path: kind)
    real = os.statvfs(tmp_path)

    class Mounted:
        f_flag = real.f_flag | os.ST_RDONLY if read_only else real.f_flag & ~os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: Mounted)
    assert choose_read(tmp_path, "auto") == expected
    assert choose_read(tmp_path, "mmap") == "mmap"
    assert choose_read(tmp_path, "pread") == "pread"
    with pytest.raises(InputError, match="--read fast: choose one of auto, mmap, pread"):
        choose_read(tmp_path, "fast")


def test_read_mode_reaches_the_pack(pack: Path) -> None:
    for read, mapped in (("mmap", True), ("pread", False), ("auto", False)):
        dataset = open_dataset(pack, val_split=0.2, read=read)
        shards = dataset.train._shards  # type: ignore[attr-defined]
        assert [shard.view is not None for shard in shards] == [mapped] * len(shards)
    with pytest.raises(InputError, match="--read x"):
        open_dataset(pack, val_split=0.2, read="x")


def test_descriptors_are_given_back(pack: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for read in ("mmap", "pread"):
        catalog = open_folder(pack, read=read)
        taken = catalog.take(np.arange(5))
        del catalog
        assert len(taken.read(np.arange(5))) == 5
        del taken
    assert len(os.listdir("/proc/self/fd")) == before
