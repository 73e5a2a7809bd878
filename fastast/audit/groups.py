"""Pictures that show the same, as groups: leaks from train into val first, then those with two labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastast.audit.fingerprints import Fingerprints
from fastast.audit.near_duplicates import Progress, find_pairs
from fastast.audit.pictures import Pictures

LEAK, TWO_CLASSES, REPEATED = "leak", "two classes", "repeated"
KINDS = (LEAK, TWO_CLASSES, REPEATED)
# Of pictures that differ in their bytes alone, such as PNGs of another compression.
_MOST_ALIKE = np.nextafter(np.float32(1), np.float32(0))


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures that show the same.

    Attributes:
        kind: LEAK if some are in train and some in val; else TWO_CLASSES if their labels differ; else REPEATED.
        rows: of the pictures, those of train first.
        likeness: of each to the one that resembles it most, in [0, 1]; 1 where the bytes are the same.
    """

    kind: str
    rows: list[int]
    likeness: list[float]


def find_groups(pictures: Pictures, prints: Fingerprints, progress: Progress | None = None) -> list[Group]:
    """The groups by kind, the surest first.

    Args:
        pictures: all of them.
        prints: of each.
        progress: as of `find_pairs`.
    """
    readable = np.flatnonzero(prints.readable)
    _, first, same = np.unique(prints.digests[readable], axis=0, return_index=True, return_inverse=True)
    same = same.reshape(-1)
    distinct = np.sort(readable[first])  # one of each
    original = readable[first][same]  # of each readable picture, the one that stands for it
    pairs = find_pairs(prints.views[distinct], _MappedRows(prints.thumbs, distinct), progress)
    a, b = distinct[pairs.a], distinct[pairs.b]
    copies = readable != original
    a, b = np.concatenate([a, original[copies]]), np.concatenate([b, readable[copies]])
    alike = np.concatenate([np.minimum(pairs.likeness, _MOST_ALIKE), np.ones(copies.sum(), np.float32)])
    likeness: dict[int, float] = {}
    for one, other, value in zip(a.tolist(), b.tolist(), alike.tolist(), strict=True):
        for row in (one, other):
            likeness[row] = max(likeness.get(row, 0.0), value)
    groups = [_group(pictures, rows, likeness) for rows in _joined(a, b)]
    return sorted(groups, key=lambda group: (KINDS.index(group.kind), -max(group.likeness), group.rows[0]))


def is_exact(likeness: float) -> bool:
    """Whether a likeness says that the bytes are the same."""
    return likeness == 1.0


class _MappedRows:
    """Some rows of an array that is mapped from a file, read as they are asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self._array[self._rows[places]]


def _joined(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """The connected rows of some pairs, each list in order."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = {}
    for row in sorted(parent):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def _group(pictures: Pictures, rows: list[int], likeness: dict[int, float]) -> Group:
    if len(set(pictures.in_val[rows].tolist())) == 2:
        kind = LEAK
    else:
        kind = TWO_CLASSES if len(set(pictures.labels[rows].tolist())) > 1 else REPEATED
    return Group(kind, rows, [likeness[row] for row in rows])
