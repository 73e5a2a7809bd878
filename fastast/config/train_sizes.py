"""The sizes of training pictures: small first, larger as the run goes on (fast.ai's entry in DAWNBench, 2018)."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import TypeVar

from fastast.config.options import require

T = TypeVar("T")
MIN_SIZE = 16  # pixels
_MAX_SIZES = 4  # each is compiled for itself, and has its own CUDA graphs
_GROWTH = 0.75  # share of the run after which pictures have their last size
# Of the evaluation's size: from 128 to 192 px for 224 (FFCV's recipes end below it too). Below 64 px runs end at it:
# on CIFAR-10, ending at 24 px of 32 cost four points of accuracy.
_AUTO = (0.57, 0.86)
_SMALL = 64


def train_sizes(text: str | None, image_size: int) -> tuple[int, ...]:
    """Reads `--train-size`.

    Args:
        text: A:B in pixels, auto, or None for one size, that of the evaluation.
        image_size: side of a picture in evaluation, pixels.

    Returns:
        Sides of the training pictures, at most four, ascending from A to B. Between them lie multiples of 32, or of 8
        below 64.

    Raises:
        InputError: it is neither, or the sizes do not fit.
    """
    if text is None:
        return (image_size,)
    if text == "auto":
        first, last = _auto(image_size)
    else:
        match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text.strip())
        example = f"for example {_auto(image_size)[0]}:{image_size}"
        require(match is not None, f"--train-size {text}: give first and last size in pixels, {example}, or auto")
        assert match is not None
        first, last = int(match[1]), int(match[2])
        require(first >= MIN_SIZE, f"--train-size {text}: sizes must be at least {MIN_SIZE} pixels, {example}")
        require(first <= last, f"--train-size {text}: pictures grow, so the larger size comes last, {example}")
        require(
            last <= image_size,
            f"--train-size {text}: larger than --image-size {image_size}, the size of the evaluation; raise that, or "
            f"end at {image_size}",
        )
    between = [size for size in range(first + 1, last) if size % _step(size) == 0]
    sizes = sorted({first, *between, last})
    num = min(len(sizes), _MAX_SIZES)
    return tuple(sizes[round(place * (len(sizes) - 1) / max(num - 1, 1))] for place in range(num))


def size_changes(num_sizes: int) -> list[float]:
    """The progress, in (0, 1), at which each size but the first begins: the last quarter has the last size."""
    return [_GROWTH * place / (num_sizes - 1) for place in range(1, num_sizes)]


def size_at(progress: float, sizes: Sequence[T]) -> T:
    """The one of a run's sizes (or of what belongs to each) that it has at `progress`, in [0, 1]."""
    return sizes[bisect.bisect(size_changes(len(sizes)), progress)]


def _step(size: float) -> int:
    """What sizes there are multiples of: few strides of a network are left over, and there are few sizes to compile."""
    return 8 if size < _SMALL else 32


def _auto(image_size: int) -> tuple[int, int]:
    first, last = (_step(side) * round(side / _step(side)) for side in (share * image_size for share in _AUTO))
    return max(first, MIN_SIZE), image_size if image_size < _SMALL else min(last, image_size)
