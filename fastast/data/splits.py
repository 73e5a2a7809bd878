"""One split: a pack that is opened, or files that are listed and scanned."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import numpy as np

from fastast.data.catalog import Catalog, Quarantined
from fastast.data.layout import Source, refuse_without_classes
from fastast.data.losses import describe_losses, find_losses
from fastast.data.pack_catalog import PackCatalog
from fastast.errors import InputError
from fastast.number_text import counted
from fastast.scan.file_index import SHOWN, FileIndex, list_files, list_labelled, show_path, take
from fastast.scan.file_scan import Progress, scan_files
from fastast.scan.pack_index import is_pack, read_index

Note = Callable[[str], object]  # takes one line for people


def open_or_list(source: Source, split: str) -> FileIndex | Catalog:
    """A pack's split opened, or the files of class folders listed."""
    packs = [root for root in source.roots if is_pack(root)]
    if not packs:
        return list_split(source)
    if len(source.roots) > 1:
        raise InputError(f"{show_path(packs[0])}: a pack cannot be merged with other folders; pack them together")
    index = read_index(packs[0])
    # A pack of bare class folders holds a single split, which serves wherever it is named.
    if split not in index.splits and len(index.splits) > 1:
        raise InputError(f"{show_path(packs[0])}: the pack holds no {split} pictures")
    return PackCatalog(index, split if split in index.splits else next(iter(index.splits)))


def num_files(listed: FileIndex | Catalog) -> int:
    return listed.num_samples if isinstance(listed, Catalog) else len(listed)


def list_split(source: Source) -> FileIndex:
    """Lists the pictures of one split.

    Raises:
        InputError: there are no class folders.
    """
    if source.labels is not None:
        return list_labelled(source.roots[0], source.labels)
    index = list_files(source.roots)
    if not index.classes:
        refuse_without_classes(source.roots[0])
    return index


def scan_split(
    index: FileIndex | Catalog, progress: Progress | None, on_note: Note | None
) -> tuple[Catalog, dict[str, str]]:
    """Scans files and keeps the good ones; drops classes without any, and says why each has none.

    Returns an open catalog as it is.
    """
    if isinstance(index, Catalog):
        return index, {}
    scan_files(index, progress)
    refused = [Quarantined(None, os.fsdecode(index.path(row)), index.reasons[row]) for row in sorted(index.reasons)]
    good = np.ones(len(index), bool)
    good[list(index.reasons)] = False
    if not good.any():
        raise InputError(_describe_nothing(index, refused))
    losses = find_losses(index, good)
    if on_note is not None:
        for line in describe_losses(index, losses):
            on_note(line)
    kept = take(index, np.flatnonzero(good))
    used, kept.labels = np.unique(kept.labels, return_inverse=True)
    kept.labels = kept.labels.astype(np.int32)
    classes = tuple(os.fsdecode(index.classes[label]) for label in used)
    return Catalog(kept, classes, refused), losses


def _describe_nothing(index: FileIndex, refused: list[Quarantined]) -> str:
    """One line on a split without a single readable picture."""
    ignored = sum(index.ignored.values(), Counter())
    found = [f"{count} {extension}" for extension, count in ignored.most_common(SHOWN)]
    remedy = "put .jpg or .png pictures there"
    if refused:
        reason, count = Counter(entry.reason for entry in refused).most_common(1)[0]
        first = next(show_path(entry.path) for entry in refused if entry.reason == reason)
        share = "all" if count == len(refused) else f"{count:,} of them"
        found.append(f"{len(refused):,} refused, {share} as {first} is")
        remedy = reason
    where = f"{show_path(index.roots[0])}: no readable picture in {counted(len(index.classes), 'class folder')}"
    return f"{where}; found {'; '.join(found) or 'no files'}{':' if refused else ';'} {remedy}"
