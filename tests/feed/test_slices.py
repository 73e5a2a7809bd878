"""Slices that are made up while they are pulled: how many are pulled never depends on time."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.dataset import open_folder
from fastast.feed import Batch
from tests.data.image_files import jpeg, write_tree
from tests.feed.helpers import delivered_ids, images_by_id, same_batches, train_loader

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(30 + i, 90 - i, i) for i in range(COUNT)}
    return write_tree(tmp_path_factory.mktemp("stream"), tree)


def uneven() -> list[np.ndarray]:
    """Every id once, in slices of 1 to 8."""
    ids = np.random.default_rng(0).permutation(COUNT)
    return np.split(ids, np.cumsum([3, 8, 1, 8, 5, 8, 8, 2, 7, 8]))


def sized(slices: Iterable[np.ndarray], size: int = 32) -> Iterator[tuple[np.ndarray, int]]:
    """Slices with the size of their pictures."""
    return ((ids, size) for ids in slices)


@pytest.mark.parametrize(("prefetch", "eighths"), [(1, 0), (2, 0), (4, 0), (2, 3)])
def test_pulls_do_not_depend_on_time(
    prefetch: int, eighths: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = uneven()

    def run(delay: float) -> tuple[list[str], list[Batch]]:
        """What happened, in order, with reads of up to `delay` seconds."""
        catalog = open_folder(folder)
        real = catalog.read_one
        rng = random.Random(delay)

        def slow(sample: int) -> np.ndarray:
            time.sleep(rng.random() * delay)
            return real(sample)

        monkeypatch.setattr(catalog, "read_one", slow)
        loader = train_loader(catalog, prefetch=prefetch)
        loader._share.eighths = eighths
        happened: list[str] = []
        batches = []

        def pulled() -> Iterator[np.ndarray]:
            for number, part in enumerate(slices):
                happened.append(f"slice {number}")
                yield part
            happened.append("end")

        for number, batch in enumerate(loader.stream(0, sized(pulled()))):
            happened.append(f"batch {number}")
            batches.append(batch)
        assert loader.depth == prefetch + 3
        loader.close()
        return happened, batches

    depth = prefetch + 3
    expected = [f"slice {number}" for number in range(depth)]
    for number in range(len(slices)):
        following = number + depth
        expected += [f"batch {number}"]
        expected += [f"slice {following}"] if following < len(slices) else ["end"] * (following == len(slices))
    happened, clean = run(0.0)
    assert happened == expected
    for delay in (0.01, 0.05):
        happened, batches = run(delay)
        assert happened == expected
        assert same_batches(batches, clean)


def test_stream_equals_epoch(folder: Path) -> None:
    catalog = open_folder(folder)
    loader, other = train_loader(catalog), train_loader(catalog)
    ids = np.concatenate(uneven())
    parts = (ids[first : first + 8] for first in range(0, COUNT, 8))
    assert same_batches(list(loader.epoch(5, ids)), list(other.stream(5, sized(parts))))
    assert loader.num_decoded == other.num_decoded == COUNT
    whole = images_by_id(loader.epoch(5, ids))
    for part, batch in zip(uneven(), other.stream(5, sized(uneven())), strict=True):
        assert batch.ids[: batch.num_valid].tolist() == part.tolist()
        assert not batch.images[batch.num_valid :].any()
        assert all(torch.equal(batch.images[row], whole[sample]) for row, sample in enumerate(part.tolist()))
    assert list(loader.stream(0, [])) == []
    loader.close()
    other.close()


def test_slice_may_depend_on_earlier_batches(folder: Path) -> None:
    """After batch k the caller still decides slice k + depth; a buffer used again does no harm."""
    loader = train_loader(open_folder(folder), prefetch=1)
    decided = [[number] for number in range(loader.depth)]
    buffer = np.zeros(1, np.int64)

    def slices() -> Iterator[np.ndarray]:
        for number in range(12):
            buffer[:] = decided[number]
            yield buffer

    for number, batch in enumerate(loader.stream(0, sized(slices()))):
        assert batch.ids[: batch.num_valid].tolist() == decided[number]
        decided.append([int(batch.ids[0]) + 20])
    assert decided[11] == [11 % loader.depth + 20 * (11 // loader.depth)]
    loader.close()


def test_time_in_slices_is_not_waiting(folder: Path) -> None:
    loader = train_loader(open_folder(folder))
    list(loader.epoch(0, np.arange(COUNT)))
    loader.wait_s = 0.0

    def slices() -> Iterator[np.ndarray]:
        for part in uneven():
            time.sleep(0.2)
            yield part

    began = time.perf_counter()
    list(loader.stream(0, sized(slices())))
    assert time.perf_counter() - began > 2
    assert 0 < loader.wait_s < 1  # of 2 s slept, none
    loader.close()


def test_empty_slice_is_an_empty_batch(folder: Path) -> None:
    """A rank that has no row of a last global batch still takes part in the step."""
    loader = train_loader(open_folder(folder))
    batches = list(loader.stream(0, sized([np.arange(3), np.arange(0), np.arange(2)])))
    assert [batch.num_valid for batch in batches] == [3, 0, 2]
    assert not batches[1].valid.any()
    assert not batches[1].images.any()
    loader.close()


def test_loader_survives_bad_slices(folder: Path) -> None:
    loader = train_loader(open_folder(folder), image_size=16)

    def broken() -> Iterator[np.ndarray]:
        yield from uneven()[:6]
        raise KeyError("lost")

    with pytest.raises(ValueError, match="a slice of 9 ids: must be at most 8"):
        list(loader.stream(0, sized([np.arange(3), np.arange(9)])))
    with pytest.raises(KeyError, match="lost"):
        list(loader.stream(0, sized(broken())))
    assert delivered_ids(loader.epoch(0, np.arange(COUNT))) == list(range(COUNT))
    loader.close()


def test_pass_abandoned_by_its_own_slices(folder: Path) -> None:
    """No slice of an old pass gets among those of the new one."""
    loader = train_loader(open_folder(folder))
    inner: list[Generator[Batch, None, None]] = []

    def slices() -> Iterator[np.ndarray]:
        yield np.arange(3)
        inner.append(loader.epoch(0, np.arange(10, 30)))
        next(inner[0])
        yield np.arange(5)

    with pytest.raises(RuntimeError, match="abandoned"):
        next(loader.stream(0, sized(slices())))
    assert delivered_ids(inner[0]) == list(range(18, 30))
    loader.close()
