"""Reads what a run knows of single pictures: `samples.npz` and `predictions.npz`, as untrusted input."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastast.errors import InputError


class Samples(NamedTuple):
    """The columns of `samples.npz`, N training pictures."""

    id: np.ndarray  # int[N]
    label: np.ndarray  # int[N]
    path_bytes: np.ndarray  # uint8, all paths end to end
    path_starts: np.ndarray  # int64[N + 1], where each begins, and the end
    offered: np.ndarray  # int[N], a count
    selected: np.ndarray  # int[N], a count
    last_loss: np.ndarray  # float[N], NaN where none is known

    def path(self, row: int) -> str:
        """Path of a picture; bytes that are not UTF-8 become surrogates."""
        return _path(self.path_bytes, self.path_starts, row)


class Predictions(NamedTuple):
    """The columns of `predictions.npz`, V validation pictures."""

    label: np.ndarray  # int[V]
    path_bytes: np.ndarray  # as of `Samples`
    path_starts: np.ndarray
    predicted: np.ndarray  # int[V], the most probable class, -1 where the picture could not be decoded
    probability: np.ndarray  # float[V], of that class

    @property
    def known(self) -> np.ndarray:
        """bool[V]: pictures that were evaluated."""
        return self.predicted >= 0

    @property
    def right(self) -> np.ndarray:
        """bool[V]: pictures of which the label was the most probable class."""
        return self.predicted == self.label

    def path(self, row: int) -> str:
        """Path of a picture; bytes that are not UTF-8 become surrogates."""
        return _path(self.path_bytes, self.path_starts, row)


_PATHS = {"path_bytes": "u", "path_starts": "i"}


def read_samples(path: Path) -> Samples:
    """Reads `samples.npz`.

    Raises:
        InputError: it is not what a run writes.
    """
    kinds = {"id": "iu", "label": "iu", "offered": "iu", "selected": "iu", "last_loss": "f", **_PATHS}
    return Samples(**_read_columns(path, kinds))


def read_predictions(path: Path) -> Predictions:
    """Reads `predictions.npz`.

    Raises:
        InputError: it is not what a run writes.
    """
    kinds = {"label": "iu", "predicted": "i", "probability": "f", **_PATHS}
    return Predictions(**_read_columns(path, kinds))


def _path(path_bytes: np.ndarray, path_starts: np.ndarray, row: int) -> str:
    begin, end = path_starts[row : row + 2]
    return os.fsdecode(path_bytes[begin:end].tobytes())


def _read_columns(path: Path, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Columns of the given kinds of numbers, all of one length, and paths that fit them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            earlier = "path" in file and "path_bytes" not in file
            columns = {name: file[name] for name in kinds if not (earlier and name.startswith("path"))}
            if earlier:  # of earlier versions, of one width
                paths = file["path"].astype(np.bytes_).tolist()
                columns["path_bytes"] = np.frombuffer(b"".join(paths), np.uint8)
                columns["path_starts"] = np.cumsum([0, *map(len, paths)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError) as error:
        raise InputError(f"{path}: not the {path.name} of a run ({type(error).__name__})") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__})") from error
    num = columns["label"].size
    lengths = dict.fromkeys(kinds, num) | {"path_starts": num + 1, "path_bytes": columns["path_bytes"].size}
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in kinds[name] or len(column) != lengths[name]:
            raise InputError(f"{path}: column {name} has the wrong type or length ({column.dtype}, {column.shape})")
    starts = columns["path_starts"]
    if starts[0] != 0 or starts[-1] != columns["path_bytes"].size or (np.diff(starts) < 0).any():
        raise InputError(f"{path}: path_starts do not fit path_bytes")
    return columns
