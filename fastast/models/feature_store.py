"""Features of a data set: on the device where they fit, else in a file."""

from __future__ import annotations

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
    """Rows of features as float16, with label and fold; a context manager.

    The file has no name: it is gone with the process, however that ends.

    Args:
        num_rows: that will be appended, at most.
        num_features: F.
        device: where they come from and are used.
        folder: for the file; another temporary folder if it does not exist.

    Raises:
        InputError: the file finds no space.

    Attributes:
        num_features, device: as given.
        num_rows: appended so far.
    """

    def __init__(self, num_rows: int, num_features: int, device: torch.device, folder: Path) -> None:
        self.num_features = num_features
        self.num_rows = 0
        self.device = device
        self._labels = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._folds = torch.zeros_like(self._labels)
        self._row_bytes = 2 * num_features
        needed = num_rows * self._row_bytes
        fits = HOST_BYTES
        if device.type == "cuda":
            fits = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
        self._rows: Tensor | None = None
        self._file = None
        if needed <= fits:
            self._rows = torch.zeros((num_rows, num_features), dtype=torch.float16, device=device)
            return
        try:
            self._file = tempfile.TemporaryFile(dir=folder if folder.is_dir() else None)  # noqa: SIM115
            os.posix_fallocate(self._file.fileno(), 0, needed)
        except OSError as error:
            raise InputError(
                f"--start probe: {folder} has no room for {needed / 1e9:.1f} GB of features "
                f"({os.strerror(error.errno or 0)}); free some space, or name another --out"
            ) from error

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._rows = None
        if self._file is not None:
            self._file.close()

    def append(self, features: Tensor, labels: Tensor, folds: Tensor) -> None:
        """Adds rows; without a file the host does not wait for the device.

        Args:
            features: [n, F], any float type.
            labels, folds: int64 [n].
        """
        place = slice(self.num_rows, self.num_rows + len(features))
        rows = features.clamp(-65504, 65504).half()  # NaN stays
        if self._file is None:
            assert self._rows is not None
            self._rows[place] = rows
        else:
            os.pwrite(self._file.fileno(), rows.cpu().numpy().tobytes(), self.num_rows * self._row_bytes)
        self._labels[place], self._folds[place] = labels, folds
        self.num_rows = place.stop

    @property
    def labels(self) -> Tensor:
        """Of all rows, int64 [n]."""
        return self._labels[: self.num_rows]

    @property
    def folds(self) -> Tensor:
        """Of all rows, int64 [n]."""
        return self._folds[: self.num_rows]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features float16 [n, F], labels and folds int64 [n] of at most CHUNK rows at a time, on the device.

        There is one chunk at least, which may be empty.
        """
        for first in range(0, max(1, self.num_rows), CHUNK):
            place = slice(first, min(first + CHUNK, self.num_rows))
            yield self._read(place), self._labels[place], self._folds[place]

    def _read(self, place: slice) -> Tensor:
        if self._file is None:
            assert self._rows is not None
            return self._rows[place]
        rows = np.empty((place.stop - place.start, self.num_features), np.float16)
        os.preadv(self._file.fileno(), [rows.data], place.start * self._row_bytes)
        return torch.from_numpy(rows).to(self.device)
