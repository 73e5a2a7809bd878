"""The data's folder goes away in mid-epoch and comes back: waited for, nothing lost, nothing quarantined."""

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

from fastast.data import reader
from fastast.data.feed import Batch
from fastast.data.folder import Folder
from fastast.data.layout import open_dataset, open_folder
from fastast.data.loader import EvalLoader
from tests.data.pictures import write_tree
from tests.data.watched import COUNT, CPU, FAILING, Watched, quick, same, tree, waited_for

__all__ = ["quick"]  # a fixture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data", tree())


def num_readers() -> int:
    return sum(thread.name.startswith("fastast-read") for thread in threading.enumerate())


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_folder_that_comes_back_costs_nothing_but_time(prefetch: int, data: Path) -> None:
    away = data.with_name("away")
    clean = Watched(open_folder(data)).run()
    watched = Watched(open_folder(data), lambda: away.rename(data), prefetch=prefetch)
    assert same(watched.run(lambda: data.rename(away)), clean)
    assert watched.quarantined == []
    assert watched.notes == waited_for(data)
    assert watched.num_waits >= 3
    assert watched.loader.wait_s > 0.05
    assert watched.loader.num_decoded == COUNT


def test_it_may_come_back_as_another_folder_without_some_pictures(data: Path) -> None:
    """As from a backup: another inode, newer files; the first picture looked for is among those that are missing."""
    catalog = open_folder(data)
    lost = [0, 41]
    away = data.with_name("away")
    clean = Watched(catalog).run()

    def restore() -> None:
        copy = shutil.copytree(away, data.with_name("copy"), copy_function=shutil.copyfile)
        for sample in lost:
            (copy / os.path.relpath(catalog.path(sample), data)).unlink()
        copy.rename(data)  # at once: what is missing when the folder is back counts as lost

    watched = Watched(open_folder(data), restore)
    batches = watched.run(lambda: data.rename(away))
    assert sorted(watched.quarantined) == lost
    assert watched.notes == waited_for(data)
    for batch, whole in zip(batches, clean, strict=True):
        kept = [row for row in range(4) if int(whole.ids[row]) not in lost]
        assert batch.num_valid == len(kept)
        assert torch.equal(batch.ids[: len(kept)], whole.ids[kept])
        assert torch.equal(batch.images[: len(kept)], whole.images[kept])


def test_a_read_counts_only_if_the_folder_was_there_before_and_after(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_folder(data)
    clean = Watched(catalog).run()
    away, real, num_reads = data.with_name("away"), catalog.read_one, 0

    def unlucky(sample: int) -> np.ndarray:
        """Of picture 7, the first read falls into an outage that is over at once, the second into a longer one."""
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
    watched = Watched(catalog, lambda: away.rename(data))
    assert same(watched.run(), clean)
    assert watched.quarantined == []
    assert num_reads == 3


def test_evaluation_waits_too(data: Path) -> None:
    away = data.with_name("away")
    notes: list[str] = []
    calls: list[int] = []

    def back() -> None:
        calls.append(0)
        if len(calls) == 2:
            away.rename(data)

    catalog = open_folder(data)
    loader = EvalLoader(catalog, batch_size=4, image_size=16, device=CPU, on_wait=back, on_note=notes.append)
    data.rename(away)
    assert sum(batch.num_valid for batch in loader) == COUNT
    assert notes == waited_for(data)
    loader.close()


def test_only_the_root_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    pictures = tree("abcd")
    for root, classes in (("train.X1", "ab"), ("train.X2", "cd"), ("val.X", "abcd")):
        write_tree(tmp_path / root, {name: body for name, body in pictures.items() if name[0] in classes})
    second, away = tmp_path / "train.X2", tmp_path / "away"
    clean = Watched(open_dataset(tmp_path).train).run()
    watched = Watched(open_dataset(tmp_path).train, lambda: away.rename(second))
    assert same(watched.run(lambda: second.rename(away)), clean)
    assert watched.quarantined == []
    assert watched.notes == waited_for(second)


@pytest.mark.parametrize("deleted", ["a", "ab"])
def test_deleted_class_folders_are_not_waited_for(deleted: str, data: Path) -> None:
    watched = Watched(open_folder(data))
    ids = {name: set(np.flatnonzero(watched.loader.catalog.labels == "ab".index(name)).tolist()) for name in "ab"}

    def delete() -> None:
        for name in deleted:
            shutil.rmtree(data / name)

    batches = watched.run(delete)
    seen = {int(batch.ids[row]) for batch in batches for row in range(batch.num_valid)}
    assert seen | set(watched.quarantined) == set(range(COUNT))
    assert len(watched.quarantined) > 10
    assert all(any(sample in ids[name] for name in deleted) for sample in watched.quarantined)
    assert watched.notes == []


def test_a_disk_that_fails_for_all_is_waited_for_and_one_bad_sector_is_not(tmp_path: Path) -> None:
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
    clean = Watched(open_folder(root)).run()
    watched = Watched(open_folder(root), lambda: lead_to(sound))
    assert same(watched.run(lambda: lead_to(tmp_path / "failing")), clean)
    assert watched.quarantined == []
    assert watched.notes == waited_for(root)
    watched = Watched(open_folder(root))
    (sound / "00.jpg").unlink()  # the first that is looked at
    (sound / "00.jpg").symlink_to(FAILING)
    watched.run()
    assert watched.quarantined == [0]
    assert watched.notes == []


class StopError(Exception):
    pass


def test_a_stop_while_waiting_leaves_nothing_behind(data: Path) -> None:
    def stop() -> None:
        raise StopError

    away = data.with_name("away")
    watched = Watched(open_folder(data), stop)
    clean = Watched(open_folder(data)).run()
    for _ in range(2):  # an outage of a later pass is noted anew
        watched.num_waits = 0
        got: list[Batch] = []
        with pytest.raises(StopError):
            got.extend(watched.batches(lambda: data.rename(away)))
        assert 0 < len(got) < len(clean)
        assert same(got, clean[: len(got)])
        away.rename(data)
    assert watched.notes == waited_for(data)[:1] * 2
    assert watched.quarantined == []
    assert same(watched.run(), clean)  # and closes
    assert num_readers() == 0


def test_closing_does_not_wait_for_the_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TICK_S", 60.0)
    watched = Watched(open_folder(data))
    batches = watched.loader.epoch(0, np.arange(COUNT))
    next(batches)
    wait([read for flight in watched.loader._flights for read in flight.reads])
    data.rename(data.with_name("away"))
    next(batches)  # a further slice is pulled, whose read fails
    while not (watched.notes or watched.loader._reader._outages.notes):
        time.sleep(0.01)
    assert num_readers() > 0
    began = time.monotonic()
    watched.loader.close()
    assert time.monotonic() - began < 30
    assert num_readers() == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_an_empty_folder_in_the_place_is_not_the_folder(data: Path) -> None:
    folder = Folder(str(data), [(str(data / "a/00.jpg"), (data / "a/00.jpg").stat().st_size)])
    away = data.with_name("away")
    assert folder.is_there()
    data.rename(away)
    data.mkdir()
    assert not folder.is_there()
    write_tree(data, {"a/00.jpg": b"another set of pictures"})
    assert not folder.is_there()
    shutil.rmtree(data)
    away.rename(data)
    assert folder.is_there()
    (data / "a/00.jpg").unlink()
    assert folder.is_there()  # it never went away since
    data.rename(away)
    assert not folder.is_there()
    away.rename(data)
    assert not folder.is_there()  # nothing shows that it is more than a mount that is yet to be filled
