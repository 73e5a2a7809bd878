"""Which sizes a run uses, and when."""

import math

import pytest

from fastast.config import TrainConfig
from fastast.config.train_sizes import size_at, train_sizes
from fastast.errors import InputError


@pytest.mark.parametrize(
    ("text", "image_size", "sizes"),
    [
        (None, 224, (224,)),
        ("auto", 224, (128, 160, 192)),
        ("auto", 160, (96, 128)),
        ("auto", 128, (64, 96)),
        ("auto", 64, (40, 48, 56)),
        ("auto", 32, (16, 24, 32)),
        ("auto", 28, (16, 24, 28)),
        ("auto", 16, (16,)),
        ("16:32", 32, (16, 24, 32)),
        ("128:192", 224, (128, 160, 192)),
        ("100:130", 224, (100, 128, 130)),
        ("64:224", 224, (64, 128, 160, 224)),
        ("16:64", 64, (16, 32, 48, 64)),
        ("192:192", 224, (192,)),
    ],
)
def test_sizes_are_few_and_round(text, image_size, sizes):
    assert train_sizes(text, image_size) == sizes
    assert TrainConfig(train_size=text, image_size=image_size).train_sizes == sizes


@pytest.mark.parametrize("image_size", range(16, 513, 4))
def test_sizes_of_any_network_grow_within_its_range(image_size):
    for text in ("auto", f"16:{image_size}", f"{image_size}:{image_size}"):
        sizes = train_sizes(text, image_size)
        assert 1 <= len(sizes) <= 4
        assert list(sizes) == sorted(set(sizes))
        assert 16 <= sizes[0] <= sizes[-1] <= image_size
        assert all(size % 8 == 0 if size < 64 else size % 32 == 0 for size in sizes[1:-1])
    if image_size >= 32:
        first, *_, last = train_sizes("auto", image_size)
        assert abs(first - 0.57 * image_size) <= (4 if first < 64 else 16)
        assert last == image_size if image_size < 64 else abs(last - 0.86 * image_size) <= (4 if last < 64 else 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("128", "give first and last size in pixels, for example 128:224, or auto"),
        ("big", "give first and last size in pixels"),
        ("128:", "give first and last size in pixels"),
        ("-8:64", "give first and last size in pixels"),
        ("1.5:64", "give first and last size in pixels"),
        ("8:64", "sizes must be at least 16 pixels"),
        ("192:128", "pictures grow, so the larger size comes last"),
        ("128:256", "larger than --image-size 224, the size of the evaluation; raise that, or end at 224"),
        (" ", "is empty"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(text, message):
    with pytest.raises(InputError, match="--train-size") as caught:
        TrainConfig(train_size=text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [(32,), (16, 24), (16, 24, 32), (128, 160, 192, 224)])
def test_sizes_share_the_first_three_quarters_and_the_last_has_the_rest(sizes):
    assert size_at(0.0, sizes) == sizes[0]
    assert size_at(0.7501, sizes) == size_at(1.0, sizes) == sizes[-1]
    grid = [size_at((place + 0.5) / 12_000, sizes) for place in range(12_000)]
    assert grid == sorted(grid)
    for size in sizes[:-1]:
        assert math.isclose(grid.count(size) / 12_000, 0.75 / (len(sizes) - 1), abs_tol=1e-3)
