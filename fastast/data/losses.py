"""Says which classes lose all or most of their pictures, and why."""

from __future__ import annotations

import os
import re
from collections import Counter

import numpy as np

from fastast.number_text import counted
from fastast.scan.file_index import PICTURE_EXTENSIONS, SHOWN, FileIndex, is_folder, show_path, some_names

_DOCUMENT = re.compile(r"\.(txt|[ct]sv|json|xml|md|html?|ya?ml|log|mat|np[yz]|db|ini|pdf)")


def find_losses(index: FileIndex, good: np.ndarray) -> dict[str, str]:
    """Why a class has lost all or most of what may be its pictures, by its name.

    Args:
        index: a scanned index.
        good: bool[N], the pictures that are kept.
    """
    listed = np.bincount(index.labels, minlength=len(index.classes))
    kept = np.bincount(index.labels[good], minlength=len(index.classes))
    first_reason: dict[int, str] = {}
    for row in sorted(index.reasons, reverse=True):
        first_reason[int(index.labels[row])] = index.reasons[row]
    losses = {}
    for label, name in enumerate(index.classes):
        ignored = index.ignored.get(name, Counter())
        other = {kind: count for kind, count in ignored.items() if not _DOCUMENT.fullmatch(kind) or kept[label] == 0}
        lost = int(listed[label] - kept[label]) + sum(other.values())
        if kept[label] > lost or (kept[label] == lost and lost > 0):
            continue
        found = [
            f"{count:,} {'files ' if kind == 'no extension' else ''}{_with(kind)}" for kind, count in other.items()
        ]
        if label in first_reason:
            found.insert(0, f"{listed[label] - kept[label]:,} refused: {first_reason[label]}")
        losses[os.fsdecode(name)] = ", ".join(found) or "no files"
    return losses


def describe_losses(index: FileIndex, losses: dict[str, str]) -> list[str]:
    """A line on what `find_losses` found, with the remedy."""
    shown = "; ".join(f"{show_path(name)} ({why})" for name, why in list(losses.items())[:SHOWN])
    more = f"; and {len(losses) - SHOWN:,} more" if len(losses) > SHOWN else ""
    where, classes = show_path(index.roots[0]), counted(len(losses), "class", "classes")
    line = (
        f"WARNING: {where}: most or all pictures of {classes} are left out: {shown}{more}; "
        "name files by their kind (.jpg, .png); `fastast pack` converts WebP, PPM and other kinds"
    )
    return [line] if losses else []


def _with(kind: str) -> str:
    return "without an extension" if kind == "no extension" else kind


def describe_hidden(index: FileIndex) -> list[str]:
    """A line on folders of pictures that are left out since their names begin with a dot, as `.NET` does."""
    found = []
    for root in index.roots:
        with os.scandir(root) as entries:
            hidden = [entry for entry in entries if entry.name.startswith(b".") and is_folder(entry)]
        found += [entry.path for entry in hidden if _holds_pictures(entry.path)]
    return [f"WARNING: left out, since its name begins with a dot: {some_names(found)}; rename it"] if found else []


def _holds_pictures(folder: bytes) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in PICTURE_EXTENSIONS for entry in entries)
    except OSError:
        return False
