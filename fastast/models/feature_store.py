"""Features of a data set: on the device where they fit, else in a file. Once saved, they outlast the process."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastast.errors import InputError

CHUNK = 4096  # rows that are worked on at a time
HOST_BYTES = 1 << 30  # on the CPU, features of this size stay in memory
DEVICE_SHARE = 0.25  # on a GPU, of its free memory


class FeatureStore:
    """Rows of features as float16, each of a picture; to be closed after use.

    Args:
        num_rows: that will be appended, at most.
        num_features: F.
        labels, folds: int64 [N], of all pictures, on the device where the features come from and are used.
        path: of the file for what does not fit, and for `save`. None, or a folder that is not there: a temporary file
            without a name, and nothing is saved.

    Raises:
        InputError: the file finds no space.

    Attributes:
        num_features, device: as given.
        num_rows: appended so far.
    """

    def __init__(
        self, num_rows: int, num_features: int, labels: Tensor, folds: Tensor, path: Path | None = None
    ) -> None:
        self.num_features = num_features
        self.num_rows = self._num_saved = 0
        self.device = labels.device
        self._all_labels, self._all_folds = labels, folds
        self._ids = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        self._record = np.dtype([("id", "<i8"), ("features", "<f2", num_features)])
        self._path = path if path is not None and path.parent.is_dir() else None
        needed, fits = num_rows * self._record.itemsize, HOST_BYTES
        if self.device.type == "cuda":
            fits = int(DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0])
        self._rows: Tensor | None = None
        self._file = -1
        if needed <= fits:
            self._rows = torch.zeros((num_rows, num_features), dtype=torch.float16, device=self.device)
        else:
            try:
                self._file = self._open()
                os.posix_fallocate(self._file, 0, needed)
            except OSError as error:
                self.close()
                raise InputError(
                    f"--start probe: {path.parent if path else tempfile.gettempdir()} has no room for "
                    f"{needed / 1e9:.1f} GB of features ({os.strerror(error.errno or 0)}); free some space, or name "
                    "another --out"
                ) from error

    def close(self) -> None:
        """Frees the memory; the file stays, if it has a name."""
        self._rows = None
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def append(self, features: Tensor, ids: Tensor) -> None:
        """Adds rows; without a file the host does not wait for the device.

        Args:
            features: [n, F], any float type.
            ids: int64 [n], of their pictures.
        """
        place = slice(self.num_rows, self.num_rows + len(features))
        self._ids[place] = ids
        rows = features.clamp(-65504, 65504).half()  # NaN stays
        if self._rows is not None:
            self._rows[place] = rows
        else:
            self._write(self._file, place.start, rows, ids)
        self.num_rows = place.stop

    def save(self) -> int:
        """Makes the rows so far outlast this process, and a crash of the machine.

        Returns:
            How many rows can be kept by the next: 0 without a file, or without space for it.
        """
        if self._path is None:
            return 0
        try:
            if self._rows is None:
                os.fsync(self._file)
            else:
                self._save_rows(self._rows)
        except OSError:  # as a checkpoint that cannot be written, this costs the next process time, and no result
            return 0
        self._num_saved = self.num_rows
        return self._num_saved

    def restore(self, ids: np.ndarray) -> bool:
        """Begins with the first rows of the file, if they are those of these pictures; else with none.

        Args:
            ids: int64 [n], of the pictures whose rows an earlier process saved, in their order.

        Returns:
            Whether it holds rows of all of them now.
        """
        self.num_rows = self._num_saved = 0
        if self._path is None or not self._path.exists():
            return not len(ids)
        file = self._open()
        try:
            for first in range(0, len(ids), CHUNK):
                wanted = ids[first : first + CHUNK]
                place = slice(first, first + len(wanted))
                records = self._read(file, place)
                if not np.array_equal(records["id"], wanted):
                    return False
                self._ids[place] = torch.from_numpy(wanted)
                if self._rows is not None:
                    self._rows[place] = torch.from_numpy(records["features"].copy())
        finally:
            os.close(file)
        self.num_rows = self._num_saved = len(ids)
        return True

    def _save_rows(self, rows: Tensor) -> None:
        file = self._open()
        try:
            for first in range(self._num_saved, self.num_rows, CHUNK):
                place = slice(first, min(first + CHUNK, self.num_rows))
                self._write(file, first, rows[place], self._ids[place])
            os.fsync(file)
        finally:
            os.close(file)

    def _open(self) -> int:
        if self._path is not None:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    def _write(self, file: int, first: int, features: Tensor, ids: Tensor) -> None:
        records = np.empty(len(ids), self._record)
        records["id"], records["features"] = ids.cpu().numpy(), features.cpu().numpy()
        if os.pwrite(file, records.tobytes(), first * self._record.itemsize) < records.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _read(self, file: int, place: slice) -> np.ndarray:
        data = os.pread(file, (place.stop - place.start) * self._record.itemsize, place.start * self._record.itemsize)
        return np.frombuffer(data, self._record, len(data) // self._record.itemsize)

    @property
    def ids(self) -> Tensor:
        """Of the pictures of all rows, int64 [n]."""
        return self._ids[: self.num_rows]

    @property
    def labels(self) -> Tensor:
        """Of all rows, int64 [n]."""
        return self._all_labels[self.ids]

    @property
    def folds(self) -> Tensor:
        """Of all rows, int64 [n]."""
        return self._all_folds[self.ids]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features float16 [n, F], labels and folds int64 [n] of at most CHUNK rows at a time, on the device.

        There is one chunk at least, which may be empty.
        """
        for first in range(0, max(1, self.num_rows), CHUNK):
            place = slice(first, min(first + CHUNK, self.num_rows))
            ids = self._ids[place]
            yield self._features(place), self._all_labels[ids], self._all_folds[ids]

    def _features(self, place: slice) -> Tensor:
        if self._rows is not None:
            return self._rows[place]
        return torch.from_numpy(self._read(self._file, place)["features"].copy()).to(self.device)
