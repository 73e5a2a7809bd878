"""Pictures that a loader reads while their paths are still being found."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from fastast.data.catalog import Catalog, UnreadableError, read_whole
from fastast.feed import EvalLoader, LoaderOptions
from fastast.scan.image_scan import scan_bytes

_BLOCKS = 8  # batches that have rows at once: more than a loader has pending


class NamedBatch(NamedTuple):
    """A batch, and where its pictures come from."""

    images: torch.Tensor  # [B, 3, S, S] channels-last
    pictures: list[tuple[bytes, int | str]]  # path, and its row or why it was not delivered


class _Rows(Catalog):
    """A catalog of few rows that are used again and again. Each file is read once, and scanned then."""

    def __init__(self, num_rows: int) -> None:
        self.classes = ()
        self.quarantined = []
        self.labels = np.zeros(num_rows, np.int32)
        self.sizes = np.zeros((num_rows, 2), np.int32)
        self.num_samples = num_rows
        self.paths = [b""] * num_rows

    def path(self, sample: int) -> str:
        return os.fsdecode(self.paths[sample])

    def read_one(self, sample: int) -> np.ndarray:
        data = read_whole(self.paths[sample])
        header = scan_bytes(data.data)
        if header.reason is not None:
            raise UnreadableError(header.reason)
        self.sizes[sample] = header.height, header.width
        return data


def stream_pictures(paths: Iterable[bytes], options: LoaderOptions) -> Iterator[NamedBatch]:
    """Batches of pictures in the order of their paths, prepared as `EvalLoader` does, in memory that does not grow.

    Args:
        paths: taken a few batches ahead.
        options: of the loader; `on_quarantine` is not used.
    """
    size = options.batch_size
    reasons: dict[int, str] = {}  # by row, of pictures not yet yielded
    pending: deque[tuple[np.ndarray, list[bytes]]] = deque()
    catalog = _Rows(_BLOCKS * size)

    def note_reason(row: int, path: str, reason: str) -> None:
        reasons[row] = reason

    loader = EvalLoader(catalog, dataclasses.replace(options, on_quarantine=note_reason))
    assert loader.depth < _BLOCKS

    def slices() -> Iterator[np.ndarray]:
        remaining = iter(paths)
        for block in itertools.cycle(range(_BLOCKS)):
            names = list(itertools.islice(remaining, size))
            if not names:
                return
            rows = np.arange(block * size, block * size + len(names))
            catalog.paths[rows[0] : rows[-1] + 1] = names
            loader.bad_ids[rows] = False  # those of the pictures that had these rows before
            pending.append((rows, names))
            yield rows

    try:
        for batch in loader.over(slices()):
            ids, names = pending.popleft()
            found: dict[int, int | str] = {i: reasons.pop(i) for i in batch.lost_ids.tolist()}
            found.update((i, row) for row, i in enumerate(batch.ids[: batch.num_valid].tolist()))
            yield NamedBatch(batch.images, [(name, found[i]) for i, name in zip(ids.tolist(), names, strict=True)])
    finally:
        loader.close()
