"""What it takes to list, scan from the cache and open a set of 14 million pictures in which one file is new.

    python -m benchmarks.index_memory [MILLIONS]

The files are made up: the system's answers cost nothing here, everything of ours is real. Prints seconds and the most
memory of the process, for the goal of under 4 GB and two minutes.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastast.data.catalog import Catalog
from fastast.data.duplicates import describe_duplicates
from fastast.scan import file_index, file_scan
from fastast.scan.image_headers import Header

PER_CLASS = 1300


def main(num_files: int) -> None:
    """Measures with `num_files` pictures."""
    num_classes = num_files // PER_CLASS

    def walk(root: bytes, start: bytes, ignored: object) -> Iterator[bytes]:
        yield from (b"%s/%s_%d.JPEG" % (start, start, i) for i in range(PER_CLASS + (new and start == b"n00000007")))

    file_index._subfolders = lambda folder: (b"n%08d" % i for i in range(num_classes))  # type: ignore[assignment]
    file_index._walk = walk  # type: ignore[assignment]
    # Lengths repeat as those of real JPEGs do; no candidate can be read, so the search for equal pictures ends early.
    file_scan._stamp = lambda path: (100_000 + hash(path) % 50_000, 1)
    file_scan.scan_file = lambda path: Header(375, 500, 3, None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for new in (False, True):
            begin = time.monotonic()
            index = file_index.list_files([folder])
            listed = time.monotonic()
            file_scan.scan_files(index)
            scanned = time.monotonic()
            catalog = Catalog(file_index.take(index, np.arange(len(index))), tuple(map(os.fsdecode, index.classes)), [])
            catalog.digest()
            opened = time.monotonic()
            describe_duplicates(catalog, catalog.take(np.arange(50_000)))
            end = time.monotonic()
            memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            cache_gb = sum(path.stat().st_size for path in Path(folder).rglob("*")) / 1e9
            print(
                f"{'one file new' if new else 'no cache'}: {len(index):,} files: list {listed - begin:.0f} s, "
                f"scan {scanned - listed:.0f} s, open {opened - scanned:.0f} s, compare {end - opened:.0f} s; "
                f"at most {memory_gb:.2f} GiB; cache {cache_gb:.2f} GB",
                flush=True,
            )
            del index, catalog


if __name__ == "__main__":
    main(int(float(sys.argv[1] if len(sys.argv) > 1 else 14) * 10**6))
