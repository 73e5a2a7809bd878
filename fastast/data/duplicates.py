"""Looks for the same picture in train and val, or in two classes, byte by byte."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np

from fastast.data.catalog import Catalog, UnreadableError
from fastast.scan.file_index import show_path

_MAX_S = 3.0  # it is a hint: of a large set, only a part is read
_CHUNK = 256  # pictures that are read between looks at the clock


def describe_duplicates(train: Catalog, val: Catalog) -> list[str]:
    """A line on pictures that are in train and in val, and one on pictures with two labels; reads for a few seconds.

    Only pictures that share their length in bytes, height and width are read.
    """
    rows = _candidates(train, val)
    digests = _read(train, val, rows)
    seen: dict[bytes, list[int]] = {}
    for row, digest in zip(rows.tolist(), digests, strict=False):
        if digest is not None:
            seen.setdefault(digest, []).append(row)
    in_both, in_two_classes = [], []
    for same in seen.values():
        first = same[0]
        # A pair in both splits and in two classes counts as the former, which falsifies the accuracy.
        other = next((row for row in same if (row < train.num_samples) != (first < train.num_samples)), None)
        if other is not None:
            in_both.append((first, other))
            continue
        other = next((row for row in same if _label(train, val, row) != _label(train, val, first)), None)
        if other is not None:
            in_two_classes.append((first, other))
    whole = "" if len(digests) == len(rows) else f" (after {len(digests):,} of {len(rows):,} candidates)"
    return [
        f"byte-identical pictures {where}: {len(pairs):,}{whole}, such as "
        f"{' and '.join(show_path(_path(train, val, row)) for row in pairs[0])}"
        for pairs, where in ((in_both, "in train and in val"), (in_two_classes, "in two classes"))
        if pairs
    ]


def _candidates(train: Catalog, val: Catalog) -> np.ndarray:
    """int64[M]: rows (val after train) that look like another one in the other split or in another class, in groups."""
    sizes = np.concatenate([train.sizes, val.sizes]).astype(np.int64)
    key = np.concatenate([train.num_bytes(), val.num_bytes()])
    key = (key << 32) ^ (sizes[:, 0] << 16) ^ sizes[:, 1]
    kind = np.concatenate([train.labels, val.labels]).astype(np.int64) * 2
    kind[train.num_samples :] += 1
    order = np.argsort(key, kind="stable")
    key, kind = key[order], kind[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    differ = np.minimum.reduceat(kind, begins) != np.maximum.reduceat(kind, begins)
    counts = np.diff(np.append(begins, len(key)))
    return order[np.repeat(differ, counts)]


def _read(train: Catalog, val: Catalog, rows: np.ndarray) -> list[bytes | None]:
    """The digests of the first of `rows`, as many as the time allows; None where a picture cannot be read."""

    def digest(row: int) -> bytes | None:
        catalog, sample = (train, row) if row < train.num_samples else (val, row - train.num_samples)
        try:
            return blake2b(catalog.read_one(sample).data, digest_size=16).digest()
        except UnreadableError:  # the feed will say so
            return None

    digests: list[bytes | None] = []
    end = time.monotonic() + _MAX_S
    with ThreadPoolExecutor(8) as pool:
        for begin in range(0, len(rows), _CHUNK):
            if time.monotonic() > end:
                break
            digests += pool.map(digest, rows[begin : begin + _CHUNK].tolist())
    return digests


def _label(train: Catalog, val: Catalog, row: int) -> int:
    return int(train.labels[row] if row < train.num_samples else val.labels[row - train.num_samples])


def _path(train: Catalog, val: Catalog, row: int) -> str:
    return train.path(row) if row < train.num_samples else val.path(row - train.num_samples)
