"""All that an audit found, and the CSV files of it."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastast.atomic_files import write_whole
from fastast.audit.fingerprints import Fingerprints
from fastast.audit.forecast import Forecast
from fastast.audit.groups import KINDS, LEAK, REPEATED, TWO_CLASSES, Group, is_exact
from fastast.audit.judgement import Judgement
from fastast.audit.pictures import Pictures
from fastast.number_text import counted


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found.

    Attributes:
        name: of what was audited, for people.
        pictures: all of them.
        prints: of each.
        groups: pictures that show the same.
        judgement: of a network; None without one.
        forecast: of a run; None without one.
    """

    name: str
    pictures: Pictures
    prints: Fingerprints
    groups: list[Group]
    judgement: Judgement | None = None
    forecast: Forecast | None = None

    def groups_of(self, kind: str) -> list[Group]:
        """Those of a kind."""
        return [group for group in self.groups if group.kind == kind]

    @property
    def num_leaked(self) -> int:
        """Pictures of val that are in train as well."""
        return sum(int(self.pictures.in_val[group.rows].sum()) for group in self.groups_of(LEAK))

    @property
    def suspects(self) -> np.ndarray:
        """Rows whose label is suspected, the most suspicious first."""
        return np.empty(0, np.int64) if self.judgement is None else self.judgement.suspects()

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Path and reason of files that the scan refused, or that do not decode."""
        refused = [(entry.path, entry.reason) for entry in self.pictures.refused]
        return refused + [(self.pictures.path(row), why) for row, why in sorted(self.prints.reasons.items())]

    def told(self) -> list[str]:
        """What matters, a line each, the worst first."""
        pictures, by_kind = self.pictures, {kind: self.groups_of(kind) for kind in KINDS}
        lines = []
        if self.num_leaked:
            lines.append(f"{_count(self.num_leaked, 'validation picture')} in train as well, which flatters accuracy")
        if groups := by_kind[TWO_CLASSES]:
            lines.append(f"{_count(len(groups), 'picture')} there under two labels")
        if groups := by_kind[REPEATED]:
            num = sum(len(group.rows) - 1 for group in groups)
            lines.append(f"{_count(num, 'copy', 'copies')} of other pictures within a split")
        if num := len(self.suspects):
            lines.append(f"{_count(num, 'label')} contradicted by the network")
        if num := len(self.unreadable):
            lines.append(f"{_count(num, 'file')} not readable")
        return lines or [f"nothing is wrong that this audit can see in {counted(len(pictures), 'picture')}"]

    def class_counts(self) -> list[tuple[str, int, int]]:
        """Name, pictures in train and pictures in val of each class."""
        labels, in_val, size = self.pictures.labels, self.pictures.in_val, len(self.pictures.classes)
        train, val = (np.bincount(labels[part], minlength=size).tolist() for part in (~in_val, in_val))
        return list(zip(self.pictures.classes, train, val, strict=True))


def _count(num: int, one: str, many: str | None = None) -> str:
    return f"{counted(num, one, many)} {'is' if num == 1 else 'are'}"


def write_tables(findings: Findings, folder: Path) -> list[Path]:
    """Writes `duplicates.csv`, `classes.csv`, `unreadable.csv`, and `labels.csv` where a network judged.

    Raises:
        OSError: they cannot be written.
    """
    tables = {
        "duplicates": (("group", "kind", "match", "likeness", "split", "class", "path"), _duplicates(findings)),
        "classes": (("class", "train", "val"), findings.class_counts()),
        "unreadable": (("path", "reason"), findings.unreadable),
    }
    if findings.judgement is not None:
        columns = ("split", "class", "probability", "predicted", "predicted_probability", "path")
        tables["labels"] = (columns, _labels(findings, findings.judgement))
    else:
        (folder / "labels.csv").unlink(missing_ok=True)  # of an earlier audit
    paths = []
    for name, (header, rows) in tables.items():
        paths.append(folder / f"{name}.csv")
        write_whole(paths[-1], functools.partial(_write_lines, header, rows))
    return paths


def _duplicates(findings: Findings) -> Iterator[tuple[Any, ...]]:
    for number, group in enumerate(findings.groups, 1):
        for row, likeness in zip(group.rows, group.likeness, strict=True):
            match = "exact" if is_exact(likeness) else "near"
            yield number, group.kind, match, f"{likeness:.3f}", *_place(findings.pictures, row)


def _labels(findings: Findings, judgement: Judgement) -> Iterator[tuple[Any, ...]]:
    for row in judgement.suspects().tolist():
        split, name, path = _place(findings.pictures, row)
        other = findings.pictures.classes[judgement.other[row]] if judgement.other[row] >= 0 else ""
        yield split, name, f"{judgement.label[row]:.6f}", other, f"{judgement.sure[row]:.6f}", path


def _place(pictures: Pictures, row: int) -> tuple[str, str, str]:
    return pictures.split_of(row), pictures.class_of(row), pictures.path(row)


def _write_lines(header: Sequence[str], rows: Iterable[Sequence[Any]], file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    text.detach()
