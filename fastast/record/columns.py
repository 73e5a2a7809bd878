"""Writes arrays about the pictures of a catalog, and their paths, as an .npz file without pickles."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from fastast.data import Catalog

_PATHS = 4096  # held in memory at a time


def write_columns(file: BinaryIO, columns: dict[str, np.ndarray], catalog: Catalog) -> None:
    """Writes arrays and the paths of a catalog as an .npz file; only some thousand paths are in memory at a time."""

    def chunks() -> Iterator[list[bytes]]:
        for first in range(0, catalog.num_samples, _PATHS):
            rows = range(first, min(first + _PATHS, catalog.num_samples))
            yield [os.fsencode(catalog.path(row)) for row in rows]

    starts = np.zeros(catalog.num_samples + 1, np.int64)
    for number, paths in enumerate(chunks()):
        first = number * _PATHS + 1
        starts[first : first + len(paths)] = [len(path) for path in paths]
    np.cumsum(starts, out=starts)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, column in (*columns.items(), ("path_starts", starts)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, column, allow_pickle=False)
        with archive.open("path_bytes.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (int(starts[-1]),)}
            np.lib.format.write_array_header_1_0(member, header)
            for paths in chunks():
                member.write(b"".join(paths))
