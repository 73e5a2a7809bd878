"""Order of an epoch and its split over ranks."""

from __future__ import annotations

import numpy as np
import pytest

from fastast.data.sampler import epoch_ids, rank_rows, rank_slices


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 1000])
def test_every_id_once(count: int) -> None:
    ids = epoch_ids(count, seed=3, epoch=1)
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(count))


def test_pure_function_of_seed_and_epoch() -> None:
    first = epoch_ids(500, seed=3, epoch=1)
    assert np.array_equal(first, epoch_ids(500, seed=3, epoch=1))
    for other in (epoch_ids(500, seed=3, epoch=2), epoch_ids(500, seed=4, epoch=1)):
        assert (first == other).mean() < 0.02


def test_places_are_uniform() -> None:
    """Each id's mean place over many epochs is that of a uniform draw, within five standard errors."""
    count, epochs = 50, 2000
    places = np.stack([np.argsort(epoch_ids(count, seed=0, epoch=epoch)) for epoch in range(epochs)])
    error = places.std() / np.sqrt(epochs)
    assert np.abs(places.mean(axis=0) - (count - 1) / 2).max() < 5 * error
    # Neighbouring ids share a counter; they must not travel together.
    assert abs(np.corrcoef(places[:, 0], places[:, 1])[0, 1]) < 5 / np.sqrt(epochs)


def test_keep_filters_without_reordering() -> None:
    keep = np.random.default_rng(0).random(1000) < 0.3
    whole, kept = epoch_ids(1000, 7, 2), epoch_ids(1000, 7, 2, keep)
    assert kept.tolist() == [sample for sample in whole.tolist() if keep[sample]]


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(100, 8, 3), (96, 8, 3), (7, 8, 3), (1, 4, 2), (0, 4, 2)]
)
def test_ranks_partition_the_ids(count: int, batch_size: int, world_size: int) -> None:
    ids = epoch_ids(count, 0, 0)
    parts = [list(rank_slices(ids, batch_size, rank, world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1  # no rank waits for a batch that another does not have
    lengths = [[len(piece) for piece in part] for part in parts]
    assert all(max(batch) - min(batch) <= 1 for batch in zip(*lengths, strict=True))
    order = [sample for batch in zip(*parts, strict=True) for piece in batch for sample in piece.tolist()]
    assert order == ids.tolist()


def test_rank_rows_by_hand() -> None:
    ids = np.arange(100, 100 + 2 * 3 * 4 + 5)
    assert [piece.tolist() for piece in rank_slices(ids, 4, 1, 3)] == [
        *([104, 105, 106, 107], [116, 117, 118, 119]),
        [125, 126],
    ]
    assert [piece.tolist() for piece in rank_slices(ids[:6], 4, 0, 1)] == [[100, 101, 102, 103], [104, 105]]
    assert rank_rows(1, 4, 0, 2) == slice(0, 0)
