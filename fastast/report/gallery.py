"""Thumbnails of the pictures that the gate chose most and least often."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastast.atomic_files import write_whole
from fastast.report.run_record import RunRecord, Samples, clean

SIDE_PX = 96
MAX_PICTURES = 96
# Larger files are skipped: they would delay the report.
MAX_PIXELS, MAX_BYTES = 100_000_000, 100_000_000


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture for the page.

    Attributes:
        data_uri: the JPEG itself.
        name: file name.
        tip: path, how often offered and selected, and last loss.
        selected, offered: counts.
    """

    data_uri: str
    name: str
    tip: str
    selected: int
    offered: int


@dataclass(frozen=True, slots=True)
class ClassThumbnails:
    """The pictures of one class that were selected most and least often, the extreme ones first."""

    name: str
    rate: float
    most: list[Thumbnail]
    least: list[Thumbnail]


@dataclass(frozen=True, slots=True)
class Gallery:
    """The thumbnails of a page.

    Attributes:
        classes: one entry per class shown, in order of label.
        num_classes: classes that have pictures at all.
        unreadable: (path, reason) of pictures that could not be shown.
    """

    classes: list[ClassThumbnails] = field(default_factory=list)
    num_classes: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def choose(samples: Samples, *, max_pictures: int = MAX_PICTURES) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Rows of the most and of the least often selected pictures of each class, by label.

    Last losses break ties. With many classes only those are kept that were selected most and least often.
    """
    offered = samples.offered > 0
    rate = samples.selected / np.maximum(samples.offered, 1)
    labels = np.unique(samples.label[offered])
    per_side = int(np.clip(max_pictures // (2 * max(1, len(labels))), 2, 4))
    limit = max_pictures // (2 * per_side)
    if len(labels) > limit:
        means = np.array([rate[offered & (samples.label == label)].mean() for label in labels])
        by_rate = labels[np.argsort(means, kind="stable")]
        labels = np.sort(np.concatenate([by_rate[: limit // 2], by_rate[-(limit - limit // 2) :]]))
    chosen = {}
    for label in labels:
        rows = np.flatnonzero(offered & (samples.label == label))
        # An unknown loss counts as the mean, which is at neither end.
        loss = np.nan_to_num(samples.last_loss[rows], nan=np.nanmean(np.append(samples.last_loss[rows], 0.0)))
        rows = rows[np.lexsort((rows, loss, rate[rows]))]
        size = min(per_side, len(rows) // 2) or 1
        chosen[int(label)] = rows[::-1][:size], rows[: size if len(rows) > 1 else 0]
    return chosen


def gallery(record: RunRecord) -> Gallery:
    """Makes the thumbnails, and stores them in the run folder's `thumbs/` if it is writable."""
    samples = record.samples
    if samples is None:
        return Gallery()
    result = Gallery(num_classes=len(np.unique(samples.label[samples.offered > 0])))
    rate = samples.selected / np.maximum(samples.offered, 1)
    for label, sides in choose(samples).items():
        name = record.classes[label] if 0 <= label < len(record.classes) else f"class {label}"
        shown = [[_picture(record, row, result.unreadable) for row in rows] for rows in sides]
        most, least = ([picture for picture in side if picture is not None] for side in shown)
        mean = float(rate[(samples.label == label) & (samples.offered > 0)].mean())
        if most or least:
            result.classes.append(ClassThumbnails(name, mean, most, least))
    return result


def _picture(record: RunRecord, row: int, unreadable: list[tuple[str, str]]) -> Thumbnail | None:
    samples = record.samples
    assert samples is not None, "no samples.npz"
    path = samples.path(row)
    try:
        jpeg = thumbnail(path)
    except (OSError, ValueError, SyntaxError, ArithmeticError, Image.DecompressionBombError) as error:
        unreadable.append((clean(path), clean(getattr(error, "strerror", None) or str(error))))
        return None
    with contextlib.suppress(OSError):  # a read-only run folder is fine
        folder = record.path / "thumbs"
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{int(samples.id[row])}.jpg", jpeg)
    offered, selected = int(samples.offered[row]), int(samples.selected[row])
    loss = float(samples.last_loss[row])
    tip = f"{clean(path)}: selected {selected:,} of {offered:,} times"
    if np.isfinite(loss):
        tip += f", last loss {loss:.3g}"
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return Thumbnail(uri, clean(Path(path).name), tip, selected, offered)


def thumbnail(path: str | os.PathLike[str]) -> bytes:
    """A square JPEG of the picture's middle.

    Raises:
        OSError: missing, not a plain file, or not a picture.
        ValueError: too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(22, "not a plain file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{status.st_size:,} bytes are too many")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
            small = ImageOps.fit(image.convert("RGB"), (SIDE_PX, SIDE_PX))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82)
    return out.getvalue()
