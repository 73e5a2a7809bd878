"""Packs whose shards change while they are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data import pack_catalog
from fastast.data.catalog import UnreadableError
from fastast.data.dataset import open_folder
from fastast.errors import InputError
from fastast.packing.packer import run_pack
from fastast.scan.pack_index import read_index
from tests.data.image_files import jpeg, write_tree
from tests.feed.helpers import images_by_id, train_loader

COUNT = 60


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    tree = {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(30 + i, 40, i) for i in range(COUNT)}
    run_pack(write_tree(tmp_path / "d", tree), tmp_path / "p", shard_size_mb=0.05, say=lambda line: None)
    return tmp_path / "p"


@pytest.mark.parametrize("harm", ["cut off", "emptied", "overwritten", "overwritten by other pictures", "removed"])
def test_shard_that_changes_during_an_epoch(harm: str, pack: Path) -> None:
    log: list[tuple[int, str, str]] = []
    loader = train_loader(open_folder(pack), batch_size=6, prefetch=1, on_quarantine=lambda *line: log.append(line))
    clean = images_by_id(loader.epoch(0, np.arange(COUNT)))
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


def test_picture_must_match_the_index(pack: Path) -> None:
    """Pictures are scanned on first use even if nothing changed since the pack was opened."""
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


def test_descriptors_are_closed(pack: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    catalog = open_folder(pack)
    taken = catalog.take(np.arange(5))
    del catalog
    assert len(taken.read(np.arange(5))) == 5
    del taken
    assert len(os.listdir("/proc/self/fd")) == before
