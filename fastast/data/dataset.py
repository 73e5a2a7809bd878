"""Opens a data set in any layout that `layout` knows, scans its pictures, and splits it into train and val."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastast.data.catalog import Catalog, Quarantined
from fastast.data.duplicates import describe_duplicates
from fastast.data.layout import Layout, Source, find_classes, find_layout
from fastast.data.losses import describe_hidden
from fastast.data.splits import Note, num_files, open_or_list, scan_split
from fastast.errors import InputError
from fastast.number_text import counted
from fastast.philox import random_words
from fastast.scan.file_index import FileIndex, show_path, some_names
from fastast.scan.file_scan import Progress

_SPLIT_STREAM = 33  # distinct from the per-sample streams of fastast.philox


@dataclass
class Dataset:
    """A training and a validation split with the same classes.

    Attributes:
        train, val: the good pictures.
        classes: names, sorted; a label is an index into them.
        fingerprint: 16 hex digits that change when a class, a picture's path or its file size does.
        quarantined: the files that the scan refused.
    """

    train: Catalog
    val: Catalog
    classes: tuple[str, ...]
    fingerprint: str
    quarantined: list[Quarantined]


def open_dataset(
    data: str | os.PathLike[str] | None = None,
    *,
    train_dirs: Sequence[str | os.PathLike[str]] | None = None,
    val_dir: str | os.PathLike[str] | None = None,
    val_split: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_note: Note | None = None,
) -> Dataset:
    """Finds, lists and scans a data set: class folders, or a pack made from them.

    A pack may be named wherever a folder of class folders may be.

    Args:
        data: a pack; or a folder in a layout of `find_layout`.
        train_dirs: folders of class folders, merged; instead of `data`.
        val_dir: the folder of the validation class folders.
        val_split: share of each class's training pictures held out for validation, in (0, 1).
        seed: decides which pictures `val_split` takes.
        progress: called now and then as `progress(done, total)`, in files.
        on_note: called with one line at a time: the layout that was recognised, what is left out, what looks wrong.
            None also saves the search for what looks wrong.

    Raises:
        InputError: there is no such data set; the message names the thing and the remedy.
    """
    layout = _choose_layout(data, train_dirs, val_dir, val_split)
    train_source, val_source = layout.train, layout.val
    assert train_source is not None
    train_list = open_or_list(train_source, "train")
    val_list = open_or_list(val_source, "val") if val_source else None
    _introduce(layout, [train_list, val_list], on_note)
    first, total = num_files(train_list), num_files(train_list) + (num_files(val_list) if val_list else 0)
    train, lost = scan_split(train_list, progress and (lambda done, _: progress(done, total)), on_note)
    refused = train.quarantined
    if val_list is None:
        assert val_split is not None
        in_val = _pick_validation(train.labels, val_split, seed)
        train, val = train.take(np.flatnonzero(~in_val)), train.take(np.flatnonzero(in_val))
        if val.num_samples == 0:
            where = show_path(train_source.roots[0])
            raise InputError(f"{where}: no class has two pictures, so --val-split can hold none out; add pictures")
    else:
        assert val_source is not None
        val, val_lost = scan_split(val_list, progress and (lambda done, _: progress(first + done, total)), on_note)
        require_same_classes(
            train.classes, val.classes, train_source.roots[0], val_source.roots[0], {**lost, **val_lost}
        )
        require_same_bits(train.bits, val.bits, val_source.roots[0])
        refused = refused + val.quarantined
    fingerprint = hashlib.sha256((train.digest() + val.digest()).encode()).hexdigest()[:16]
    if on_note is not None:
        if len(train.classes) == 1:
            on_note(
                f"WARNING: a single class, {show_path(train.classes[0])}: any network is right on every picture; "
                "name the folder that holds the folders of all classes"
            )
        for line in describe_duplicates(train, val):
            on_note(f"WARNING: {line}")
    return Dataset(train, val, train.classes, fingerprint, refused)


def open_folder(
    directory: str | os.PathLike[str], classes: Sequence[str] | None = None, *, on_note: Note | None = None
) -> Catalog:
    """One split for evaluation.

    Args:
        directory: a pack; or a folder in a layout of `find_layout`, of which the validation split is taken; or one
            with class folders, or with pictures that a list of labels names.
        classes: the label order to map to; None: the folder's own classes, sorted. Classes without pictures are
            allowed, so that a part of the classes can be evaluated.
        on_note: as in `open_dataset`.

    Raises:
        InputError: no readable picture, or a class folder that `classes` does not name.
    """
    root = require_folder(directory)
    layout = find_layout(root)
    source = layout.val or (layout.train if layout.is_single else None)
    if source is None:
        raise InputError(
            f"{show_path(root)}: has train/ but no val/; name the folder that holds the class folders"
            if not layout.unlabelled
            else layout.missing
        )
    listed = open_or_list(source, "val")
    _introduce(layout, [listed], on_note)
    catalog, _ = scan_split(listed, None, on_note)
    if classes is None:
        return catalog
    order = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in catalog.classes if name not in order]
    if unknown:
        raise InputError(
            f"{show_path(source.roots[0])}: classes that the model does not know: {some_names(unknown)}; "
            "remove or rename them"
        )
    labels = np.array([order[name] for name in catalog.classes], np.int32)
    return catalog.relabel(labels, tuple(classes))


def find_splits(source: str | os.PathLike[str], *, on_note: Note | None = None) -> dict[str, Source]:
    """The splits of `source`: train and val, or train alone. `on_note` is told the layout.

    Raises:
        InputError: there are no class folders.
    """
    root = require_folder(source)
    layout = find_layout(root)
    if layout.train is None:
        assert layout.val is not None
        where = show_path(layout.val.roots[0])
        raise InputError(f"{show_path(root)}: has no train/ folder; add one, or name {where} itself")
    if on_note is not None:
        for line in (f"layout: {layout.name}", *layout.notes):
            on_note(line)
    return {"train": layout.train, "val": layout.val} if layout.val else {"train": layout.train}


def require_outside(
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    train_dirs: Sequence[str | os.PathLike[str]] | None = None,
    val_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Checks that a folder for output is not the data's folder and lies in none that is scanned for pictures.

    Raises:
        InputError: it does; the message names another one.
    """
    folder = Path(os.path.realpath(out))
    named = [Path(os.path.realpath(path)) for path in (data, val_dir, *(train_dirs or ())) if path]
    scanned = [*named[bool(data) :]]
    if data and any(root in folder.parents for root in named[:1]):
        splits = find_splits(data).values()
        scanned += [Path(os.path.realpath(root)) for source in splits for root in source.roots]
    inside = next((root for root in scanned if root in folder.parents), None)
    if inside is not None or folder in named:
        place = (inside or folder).parent / "runs" / folder.name
        raise InputError(
            f"--out {show_path(out)}: is {'in ' if inside else ''}the data folder; name one outside it, for example "
            f"--out {show_path(place)}"
        )


# ---------------------------------------------------------------------------------------------- finding splits


def _choose_layout(
    data: str | os.PathLike[str] | None,
    train_dirs: Sequence[str | os.PathLike[str]] | None,
    val_dir: str | os.PathLike[str] | None,
    val_split: float | None,
) -> Layout:
    """Where train and val lie; no `val` when `val_split` makes the split."""
    if (data is None) == (not train_dirs):
        raise InputError("name the data once: --data DIR, or --train-dir A[,B...] with --val-dir C")
    if val_split is not None and not 0 < val_split < 1:
        raise InputError(f"--val-split {val_split:g}: must be in (0, 1), for example 0.05")
    if val_split is not None and val_dir is not None:
        raise InputError("--val-split and --val-dir: give one of them, not both")
    held = find_classes(require_folder(val_dir), "val") if val_dir is not None else None
    if data is not None:
        root = require_folder(data)
        layout = find_layout(root)
        if layout.train is None:
            raise InputError(f"{show_path(root)}: has no train/ folder; add one, or name it with --train-dir")
    else:
        assert train_dirs is not None
        named = [find_classes(require_folder(folder), "train") for folder in train_dirs]
        layout = named[0]
        for other in named[1:]:
            layout = layout.merged(other)
        layout.missing = (
            f"{show_path(Path(train_dirs[0]).parent)}: no val/ folder; add --val-dir DIR or --val-split 0.05"
        )
    if held is not None:
        layout.name, layout.val = f"{layout.name} and {held.name}", held.train
        layout.notes = layout.notes + held.notes
    elif val_split is not None:
        layout.name, layout.val = f"{layout.name}, of train {val_split:g} is held out", None
    elif layout.val is None:
        raise InputError(layout.missing)
    return layout


def require_folder(path: str | os.PathLike[str]) -> Path:
    """The folder.

    Raises:
        InputError: there is none, or it cannot be listed.
    """
    folder = Path(path)
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        raise InputError(f"{show_path(folder)}: no such folder; check the path (fastast downloads no data)") from None
    except NotADirectoryError:
        raise InputError(f"{show_path(folder)}: a file, not a folder; name the folder of class folders") from None
    except OSError as error:
        raise InputError(f"{show_path(folder)}: cannot be listed ({error.strerror}); check its permissions") from error
    return folder


def _introduce(layout: Layout, listed: Sequence[FileIndex | Catalog | None], on_note: Note | None) -> None:
    """Says which layout was recognised, and what is left out before anything is scanned."""
    if on_note is None:
        return
    train = listed[0]
    assert train is not None
    classes = [os.fsdecode(train.classes[label]) for label in np.unique(train.labels).tolist()]
    on_note(f"layout: {layout.name}; {counted(len(classes), 'class', 'classes')}: {some_names(classes)}")
    for line in layout.notes:
        on_note(line)
    for index in listed:
        if isinstance(index, FileIndex):
            for line in describe_hidden(index):
                on_note(line)


def require_same_classes(
    train: Sequence[str],
    val: Sequence[str],
    train_root: str | bytes | Path,
    val_root: str | bytes | Path,
    losses: Mapping[str, str] | None = None,
) -> None:
    """Checks that two splits have the same classes.

    Args:
        train, val: their classes.
        train_root, val_root: for the message.
        losses: why a class has no readable picture.

    Raises:
        InputError: one has a class that the other lacks.
    """
    for ours, theirs, root in ((train, val, train_root), (val, train, val_root)):
        missing = sorted(set(theirs) - set(ours))
        if missing:
            why, classes = (losses or {}).get(missing[0]), counted(len(missing), "class", "classes")
            raise InputError(
                f"{show_path(root)}: no readable picture of {classes} that the other split has: "
                f"{some_names(missing)}{f' ({why})' if why else ''}; add pictures or remove those folders"
            )


def require_same_bits(train: int | None, val: int | None, val_root: str | Path) -> None:
    """Checks that pictures with 16 bits a channel became 8 bits by the same range.

    Raises:
        InputError: two packs of different ranges.
    """
    if train is not None and val is not None and train != val:
        raise InputError(
            f"{show_path(val_root)}: 16-bit pictures packed by another range ({val} bits) than those trained on "
            f"({train} bits); pack it again with --bits {train}"
        )


def _pick_validation(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool[N]: held out. Of a class of n, round(share * n), at least 1 where n > 1 and at most n - 1."""
    ids = np.arange(len(labels), dtype=np.int64)
    order = np.lexsort((random_words(seed, 0, ids, _SPLIT_STREAM)[0], labels))
    counts = np.bincount(labels)
    num_val = np.minimum(np.maximum(np.rint(share * counts).astype(np.int64), 1), counts - 1)
    first = np.cumsum(counts) - counts
    rank = np.empty_like(ids)  # place of each picture within its class's random order
    rank[order] = ids - first[labels[order]]
    return rank < num_val[labels]
