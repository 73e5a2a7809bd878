"""Crop windows against a plain loop and torchvision's distribution; evaluation geometry against torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from fastast.feed.transforms import crop_windows, eval_geometry
from fastast.philox import STREAM_FLIP, random_words, to_uniform


def plain_window(height: int, width: int, sample: int, seed: int, epoch: int, min_area: float) -> tuple[int, ...]:
    """RandomResizedCrop as torchvision writes it, with the same draws."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    key = np.array([sample])
    for attempt in range(10):
        draws = [float(to_uniform(word)[0]) for word in random_words(seed, epoch, key, attempt)]
        area = height * width * (min_area + (1 - min_area) * draws[0])
        aspect = math.exp(low + (high - low) * draws[1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("min_area", [0.05, 0.25, 1.0])
def test_crops_equal_plain_loop(min_area: float) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, (600, 2))
    sizes[:60, 0] = 3  # long pictures fall back to the centre
    ids = rng.integers(0, 10**12, 600)
    anchors, shapes, flips = crop_windows(sizes, ids, seed=5, epoch=3, min_area=min_area)
    assert anchors.dtype == shapes.dtype == flips.dtype == np.int32
    expected = [
        plain_window(int(h), int(w), int(sample), 5, 3, min_area) for (h, w), sample in zip(sizes, ids, strict=True)
    ]
    assert np.array_equal(np.concatenate([anchors, shapes], axis=1), np.array(expected))
    assert np.array_equal(flips, random_words(5, 3, ids, STREAM_FLIP)[0] & 1)


def test_crop_depends_on_its_own_key_only() -> None:
    sizes = np.random.default_rng(1).integers(50, 300, (100, 2))
    ids = np.arange(100)
    whole = crop_windows(sizes, ids, 1, 2)
    back = crop_windows(sizes[::-1], ids[::-1], 1, 2)
    assert all(np.array_equal(a, b[::-1]) for a, b in zip(whole, back, strict=True))
    for other in (crop_windows(sizes, ids, 1, 3), crop_windows(sizes, ids, 2, 2)):
        assert (whole[1] != other[1]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("size", [(100, 100), (60, 200), (150, 110)])
def test_crops_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    count = 3000
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], np.float64
    )
    anchors, shapes, flips = crop_windows(np.tile(size, (count, 1)), np.arange(count), 0, 0)
    ours = np.concatenate([anchors, shapes], axis=1).astype(np.float64)
    # Two-sample Kolmogorov-Smirnov on top, left, height, width, area and aspect; 0.1 % critical value.
    extra = lambda rows: np.column_stack([rows, rows[:, 2] * rows[:, 3], rows[:, 3] / rows[:, 2]])  # noqa: E731
    for a, b in zip(extra(ours).T, extra(theirs).T, strict=True):
        grid = np.unique(np.concatenate([a, b]))
        steps = [np.searchsorted(np.sort(x), grid, side="right") / count for x in (a, b)]
        assert np.abs(steps[0] - steps[1]).max() < 1.95 * math.sqrt(2 / count)
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / math.sqrt(count)


@pytest.mark.parametrize(("side", "ratio"), [(224, 0.875), (64, 0.875), (63, 0.9), (32, 1.0)])
def test_eval_geometry_equals_torchvision(side: int, ratio: float) -> None:
    rng = np.random.default_rng(side)
    sizes = np.concatenate([rng.integers(1, 700, (60, 2)), [[side, side], [int(side / ratio), 500], [1, 333]]])
    resized, anchors = eval_geometry(sizes, side, ratio)
    resize, crop = Resize(int(side / ratio)), CenterCrop(side)
    for (height, width), got, anchor in zip(sizes.tolist(), resized.tolist(), anchors.tolist(), strict=True):
        # A picture that holds its own coordinates, after the resize: the crop shows where it was taken.
        shape = list(resize(torch.empty(1, height, width, device="meta")).shape[1:])
        assert got == shape
        rows = torch.arange(shape[0], dtype=torch.float32).view(1, -1, 1).expand(1, *shape)
        columns = torch.arange(shape[1], dtype=torch.float32).view(1, 1, -1).expand(1, *shape)
        assert anchor == [int(crop(rows)[0, 0, 0]), int(crop(columns)[0, 0, 0])]
