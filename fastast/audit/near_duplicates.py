"""Finds the pictures of a large set that show the same: candidates by their hashes, then a closer look at each pair."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from fastast.audit.perceptual import likeness, num_different

Progress = Callable[[int, int], object]

MOST_DIFFERENT = 12  # bits of 64 in which hashes of candidates may differ
ALIKE = 0.87  # likeness from which pictures are near duplicates
_WORTH = 0.5  # likeness of candidates before they are aligned
_NUM_BYTES = 8  # of a hash
_KEY_BITS = 16  # two of its bytes
# What keeps sets of very similar pictures, such as digits, from costing the square of their number:
_NEIGHBOURS = 64  # hashes compared on either side
_CANDIDATES = 16  # of each picture, the closest
_BLOCK = 1 << 15  # pictures whose neighbours are in memory at a time
_PAIRS = 1 << 12  # pairs compared closely at a time
_HELD = 1 << 22  # candidates in memory before only the closest are kept


class Pairs(NamedTuple):
    """Pictures that show the same.

    Attributes:
        a, b: int64 [P], rows; a < b, each pair once, in order.
        likeness: float32 [P].
    """

    a: np.ndarray
    b: np.ndarray
    likeness: np.ndarray


class Thumbs(Protocol):
    """Pictures by row, uint8 [M, SIDE, SIDE] for int64 [M]."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


def find_pairs(views: np.ndarray, thumbs: Thumbs, progress: Progress | None = None) -> Pairs:
    """Pairs of near duplicates.

    Args:
        views: uint64 [N, V] of `hash_views`.
        thumbs: of the N pictures.
        progress: called as `progress(done, total)`.
    """
    num = len(views)
    found = _Candidates.none()
    tables = list(itertools.combinations(range(_NUM_BYTES), 2))
    for done, key_bytes in enumerate(tables, 1):
        more: list[_Candidates] = []
        for block in _look_up(views, key_bytes):
            more.append(block)
            if sum(len(one.a) for one in more) > _HELD:
                found, more = found.merged(more, num), []
        found = found.merged(more, num)
        if progress is not None:
            progress(done, len(tables) + 1)
    alike = np.empty(len(found.a), np.float32)
    for begin in range(0, len(alike), _PAIRS):
        part = slice(begin, begin + _PAIRS)
        a, b, view, _ = (column[part] for column in found)
        alike[part] = likeness(thumbs[a], thumbs[b], view, worth=_WORTH, enough=ALIKE)
    kept = alike >= ALIKE
    a, b = np.minimum(found.a, found.b)[kept], np.maximum(found.a, found.b)[kept]
    order = np.lexsort((-alike[kept], b, a))  # the same pair may have been found from either side
    a, b, alike = a[order], b[order], alike[kept][order]
    first = _is_first(a) | _is_first(b)
    if progress is not None:
        progress(len(tables) + 1, len(tables) + 1)
    return Pairs(a[first], b[first], alike[first])


class _Candidates(NamedTuple):
    """Pairs whose hashes are close: of `a` the hash of a view, of `b` that of the whole."""

    a: np.ndarray  # int64 [C]
    b: np.ndarray  # int64 [C]
    view: np.ndarray  # int64 [C]
    different: np.ndarray  # uint64 [C], bits

    @classmethod
    def none(cls) -> _Candidates:
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, np.empty(0, np.uint64))

    def merged(self, others: list[_Candidates], num: int) -> _Candidates:
        """Each pair once, with its closest view, and of each picture the closest pairs."""
        whole = _Candidates(*(np.concatenate(column) for column in zip(self, *others, strict=True)))
        key = whole.a * num + whole.b
        order = np.lexsort((whole.different, key))
        once = whole.take(order[_is_first(key[order])])
        once = once.take(np.lexsort((once.different, once.a)))
        begins = np.flatnonzero(_is_first(once.a))
        rank = np.arange(len(once.a)) - np.repeat(begins, np.diff(np.append(begins, len(once.a))))
        return once.take(rank < _CANDIDATES)

    def take(self, rows: np.ndarray) -> _Candidates:
        """Those at some places (int64), or where it is true (bool)."""
        return _Candidates(*(column[rows] for column in self))


def _is_first(ordered: np.ndarray) -> np.ndarray:
    """bool [M]: whether a value differs from the one before it."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def _look_up(views: np.ndarray, key_bytes: tuple[int, int]) -> Iterator[_Candidates]:
    """Candidates whose hashes are equal in two of their bytes.

    Hashes that differ in 6 bits at most are equal in two bytes of eight, and most of those that differ in 12 are so in
    one of their views.
    """
    own = _with_key_first(views[:, 0], key_bytes)
    order = np.argsort(own, kind="stable")
    table = own[order]
    low = np.uint64((1 << (64 - _KEY_BITS)) - 1)
    for view in range(views.shape[1]):
        for begin in range(0, len(views), _BLOCK):
            asked = _with_key_first(views[begin : begin + _BLOCK, view], key_bytes)
            place = np.searchsorted(table, asked)
            first = np.maximum(np.searchsorted(table, asked & ~low), place - _NEIGHBOURS)
            last = np.minimum(np.searchsorted(table, asked | low, side="right"), place + _NEIGHBOURS)
            count = last - first
            a = np.repeat(np.arange(len(asked)), count)
            slot = np.arange(len(a)) + np.repeat(first - (np.cumsum(count) - count), count)
            different = num_different(table[slot], asked[a])
            a, b = a + begin, order[slot]
            kept = (different <= MOST_DIFFERENT) & (a != b)
            yield _Candidates(a[kept], b[kept], np.full(kept.sum(), view), different[kept])


def _with_key_first(hashes: np.ndarray, key_bytes: tuple[int, int]) -> np.ndarray:
    """The hashes with two of their bytes moved to the highest places, uint64 [M]."""
    rest = [byte for byte in range(_NUM_BYTES) if byte not in key_bytes]
    as_bytes = np.ascontiguousarray(hashes).astype("<u8").view(np.uint8).reshape(-1, _NUM_BYTES)
    return np.ascontiguousarray(as_bytes[:, [*rest, *key_bytes]]).view("<u8")[:, 0].astype(np.uint64)
