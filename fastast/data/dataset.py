"""Finds the class folders of a data set in its common layouts, and splits it into train and val."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastast.data.catalog import Catalog, Quarantined
from fastast.data.file_index import FileIndex, Progress, is_folder, list_files, scan_files, show_path, take
from fastast.data.pack import PackCatalog
from fastast.data.pack_index import is_pack, read_index
from fastast.errors import InputError
from fastast.philox import random_words

_VAL_NAMES = ("val", "validation", "valid", "test")  # the first that exists is taken
_PART = r"(\.X\d*)?"  # Kaggle's ImageNet-100: train.X1 ... train.X4 and val.X
_SPLIT_STREAM = 33  # distinct from the per-sample streams of fastast.philox
_SHOWN = 5  # names in one message


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
) -> Dataset:
    """Finds, lists and scans a data set: class folders, or a pack made from them.

    A pack may be named wherever a folder of class folders may be.

    Args:
        data: a pack; or a folder with `train/` and `val/` (or validation, valid, test; or train.X1.. and val.X), or
            with the class folders themselves.
        train_dirs: folders of class folders, merged; instead of `data`.
        val_dir: the folder of the validation class folders.
        val_split: share of each class's training pictures held out for validation, in (0, 1).
        seed: decides which pictures `val_split` takes.
        progress: called now and then as `progress(done, total)`, in files.

    Raises:
        InputError: there is no such data set; the message names the thing and the remedy.
    """
    train_roots, val_roots = _find_roots(data, train_dirs, val_dir, val_split)
    train_list = _open_or_list(train_roots, "train")
    val_list = _open_or_list(val_roots, "val") if val_roots else None
    first, total = _num_files(train_list), _num_files(train_list) + (_num_files(val_list) if val_list else 0)
    train, refused = _scan_split(train_list, progress and (lambda done, _: progress(done, total)))
    if val_list is None:
        assert val_split is not None
        in_val = _pick_validation(train.labels, val_split, seed)
        train, val = train.take(np.flatnonzero(~in_val)), train.take(np.flatnonzero(in_val))
        if val.num_samples == 0:
            where = show_path(train_roots[0])
            raise InputError(f"{where}: no class has two pictures, so --val-split can hold none out; add pictures")
    else:
        val, val_refused = _scan_split(val_list, progress and (lambda done, _: progress(first + done, total)))
        require_same_classes(train.classes, val.classes, train_roots[0], val_roots[0])
        require_same_bits(train.bits, val.bits, val_roots[0])
        refused = refused + val_refused
    fingerprint = hashlib.sha256((train.digest() + val.digest()).encode()).hexdigest()[:16]
    return Dataset(train, val, train.classes, fingerprint, refused)


def open_folder(directory: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Catalog:
    """One split for evaluation.

    Args:
        directory: a pack; or a folder with `val/` (or validation, valid, test), or with class folders.
        classes: the label order to map to; None: the folder's own classes, sorted. Classes without pictures are
            allowed, so that a part of the classes can be evaluated.

    Raises:
        InputError: no readable picture, or a class folder that `classes` does not name.
    """
    root = _require_folder(directory)
    names = _folder_names(root)
    roots = _matching(root, names, _VAL_NAMES)
    if not roots and _matching(root, names, ("train",)):
        raise InputError(f"{show_path(root)}: has train/ but no val/; name the folder that holds the class folders")
    roots = roots or [root]
    catalog, _ = _scan_split(_open_or_list(roots, "val"))
    if classes is None:
        return catalog
    order = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in catalog.classes if name not in order]
    if unknown:
        raise InputError(
            f"{show_path(roots[0])}: classes that the model does not know: {_some(unknown)}; remove or rename them"
        )
    labels = np.array([order[name] for name in catalog.classes], np.int32)
    return catalog.relabel(labels, tuple(classes))


# ---------------------------------------------------------------------------------------------- finding folders


def _find_roots(
    data: str | os.PathLike[str] | None,
    train_dirs: Sequence[str | os.PathLike[str]] | None,
    val_dir: str | os.PathLike[str] | None,
    val_split: float | None,
) -> tuple[list[Path], list[Path]]:
    """Folders that hold the class folders of train and val; no val folders when `val_split` makes the split."""
    if (data is None) == (not train_dirs):
        raise InputError("name the data once: --data DIR, or --train-dir A[,B...] with --val-dir C")
    if val_split is not None and not 0 < val_split < 1:
        raise InputError(f"--val-split {val_split:g}: must be in (0, 1), for example 0.05")
    if val_split is not None and val_dir is not None:
        raise InputError("--val-split and --val-dir: give one of them, not both")
    val_roots = [_require_folder(val_dir)] if val_dir is not None else []
    if data is None:
        assert train_dirs is not None
        train_roots = [_require_folder(folder) for folder in train_dirs]
    elif is_pack(data):
        train_roots = [Path(data)]
        if val_split is None and not val_roots and (Path(data) / "val.index").exists():
            val_roots = train_roots
    else:
        root = _require_folder(data)
        names = _folder_names(root)
        train_roots = _matching(root, names, ("train",))
        if not train_roots and not val_roots and val_split is None:
            _refuse_without_train(root, names)
        if val_split is None and not val_roots:
            val_roots = _matching(root, names, _VAL_NAMES)
        train_roots = train_roots or [root]
    if not val_roots and val_split is None:
        parent = train_roots[0].parent if data is None else Path(data)
        raise InputError(f"{show_path(parent)}: no val/ folder; add --val-dir DIR or --val-split 0.05")
    return train_roots, val_roots


def _matching(root: Path, names: list[str], wanted: Sequence[str]) -> list[Path]:
    """The folders of one split below `root`: of the first wanted name that exists, all parts."""
    for name in wanted:
        parts = [part for part in names if re.fullmatch(re.escape(name) + _PART, part)]
        if parts:
            return [root / part for part in sorted(parts)]
    return []


def _refuse_without_train(root: Path, names: list[str]) -> None:
    """Explains what is wrong with a folder without train/."""
    where = show_path(root)
    _refuse_below(root, names)
    if _matching(root, names, _VAL_NAMES):
        raise InputError(f"{where}: has no train/ folder; add one, or name it with --train-dir")
    raise InputError(f"{where}: class folders but no train/ and val/; add --val-split 0.05 or --val-dir DIR")


def _refuse_below(root: Path, names: list[str]) -> None:
    """Refuses a folder whose data set lies one level deeper, and one without folders."""
    for name in sorted(names):
        if _matching(root / name, _folder_names(root / name), ("train",)):
            raise InputError(f"{show_path(root)}: no train/ folder here; try --data {show_path(root / name)}")
    if not names:
        _refuse_without_classes(root)


def _refuse_without_classes(root: Path) -> None:
    """Explains a folder that has no folders in it."""
    num_files = sum(1 for entry in os.scandir(root) if not entry.name.startswith("."))
    if num_files == 0:
        raise InputError(f"{show_path(root)}: the folder is empty; name one with train/ and val/ class folders")
    raise InputError(
        f"{show_path(root)}: {num_files} files but no class folders; put each class's pictures in a folder of its own"
    )


def _require_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        raise InputError(f"{show_path(folder)}: no such folder; check the path") from None
    except NotADirectoryError:
        raise InputError(f"{show_path(folder)}: a file, not a folder; name the folder of class folders") from None
    except OSError as error:
        raise InputError(f"{show_path(folder)}: cannot be listed ({error.strerror}); check its permissions") from error
    return folder


def _folder_names(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)]
    except OSError:  # it is only looked at for a hint
        return []


# ---------------------------------------------------------------------------------------------- opening splits


def find_splits(source: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The folders that hold the class folders of each split of `source`: train and val, or train alone.

    Raises:
        InputError: there are no class folders.
    """
    root = _require_folder(source)
    names = _folder_names(root)
    train, val = _matching(root, names, ("train",)), _matching(root, names, _VAL_NAMES)
    if not train:
        _refuse_below(root, names)
        if val:
            raise InputError(f"{show_path(root)}: has no train/ folder; add one, or name {show_path(val[0])} itself")
        train = [root]
    return {"train": train, "val": val} if val else {"train": train}


def _open_or_list(roots: list[Path], split: str) -> FileIndex | Catalog:
    """A pack's split opened, or the files of class folders listed."""
    packs = [root for root in roots if is_pack(root)]
    if not packs:
        return list_split(roots)
    if len(roots) > 1:
        raise InputError(f"{show_path(packs[0])}: a pack cannot be merged with other folders; pack them together")
    index = read_index(packs[0])
    # A pack of bare class folders holds a single split, which serves wherever it is named.
    if split not in index.splits and len(index.splits) > 1:
        raise InputError(f"{show_path(packs[0])}: the pack holds no {split} pictures")
    return PackCatalog(index, split if split in index.splits else next(iter(index.splits)))


def _num_files(listed: FileIndex | Catalog) -> int:
    return listed.num_samples if isinstance(listed, Catalog) else len(listed)


def list_split(roots: list[Path]) -> FileIndex:
    """Lists the class folders of one split.

    Raises:
        InputError: there are none, or they lie one level deeper.
    """
    index = list_files(roots)
    if not index.classes:
        _refuse_without_classes(roots[0])
    if len(index.classes) == 1:
        _refuse_wrapped_classes(roots, index)
    return index


def _refuse_wrapped_classes(roots: list[Path], index: FileIndex) -> None:
    """Refuses a single "class" whose pictures all lie in two or more subfolders: the classes are one level deeper."""
    inner = {index.name(row).split(b"/")[1] for row in range(len(index)) if index.name(row).count(b"/") > 1}
    if len(inner) > 1 and all(index.name(row).count(b"/") > 1 for row in range(len(index))):
        deeper = roots[0] / os.fsdecode(index.classes[0])
        raise InputError(
            f"{show_path(roots[0])}: the class folders lie one level deeper; name {show_path(deeper)} instead"
        )


def _scan_split(index: FileIndex | Catalog, progress: Progress | None = None) -> tuple[Catalog, list[Quarantined]]:
    """Scans files and keeps the good ones; drops classes without any. Returns an open catalog as it is."""
    if isinstance(index, Catalog):
        return index, index.quarantined
    scan_files(index, progress)
    refused = [Quarantined(None, os.fsdecode(index.path(row)), index.reasons[row]) for row in sorted(index.reasons)]
    good = np.ones(len(index), bool)
    good[list(index.reasons)] = False
    if not good.any():
        raise InputError(_describe_nothing(index, refused))
    kept = take(index, np.flatnonzero(good))
    used, kept.labels = np.unique(kept.labels, return_inverse=True)
    kept.labels = kept.labels.astype(np.int32)
    classes = tuple(os.fsdecode(index.classes[label]) for label in used)
    return Catalog(kept, classes, refused), refused


def _describe_nothing(index: FileIndex, refused: list[Quarantined]) -> str:
    """One line on a split without a single readable picture."""
    found = [f"{count} {extension}" for extension, count in index.ignored.most_common(_SHOWN)]
    if refused:
        first = f"{show_path(refused[0].path)}: {refused[0].reason}"
        found.append(f"{len(refused)} refused pictures, the first {first}")
    return (
        f"{show_path(index.roots[0])}: no readable picture in {len(index.classes)} class folders; found "
        f"{'; '.join(found) or 'no files'}; put .jpg or .png pictures there"
    )


def require_same_classes(
    train: Sequence[str], val: Sequence[str], train_root: str | bytes | Path, val_root: str | bytes | Path
) -> None:
    """Checks that two splits have the same classes.

    Raises:
        InputError: one has a class that the other lacks.
    """
    for ours, theirs, root in ((train, val, train_root), (val, train, val_root)):
        missing = sorted(set(theirs) - set(ours))
        if missing:
            raise InputError(
                f"{show_path(root)}: no readable picture of {len(missing)} classes that the other split has: "
                f"{_some(missing)}; add pictures or remove those folders"
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


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(show_path(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
