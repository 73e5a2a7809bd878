"""Finds the splits of a data set, and its class folders, in the layouts that public sets come in.

A name alone decides nothing: a folder is a split by a name such as `Training` or `seg_test` *and* because class
folders, or pictures that a list labels, lie in it, while what stands beside it are no classes. Whatever stays ambiguous
is refused with the command that says what is meant.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from fastast.data.annotations import read_flat_labels, read_split_lists
from fastast.data.folder_shape import BESIDE, DEPTH, IMAGES, MANY, folder_names, inner_folder, rooms_of, shape_of
from fastast.errors import InputError
from fastast.scan.file_index import is_hidden, show_path, some_names
from fastast.scan.pack_index import is_pack, read_index

_KINDS = {  # by name, in the order of preference
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "pred"), "test"),
}
_SPLIT = re.compile(
    rf"(?:(?P<prefix>.+)[ _-])?(?P<name>{'|'.join(_KINDS)})(?P<suffix>[ _-]?(?:set|data|split|images|imgs|\d{{1,4}}))?"
    r"(?P<part>\.X\d*)?",  # Kaggle's ImageNet-100: train.X1 ... train.X4 and val.X
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """Where the pictures of one split lie.

    Attributes:
        roots: folders of class folders; or a pack; or, with `labels`, one folder of pictures.
        labels: class by relative path without extension, from an annotation file; None: folders are classes.
    """

    roots: list[Path]
    labels: dict[bytes, bytes] | None = None


@dataclass
class Layout:
    """The splits that were found.

    Attributes:
        name: for people: which layout it is.
        train, val: None where there is none.
        missing: for people: why there is no `val`, and what to do.
        unlabelled: there are pictures for `val`, but nothing says their classes.
        is_single: bare class folders, which may serve for either.
        notes: what else was noticed, one line each.
    """

    name: str
    train: Source | None = None
    val: Source | None = None
    missing: str = ""
    unlabelled: bool = False
    is_single: bool = False
    notes: list[str] = field(default_factory=list)

    def merged(self, other: Layout) -> Layout:
        """The training pictures of both together.

        Raises:
            InputError: one of them is not of class folders.
        """
        assert self.train is not None
        assert other.train is not None
        if self.train.labels is not None or other.train.labels is not None:
            raise InputError(f"{self.name} and {other.name}: only class folders can be merged; name one of them")
        train = Source([*self.train.roots, *other.train.roots])
        return Layout(f"{self.name} and {other.name}", train, notes=self.notes + other.notes)


def find_layout(root: Path) -> Layout:
    """The layout of a pack or folder; bare class folders are a `train` without `val`.

    Raises:
        InputError: it is ambiguous, or holds no class folders.
    """
    shape_of.cache_clear()
    if is_pack(root):
        whole = Source([root])
        if len(read_index(root).splits) == 2:
            return Layout("pack", whole, whole)
        missing = f"{show_path(root)}: no val/ folder; add --val-dir DIR or --val-split 0.05"
        return Layout("pack", whole, missing=missing, is_single=True)
    folder = root
    for _ in range(DEPTH):
        names = folder_names(folder)
        if splits := _find_splits(folder, names):
            return _read_splits(root, splits)
        for name in filter(IMAGES.fullmatch, names):
            if lists := read_split_lists(folder, folder / name):
                train, val = (Source([folder / name], labels) for labels in (lists.train, lists.val))
                return Layout(lists.name, train, val)
        inner = inner_folder(folder, names)
        if inner is None:
            break
        folder = inner
    _refuse_ambiguous(folder, names)
    layout = Layout("class folders" + ("" if folder == root else f" in {_below(folder, root)}"), is_single=True)
    layout.missing = f"{show_path(root)}: class folders but no train/ and val/; add --val-split 0.05 or --val-dir DIR"
    layout.train = _read_source(folder, layout)
    if layout.train is None:
        refuse_without_classes(folder)
    if layout.train.labels is not None:
        layout.name = layout.name.replace("class folders", "pictures", 1)
    return layout


def find_classes(folder: Path, split: str) -> Layout:
    """The pictures of one split in a folder that the user named for it, whose folders are classes by that.

    Raises:
        InputError: it holds splits itself, or no class folders.
    """
    shape_of.cache_clear()
    where = show_path(folder)
    layout = Layout(f"--{split}-dir {where}", is_single=True)
    if is_pack(folder):
        layout.train = Source([folder])
        return layout
    splits = {}
    with contextlib.suppress(InputError):  # it may be either: then the user has just said which
        splits = _find_splits(folder, folder_names(folder))
    if len(splits) > 1 and "nested" in (shape_of(part) for group in splits.values() for part in group):
        raise InputError(f"{where}: holds {some_names(list(splits))}, not classes; name it with --data {where}")
    layout.train = _read_source(folder, layout)
    if layout.train is None:
        refuse_without_classes(folder)
    return layout


# ---------------------------------------------------------------------------------------------- splits


def _find_splits(folder: Path, names: list[str]) -> dict[str, list[Path]]:
    """The folders of each split, by the name that they share, in the order of preference; {} if they are classes.

    Raises:
        InputError: they may be either.
    """
    matches = {name: match for name in names if (match := _SPLIT.fullmatch(name))}
    kinds_of: dict[str | None, set[str]] = {}
    for match in matches.values():
        kinds_of.setdefault(match["prefix"], set()).add(_KINDS[match["name"].lower()])
    # With a prefix, only train and test together are splits: seg_train and seg_test, not bullet_train.
    matches = {n: m for n, m in matches.items() if m["prefix"] is None or {"train", "test"} <= kinds_of[m["prefix"]]}
    if not matches:
        return {}
    shapes = {name: shape_of(folder / name) for name in matches}
    kinds = {_KINDS[match["name"].lower()] for match in matches.values()}
    others = [n for n in names if n not in matches and not BESIDE.fullmatch(n)]
    others = [name for name in others[:MANY] if shape_of(folder / name)]
    if others and not (len(kinds) > 1 and "nested" in shapes.values()):
        if len(kinds) == 1 and "nested" not in shapes.values():
            return {}  # CIFAR-100 has a class "train"
        some, first = (
            f"{some_names(list(matches))} beside {some_names(others)}",
            show_path(folder / next(iter(matches))),
        )
        raise InputError(
            f"{show_path(folder)}: {some} may be splits or classes; if splits: --train-dir {first} --val-split 0.05; "
            f"if classes: --train-dir {show_path(folder)} --val-split 0.05"
        )
    groups: dict[str, list[Path]] = {}
    order = list(_KINDS)
    for name, match in sorted(matches.items(), key=lambda item: (order.index(item[1]["name"].lower()), item[0])):
        groups.setdefault(name[: match.start("part")] if match["part"] else name, []).append(folder / name)
    return groups


def _read_splits(root: Path, splits: dict[str, list[Path]]) -> Layout:
    """The training split, and of the others the first that has labels."""
    layout = Layout("", missing=f"{show_path(root)}: no val/ folder; add --val-dir DIR or --val-split 0.05")
    used, unused = [], []
    for name, folders in splits.items():
        match = _SPLIT.fullmatch(folders[0].name)
        assert match is not None
        is_train = _KINDS[match["name"].lower()] == "train"
        source = None if layout.val and not is_train else _read_source(folders[0], layout, folders[1:])
        if source is None and is_train:
            refuse_without_classes(folders[0])
        if source is None:
            unused.append(f"{name}/")
            if layout.val is None and shape_of(folders[0]):
                flat = f"{show_path(folders[0])}: pictures without class folders or a list of labels"
                remedy = "put labels.csv (lines of file,class) beside them, or add --val-split 0.05"
                layout.missing = layout.missing if layout.unlabelled else f"{flat}; {remedy}"
                layout.unlabelled = True
                layout.notes.append(f"{flat}, ignored")
        elif is_train and layout.train is not None:
            both = ",".join(show_path(folder) for folder in (*layout.train.roots, *folders))
            raise InputError(f"{show_path(root)}: two folders for training; name them: --train-dir {both} --val-dir C")
        else:
            used += [_below(folder, root) + "/" for folder in source.roots]
            layout.train, layout.val = (source, layout.val) if is_train else (layout.train, source)
    layout.name = " and ".join(used) + (f", {layout.name}" if layout.name else "")
    layout.name += f" ({', '.join(unused)} not used)" if unused else ""
    return layout


def _read_source(folder: Path, layout: Layout, more: list[Path] | None = None) -> Source | None:
    """Class folders in `folder` and `more`, or deeper; or pictures that a file labels; None if there is neither."""
    if more or is_pack(folder):
        return Source([folder, *(more or ())])
    start = folder
    for _ in range(DEPTH):
        names = folder_names(folder)
        pictures = folder
        if shape_of(folder) == "flat" and not _has_classes(folder, names):
            pictures = next((folder / n for n in names if IMAGES.fullmatch(n) and shape_of(folder / n)), folder)
            labels = read_flat_labels(pictures, start)
            if labels is None:
                return None
            layout.name = layout.name + (", " if layout.name else "") + labels.name
            layout.notes += labels.notes
            return Source([pictures], labels.classes)
        inner = inner_folder(folder, names)
        if inner is None:
            return Source([folder]) if names else None
        folder = inner
    return Source([folder])


def _has_classes(folder: Path, names: list[str]) -> bool:
    """Whether a folder has folders that may be classes: such as hold pictures, and are no mere `images`."""
    return any(not IMAGES.fullmatch(name) and shape_of(folder / name) for name in names)


def _refuse_ambiguous(folder: Path, names: list[str]) -> None:
    """Refuses folders that are hardly the classes, though nothing names them splits.

    Raises:
        InputError: the message says how to name the splits, and how to insist on the classes.
    """
    rooms = rooms_of(folder, names)
    holders = [name for name, shape in rooms.items() if shape == "nested"] if len(rooms) > 1 else []
    where = show_path(folder)
    insist = f"if these are the classes: --train-dir {where} --val-split 0.05"
    for name in holders:
        if IMAGES.fullmatch(name) or _find_splits(folder / name, folder_names(folder / name)):
            raise InputError(
                f"{where}: {some_names(list(rooms))} beside each other, but the class folders seem to lie in {name}; "
                f"try --data {where}/{show_path(name)}; {insist}"
            )
    inner = [set(_class_names(folder / name)) for name in holders]
    if len(inner) == len(rooms) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        dirs = [f"{where}/{show_path(name)}" for name in holders]
        raise InputError(
            f"{where}: {some_names(holders)} hold folders of the same names; if these are splits: "
            f"--train-dir {','.join(dirs[:-1])} --val-dir {dirs[-1]}; {insist}"
        )


def _class_names(folder: Path) -> list[str]:
    names = folder_names(folder)
    return folder_names(folder / names[0]) if len(names) == 1 and IMAGES.fullmatch(names[0]) else names


def refuse_without_classes(root: Path) -> NoReturn:
    """Explains a folder without class folders.

    Raises:
        InputError: always.
    """
    num_files = sum(1 for entry in os.scandir(root) if not is_hidden(entry.name))
    if num_files == 0:
        raise InputError(f"{show_path(root)}: the folder is empty; name one with train/ and val/ class folders")
    raise InputError(
        f"{show_path(root)}: {num_files} files but no class folders; put each class's pictures in a folder of its own, "
        "or labels.csv (lines of file,class) beside them"
    )


def _below(folder: Path, root: Path) -> str:
    return show_path(os.path.relpath(folder, root))
