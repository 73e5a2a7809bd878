"""The pictures of both splits under one numbering: those of train first, then those of val."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import numpy as np

from fastast.data.catalog import Catalog
from fastast.data.dataset import find_splits
from fastast.data.splits import num_files, open_or_list, scan_split
from fastast.scan.file_scan import Progress

Note = Callable[[str], object]


class Pictures:
    """What is audited.

    Args:
        splits: the catalogs by name, "train" and perhaps "val".

    Attributes:
        splits: the same, with labels in the order of `classes`.
        classes: names of all splits, sorted.
        labels: int32 [N].
        in_val: bool [N].
        sizes: int32 [N, 2], height and width, pixels.
        refused: files that the scan refused.
    """

    def __init__(self, splits: dict[str, Catalog]) -> None:
        self.classes = tuple(sorted({name for catalog in splits.values() for name in catalog.classes}))
        label_of = {name: label for label, name in enumerate(self.classes)}
        self.splits = {
            split: catalog.relabel(np.array([label_of[name] for name in catalog.classes], np.int32), self.classes)
            for split, catalog in splits.items()
        }
        self._catalogs = list(self.splits.values())
        counts = [catalog.num_samples for catalog in self._catalogs]
        self._starts = np.cumsum([0, *counts])
        self.labels = np.concatenate([catalog.labels for catalog in self._catalogs])
        self.sizes = np.concatenate([catalog.sizes for catalog in self._catalogs])
        self.in_val = np.repeat([split == "val" for split in self.splits], counts)
        # Two parts of one folder have the same list.
        self.refused = list({entry.path: entry for one in self._catalogs for entry in one.quarantined}.values())

    def __len__(self) -> int:
        return len(self.labels)

    def place(self, row: int) -> tuple[Catalog, int]:
        """The catalog that holds a picture, and its id there."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._catalogs[number], row - int(self._starts[number])

    def read(self, row: int) -> np.ndarray:
        """The encoded file, uint8 [bytes]; errors as of `Catalog.read_one`."""
        catalog, sample = self.place(row)
        return catalog.read_one(sample)

    def path(self, row: int) -> str:
        """Path of the file; bytes that are not UTF-8 become surrogates."""
        catalog, sample = self.place(row)
        return catalog.path(sample)

    def class_of(self, row: int) -> str:
        """Name of its class."""
        return self.classes[self.labels[row]]

    def split_of(self, row: int) -> str:
        """Name of its split."""
        return "val" if self.in_val[row] else "train"


def open_pictures(data: str | os.PathLike[str], *, progress: Progress, on_note: Note) -> Pictures:
    """Opens a data set, in any layout, with its val split if it has one.

    Raises:
        InputError: there is no such data set, or no readable picture in it.
    """
    listed = {split: open_or_list(source, split) for split, source in find_splits(data, on_note=on_note).items()}
    total, before = sum(map(num_files, listed.values())), 0
    splits = {}
    for split, files in listed.items():
        splits[split], _ = scan_split(files, functools.partial(_progress_after, progress, before, total), on_note)
        before += num_files(files)
    return Pictures(splits)


def _progress_after(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)
