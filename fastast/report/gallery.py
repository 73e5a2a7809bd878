"""Thumbnails of the pictures that the gate chose most and least often, and of those whose label is suspected."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from fastast.atomic_files import write_whole
from fastast.record.picture_tables import Samples
from fastast.record.run_record import RunRecord, clean

SIDE_PX = 96
MAX_PICTURES = 48
MAX_SUSPECTS = 24
IMPROBABLE = 0.05  # probability of the label below which it is suspected
# Larger files are skipped: they would delay the report.
MAX_PIXELS, MAX_BYTES = 100_000_000, 100_000_000
# What Pillow raises for pictures that it cannot decode.
UNDECODABLE = (OSError, ValueError, SyntaxError, ArithmeticError, Image.DecompressionBombError)


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


def gallery(record: RunRecord) -> dict[str, Any]:
    """Makes the thumbnails, and stores them in the run folder's `thumbs/` if it is writable.

    Returns:
        classes: name, rate, and the pictures selected most and least often (the extreme ones first) of each class, in
        order of label; num_classes: classes that have pictures at all; unreadable: (path, reason) of pictures that
        could not be shown.
    """
    samples = record.samples
    classes: list[dict[str, Any]] = []
    unreadable: list[tuple[str, str]] = []
    if samples is None:
        return {"classes": classes, "num_classes": 0, "unreadable": unreadable}
    rate = samples.selected / np.maximum(samples.offered, 1)
    for label, sides in choose(samples).items():
        name = record.classes[label] if 0 <= label < len(record.classes) else f"class {label}"
        most, least = (
            [shown for row in rows if (shown := _sample(record.path, samples, row, unreadable))] for rows in sides
        )
        mean = float(rate[(samples.label == label) & (samples.offered > 0)].mean())
        if most or least:
            classes.append({"name": name, "rate": mean, "most": most, "least": least})
    num_classes = len(np.unique(samples.label[samples.offered > 0]))
    return {"classes": classes, "num_classes": num_classes, "unreadable": unreadable}


def suspects(record: RunRecord, *, max_pictures: int = MAX_SUSPECTS) -> dict[str, Any]:
    """Pictures whose label was improbable when they were last trained or probed, the least probable first.

    A network learns a wrong label late or never, so these are where to look for wrong labels.

    Returns:
        pictures: what the page shows of each; num: how many there are in all; num_known: of so many.
    """
    samples = record.samples
    if samples is None:
        return {"pictures": [], "num": 0, "num_known": 0}
    found = np.flatnonzero(samples.last_loss > -np.log(IMPROBABLE))  # false for NaN
    found = found[np.argsort(-samples.last_loss[found], kind="stable")]
    pictures: list[dict[str, Any]] = []
    for row in found[: 2 * max_pictures]:  # some may be unreadable by now
        if len(pictures) < max_pictures and (shown := _sample(record.path, samples, row, [])):
            label = int(samples.label[row])
            name = record.classes[label] if 0 <= label < len(record.classes) else f"class {label}"
            pictures.append({**shown, "label": name})
    return {"pictures": pictures, "num": len(found), "num_known": int(np.isfinite(samples.last_loss).sum())}


def _sample(run: Path, samples: Samples, row: int, unreadable: list[tuple[str, str]]) -> dict[str, Any] | None:
    """What the page shows of a training picture: also its counts, and a tip with all of them."""
    offered, selected = int(samples.offered[row]), int(samples.selected[row])
    loss = float(samples.last_loss[row])
    tip = f"selected {selected:,} of {offered:,} times"
    if np.isfinite(loss):
        tip += f", last loss {loss:.3g}, probability of the label {np.exp(-loss):.2g}"
    shown = picture(samples.path(row), tip, unreadable, keep=run / "thumbs" / f"{int(samples.id[row])}.jpg")
    return None if shown is None else {**shown, "selected": selected, "offered": offered}


def picture(
    path: str, tip: str, unreadable: list[tuple[str, str]] | None = None, *, keep: Path | None = None
) -> dict[str, Any] | None:
    """What the page shows of a picture: the JPEG itself, its name, and its path with a tip.

    Args:
        path: of the picture.
        tip: stands behind the path.
        unreadable: gets path and reason if it cannot be shown; the result is then None.
        keep: also write the JPEG there, if that can be written.
    """
    try:
        jpeg = thumbnail(path)
    except UNDECODABLE as error:
        if unreadable is not None:
            unreadable.append((clean(path), clean(getattr(error, "strerror", None) or str(error))))
        return None
    if keep is not None:
        with contextlib.suppress(OSError):  # a read-only run folder is fine
            keep.parent.mkdir(exist_ok=True)
            write_whole(keep, jpeg)
    return {**embedded(jpeg, path), "tip": f"{clean(path)}: {tip}"}


def embedded(jpeg: bytes, path: str) -> dict[str, str]:
    """A thumbnail as an address that holds it, and the name of its picture."""
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return {"data_uri": uri, "name": clean(Path(path).name)}


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
    return square(path)


def square(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    """The same of a file that is known to be one.

    Raises:
        OSError: not a picture.
        ValueError: too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
            small = ImageOps.fit(image.convert("RGB"), (SIDE_PX, SIDE_PX))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=78)
    return out.getvalue()
