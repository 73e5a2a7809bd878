"""Reads which class a picture has, or which split, from the lists that public sets put beside their pictures."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastast.errors import InputError
from fastast.scan.file_index import PICTURE_EXTENSIONS, show_path

Labels = dict[bytes, bytes]  # class by relative path without extension

_MAX_BYTES = 2**30  # of a list
# Names of columns, the surer ones first: a list may number its lines as well.
_FILE_COLUMNS = ("filename", "file_name", "file", "path", "image", "image_id", "imageid", "id", "name")
_CLASS_COLUMNS = ("class", "label", "category", "breed", "species", "wnid", "target", "predictionstring")
_SET_OF = {"val_annotations.txt": " (Tiny-ImageNet)", "LOC_val_solution.csv": " (Kaggle's ILSVRC)"}
_TRUTH = "ILSVRC*validation_ground_truth.txt"


@dataclass
class FlatLabels:
    """The classes of pictures in one folder: the list's name, what it says, and what is to be noted."""

    name: str
    classes: Labels
    notes: list[str]


@dataclass
class SplitLists:
    """Pictures of class folders that belong to each split, with their classes; and the layout's name."""

    name: str
    train: Labels
    val: Labels


def read_split_lists(root: Path, pictures: Path) -> SplitLists | None:
    """The lists of Food-101 (`meta/train.txt`, or .json) and CUB-200 (`train_test_split.txt`); None without them.

    Args:
        root: the folder of the set.
        pictures: its folder of class folders.
    """
    meta = root / "meta"
    for extension in ("txt", "json"):
        train, val = meta / f"train.{extension}", meta / f"test.{extension}"
        if train.is_file() and val.is_file():
            found = [_by_folder(_listed_paths(file)) for file in (train, val)]
            return SplitLists(f"{pictures.name}/ with meta/train.{extension} and test.{extension} (Food-101)", *found)
    names, split = root / "images.txt", root / "train_test_split.txt"
    if names.is_file() and split.is_file():
        path_of, is_train = (
            dict(fields for line in _lines(file) if len(fields := line.split(maxsplit=1)) == 2)
            for file in (names, split)
        )
        parts = [_by_folder(path_of[k] for k, v in is_train.items() if v == flag and k in path_of) for flag in "10"]
        return SplitLists(f"{pictures.name}/ with train_test_split.txt (CUB-200-2011)", *parts)
    return None


def read_flat_labels(pictures: Path, split: Path) -> FlatLabels | None:
    """The classes of pictures that lie in one folder, from a list beside or above them; None without one.

    Read are Tiny-ImageNet's `val_annotations.txt`, Kaggle's `LOC_val_solution.csv`, `labels.csv` (lines of file,class;
    a header may name these columns among others), the same named after the split, and ILSVRC's ground truth if its
    numbers are explained by `map_clsloc.txt`.

    Args:
        pictures: the folder of the pictures.
        split: the split's folder: this one, or one above it.
    """
    stems = collections.Counter(_stem(name) for name in os.listdir(pictures) if _is_picture(name))
    names = {split.name.lower(), pictures.parent.name.lower()}
    lists = [stem for name in names for stem in (f"{name}_annotations", f"{name}_labels", name)]
    files = [f"{stem}.{extension}" for stem in (*lists, "labels") for extension in ("csv", "txt", "tsv")]
    folders = [pictures, *pictures.absolute().parents]
    places = [(folder, file) for folder in folders[:3] for file in files]
    places += [(folder, f"LOC_{name}_solution.csv") for folder in folders[:6] for name in names]
    for folder, file in places:
        if (folder / file).is_file():
            classes = {}
            with contextlib.suppress(csv.Error):  # no list of this kind
                classes = {stem: label for stem, label in _pairs(folder / file) if stem in stems}
            # Half of the pictures must be named, and more than one share a class: else it is another kind of list.
            if 2 * len(classes) >= len(stems) and 2 * len(set(classes.values())) <= len(classes):
                return _found(file, pictures, stems, classes)
    for folder in folders[:3]:
        for truth in (
            *folder.glob(_TRUTH),
            *folder.glob(f"*devkit*/{_TRUTH}"),
            *folder.glob(f"*devkit*/data/{_TRUTH}"),
        ):
            if (truth.parent / "map_clsloc.txt").is_file():
                return _found(truth.name, pictures, stems, _read_ground_truth(truth, stems))
    return None


def _found(file: str, pictures: Path, stems: collections.Counter[bytes], classes: Labels) -> FlatLabels:
    stem, count = stems.most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{show_path(pictures)}: {count} pictures are named {show_path(stem)} but for their extension, and {file} "
            "cannot tell them apart; rename or remove all but one"
        )
    missing = len(stems) - len(classes)
    note = f"{show_path(pictures)}: {missing:,} of {len(stems):,} pictures are not in {file}, left out"
    return FlatLabels(file + _SET_OF.get(file, ""), classes, [note] if missing else [])


def _read_ground_truth(truth: Path, stems: Iterable[bytes]) -> Labels:
    """ILSVRC's: line n is the class number of the picture ..._0000000n; the map has lines `WNID NUMBER NAME`."""
    wnid_of = {fields[1]: fields[0] for line in _lines(truth.parent / "map_clsloc.txt") if (fields := line.split())}
    numbers = [line.strip() for line in _lines(truth)]
    place = {stem: int(found[0]) for stem in stems if (found := re.search(rb"\d+$", stem))}
    return {
        stem: os.fsencode(wnid_of[numbers[number - 1]])
        for stem, number in place.items()
        if 0 < number <= len(numbers) and numbers[number - 1] in wnid_of
    }


def _pairs(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Name without extension, and class, of each line."""
    delimiter = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
    rows = csv.reader(io.StringIO(_text(file)), delimiter=delimiter) if delimiter else map(str.split, _lines(file))
    name_at, class_at = 0, 1
    for number, row in enumerate(rows):
        if number == 0 and delimiter:
            header = [field.strip().lower() for field in row]
            name_at = next((header.index(name) for name in _FILE_COLUMNS if name in header), 0)
            found = next((header.index(name) for name in _CLASS_COLUMNS if name in header), None)
            if found is None and len(row) != 2:
                return
            class_at = 1 if found is None else found
        if len(row) > max(name_at, class_at) and row[class_at].strip():
            label = row[class_at].strip()
            # Kaggle's ImageNet has boxes after the class.
            label = label.split()[0] if re.match(r"n\d{8}\b", label) else label
            yield _stem(os.path.basename(row[name_at].strip())), os.fsencode(label)


def _listed_paths(file: Path) -> Iterator[str]:
    """Relative paths of a list: one a line, or in JSON by class."""
    if file.suffix != ".json":
        yield from _lines(file)
        return
    try:
        lists = json.loads(_text(file))
        for paths in lists.values():
            yield from map(str, paths)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{show_path(file)}: not readable as lists of pictures by class; download it again") from error


def _by_folder(paths: Iterator[str]) -> Labels:
    """Class by path, where the first folder is the class."""
    return {_stem(path.strip()): os.fsencode(path.strip().split("/")[0]) for path in paths if "/" in path}


def _stem(name: str) -> bytes:
    return os.fsencode(os.path.splitext(name)[0] if _is_picture(name) else name)


def _is_picture(name: str) -> bool:
    return os.fsencode(os.path.splitext(name)[1].lower()) in PICTURE_EXTENSIONS


def _lines(file: Path) -> list[str]:
    return [line for line in _text(file).splitlines() if line.strip()]


def _text(file: Path) -> str:
    """A list's text; bytes that are not UTF-8 become surrogates, as in the names of files."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{show_path(file)}: over 1 GiB, no list of pictures; move it away")
        return file.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InputError(f"{show_path(file)}: cannot be read ({error.strerror}); check its permissions") from error
