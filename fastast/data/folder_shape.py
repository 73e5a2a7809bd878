"""The shape of folders: whether pictures lie in them, or folders of pictures, and at which level."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from fastast.scan.file_index import PICTURE_EXTENSIONS, RUN_FILE, is_folder, is_hidden

IMAGES = re.compile(r"images?|imgs?|jpe?g(images)?|pictures|photos|data|\d+_ObjectCategories", re.IGNORECASE)
# Folders that stand beside class folders and hold no pictures to train on, though perhaps masks or drawings.
BESIDE = re.compile(
    r"meta(data)?|annotations?|lists?|labels?|masks?|segmentations?|attributes?|parts?|image_?sets?|splits?|bbox(es)?|"
    r"docs?|.*devkit.*",
    re.IGNORECASE,
)
DEPTH = 4  # levels of folders that are looked into
MANY = 50  # folders; so many are classes, and are not looked into one by one


def folder_names(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none if it cannot be listed."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not is_hidden(entry.name) and is_folder(entry))
    except OSError:  # listing its pictures says why
        return []


def inner_folder(folder: Path, names: list[str]) -> Path | None:
    """The single folder that holds the class folders or splits, one level deeper; None if they lie right here."""
    rooms = rooms_of(folder, names)
    if len(rooms) != 1 or next(iter(rooms.values())) != "nested":
        return None
    inner = folder / next(iter(rooms))
    below = rooms_of(inner, folder_names(inner))
    if len(below) > 1 or (below and inner_folder(inner, list(below)) is not None):
        return None if _holds_pictures(inner) else inner
    # A single class with a single folder in it is the class, unless the outer name is none.
    return inner if below and IMAGES.fullmatch(inner.name) else None


def rooms_of(folder: Path, names: list[str]) -> dict[str, str]:
    """The shape of each folder that holds pictures, without masks and the like beside an `images` folder."""
    if len(names) > MANY:
        return dict.fromkeys(names, "flat")
    shapes = {name: shape for name in names if (shape := shape_of(folder / name))}
    plain = [name for name in shapes if not BESIDE.fullmatch(name)]
    return {plain[0]: shapes[plain[0]]} if len(plain) == 1 and IMAGES.fullmatch(plain[0]) else shapes


@functools.cache  # emptied by each search, which asks for the same folders several times
def shape_of(folder: Path, depth: int = DEPTH) -> str:
    """ "nested" if folders of pictures lie in it, "flat" if pictures do (or in its `images`), else ""."""
    files, images = False, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.name == os.fsdecode(RUN_FILE):
                    return ""
                if is_folder(entry):
                    if IMAGES.fullmatch(entry.name):
                        images.append(entry.name)
                    elif depth and shape_of(folder / entry.name, depth - 1):
                        return "nested"
                else:
                    files = files or _is_picture(entry.name)
    except OSError:
        return ""
    inner = [shape_of(folder / name, depth - 1) for name in images] if depth else []
    return "nested" if "nested" in inner else "flat" if files or "flat" in inner else ""


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_picture(entry.name) and not is_folder(entry) for entry in entries)


def _is_picture(name: str) -> bool:
    return not is_hidden(name) and os.path.splitext(name)[1].lower().encode() in PICTURE_EXTENSIONS
