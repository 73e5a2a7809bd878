"""The folder of the pictures becomes unavailable during an epoch and comes back: nothing is lost or quarantined."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.dataset import open_dataset, open_folder
from fastast.feed import Batch, reader
from fastast.scan.availability import DataRoot
from tests.data.image_files import write_tree
from tests.feed.helpers import delivered_ids, same_batches
from tests.feed.outages import COUNT, FAILING, Recorder, outage_notes, short_tick, tree

__all__ = ["short_tick"]  # a fixture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data", tree())


def num_readers() -> int:
    return sum(thread.name.startswith("fastast-read") for thread in threading.enumerate())


@pytest.mark.parametrize("prefetch", [1, 3])
def test_folder_that_comes_back(prefetch: int, data: Path) -> None:
    away = data.with_name("away")
    clean = Recorder(open_folder(data)).run()
    recorder = Recorder(open_folder(data), lambda: away.rename(data), prefetch=prefetch)
    assert same_batches(recorder.run(lambda: data.rename(away)), clean)
    assert recorder.quarantined == []
    assert recorder.notes == outage_notes(data)
    assert recorder.num_waits >= 3
    assert recorder.loader.wait_s > 0.05
    assert recorder.loader.num_decoded == COUNT


def test_folder_restored_from_a_backup(data: Path) -> None:
    """As from a backup: another inode, newer files; the first probe is among the missing pictures."""
    catalog = open_folder(data)
    lost = [0, 41]
    away = data.with_name("away")
    clean = Recorder(catalog).run()

    def restore() -> None:
        copy = shutil.copytree(away, data.with_name("copy"), copy_function=shutil.copyfile)
        for sample in lost:
            (copy / os.path.relpath(catalog.path(sample), data)).unlink()
        copy.rename(data)  # atomically: what is missing when the folder is back counts as lost

    recorder = Recorder(open_folder(data), restore)
    batches = recorder.run(lambda: data.rename(away))
    assert sorted(recorder.quarantined) == lost
    assert recorder.notes == outage_notes(data)
    for batch, whole in zip(batches, clean, strict=True):
        kept = [row for row in range(4) if int(whole.ids[row]) not in lost]
        assert batch.num_valid == len(kept)
        assert torch.equal(batch.ids[: len(kept)], whole.ids[kept])
        assert torch.equal(batch.images[: len(kept)], whole.images[kept])


def test_read_counts_only_while_the_folder_is_available(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_folder(data)
    clean = Recorder(catalog).run()
    away, real, num_reads = data.with_name("away"), catalog.read_one, 0

    def unlucky(sample: int) -> np.ndarray:
        """The first read of picture 7 fails in an outage that ends at once, the second in a longer one."""
        nonlocal num_reads
        num_reads += sample == 7
        if sample != 7 or num_reads > 2:
            return real(sample)
        data.rename(away)
        try:
            return real(sample)
        finally:
            if num_reads == 1:
                away.rename(data)

    monkeypatch.setattr(catalog, "read_one", unlucky)
    recorder = Recorder(catalog, lambda: away.rename(data))
    assert same_batches(recorder.run(), clean)
    assert recorder.quarantined == []
    assert num_reads == 3


def test_only_the_missing_root_is_waited_for(tmp_path: Path) -> None:
    pictures = tree("abcd")
    for root, classes in (("train.X1", "ab"), ("train.X2", "cd"), ("val.X", "abcd")):
        write_tree(tmp_path / root, {name: body for name, body in pictures.items() if name[0] in classes})
    second, away = tmp_path / "train.X2", tmp_path / "away"
    clean = Recorder(open_dataset(tmp_path).train).run()
    recorder = Recorder(open_dataset(tmp_path).train, lambda: away.rename(second))
    assert same_batches(recorder.run(lambda: second.rename(away)), clean)
    assert recorder.quarantined == []
    assert recorder.notes == outage_notes(second)


@pytest.mark.parametrize("deleted", ["a", "ab"])
def test_deleted_class_folders_are_quarantined(deleted: str, data: Path) -> None:
    recorder = Recorder(open_folder(data))
    ids = {name: set(np.flatnonzero(recorder.loader.catalog.labels == "ab".index(name)).tolist()) for name in "ab"}

    def delete() -> None:
        for name in deleted:
            shutil.rmtree(data / name)

    batches = recorder.run(delete)
    assert set(delivered_ids(batches)) | set(recorder.quarantined) == set(range(COUNT))
    assert len(recorder.quarantined) > 10
    assert all(any(sample in ids[name] for name in deleted) for sample in recorder.quarantined)
    assert recorder.notes == []


def test_failing_disk_and_one_bad_sector(tmp_path: Path) -> None:
    sound = write_tree(tmp_path / "sound", tree("a")) / "a"
    for name in ("failing", "data"):
        (tmp_path / name).mkdir()
    for file in sound.iterdir():
        (tmp_path / "failing" / file.name).symlink_to(FAILING)
    root = tmp_path / "data"

    def lead_to(folder: Path) -> None:
        (root / "new").symlink_to(folder)
        (root / "new").rename(root / "a")

    lead_to(sound)
    clean = Recorder(open_folder(root)).run()
    recorder = Recorder(open_folder(root), lambda: lead_to(sound))
    assert same_batches(recorder.run(lambda: lead_to(tmp_path / "failing")), clean)
    assert recorder.quarantined == []
    assert recorder.notes == outage_notes(root)
    recorder = Recorder(open_folder(root))
    (sound / "00.jpg").unlink()  # the first probe
    (sound / "00.jpg").symlink_to(FAILING)
    recorder.run()
    assert recorder.quarantined == [0]
    assert recorder.notes == []


class StopError(Exception):
    pass


def test_stop_while_waiting(data: Path) -> None:
    def stop() -> None:
        raise StopError

    away = data.with_name("away")
    recorder = Recorder(open_folder(data), stop)
    clean = Recorder(open_folder(data)).run()
    for _ in range(2):  # an outage of a later pass is reported again
        recorder.num_waits = 0
        got: list[Batch] = []
        with pytest.raises(StopError):
            got.extend(recorder.batches(lambda: data.rename(away)))
        assert 0 < len(got) < len(clean)
        assert same_batches(got, clean[: len(got)])
        away.rename(data)
    assert recorder.notes == outage_notes(data)[:1] * 2
    assert recorder.quarantined == []
    assert same_batches(recorder.run(), clean)  # and closes
    assert num_readers() == 0


def test_close_does_not_wait_for_the_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TICK_S", 60.0)
    recorder = Recorder(open_folder(data))
    batches = recorder.loader.epoch(0, np.arange(COUNT))
    next(batches)
    wait([read for pending in recorder.loader._pending for read in pending.reads])
    data.rename(data.with_name("away"))
    next(batches)  # a further slice is pulled, whose read fails
    while not (recorder.notes or recorder.loader._reader._outages.notes):
        time.sleep(0.01)
    assert num_readers() > 0
    began = time.monotonic()
    recorder.loader.close()
    assert time.monotonic() - began < 30
    assert num_readers() == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_empty_folder_does_not_count(data: Path) -> None:
    folder = DataRoot(str(data), [(str(data / "a/00.jpg"), (data / "a/00.jpg").stat().st_size)])
    away = data.with_name("away")
    assert folder.is_available()
    data.rename(away)
    data.mkdir()
    assert not folder.is_available()
    write_tree(data, {"a/00.jpg": b"another set of pictures"})
    assert not folder.is_available()
    shutil.rmtree(data)
    away.rename(data)
    assert folder.is_available()
    (data / "a/00.jpg").unlink()
    assert folder.is_available()  # the same folder, still available
    data.rename(away)
    assert not folder.is_available()
    away.rename(data)
    assert not folder.is_available()  # it could be a mount that is still being filled
