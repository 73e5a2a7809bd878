"""Reads every picture once: digest, grey thumbnail, hashes and kind, or why it cannot be decoded."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastast.audit.perceptual import NUM_VIEWS, SIDE, hash_views
from fastast.audit.pictures import Pictures
from fastast.cores import usable_cores
from fastast.data.catalog import UnreachableError, UnreadableError
from fastast.errors import InputError
from fastast.report.gallery import UNDECODABLE
from fastast.scan.file_index import show_path

_CHUNK = 256  # pictures that a thread reads at a time
_DECODED = 2 * SIDE  # pixels of a side at which JPEGs are decoded at least


@dataclass
class Fingerprints:
    """What was read of N pictures.

    Attributes:
        digests: uint64 [N, 2], of the files' bytes.
        thumbs: uint8 [N, SIDE, SIDE], grey, in a file without a name.
        views: uint64 [N, NUM_VIEWS], their hashes.
        readable: bool [N].
        reasons: why a picture is not readable, by row.
        kinds: pictures by format and colours, such as "JPEG, RGB".
    """

    digests: np.ndarray
    thumbs: np.ndarray
    views: np.ndarray
    readable: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)


class _Chunk(NamedTuple):
    rows: slice
    digests: np.ndarray
    thumbs: np.ndarray
    views: np.ndarray
    reasons: dict[int, str]
    kinds: Counter[str]


def read_fingerprints(pictures: Pictures, progress: Callable[[int, int], object]) -> Fingerprints:
    """Reads and decodes all pictures, some hundred at a time.

    Args:
        pictures: all of them.
        progress: called as `progress(done, total)`.

    Raises:
        InputError: their folder is gone, or there is no room for the thumbnails.
    """
    num = len(pictures)
    with tempfile.TemporaryFile() as file:  # which lives as long as its map
        _reserve(file.fileno(), num * SIDE * SIDE)
        thumbs = np.memmap(file, np.uint8, "w+", shape=(num, SIDE, SIDE))
    prints = Fingerprints(
        np.zeros((num, 2), np.uint64),
        thumbs,
        np.zeros((num, NUM_VIEWS), np.uint64),
        np.ones(num, bool),
    )
    for chunk in _chunks(pictures):
        prints.digests[chunk.rows], prints.views[chunk.rows] = chunk.digests, chunk.views
        prints.thumbs[chunk.rows] = chunk.thumbs
        prints.readable[list(chunk.reasons)] = False
        prints.reasons.update(chunk.reasons)
        prints.kinds.update(chunk.kinds)
        progress(chunk.rows.stop, num)
    return prints


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Takes the room for a file at once: a full disk would kill a process that writes to its map."""
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: has no room for {num_bytes / 1e9:.1f} GB of thumbnails "
            f"({os.strerror(error.errno or 0)}); free some space, or name another folder in TMPDIR"
        ) from error


def _chunks(pictures: Pictures) -> Iterator[_Chunk]:
    """The chunks in order, a few ahead of the caller."""
    threads = usable_cores()
    pending: deque[Future[_Chunk]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(pictures), _CHUNK):
            pending.append(pool.submit(_read, pictures, slice(begin, min(begin + _CHUNK, len(pictures)))))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _read(pictures: Pictures, rows: slice) -> _Chunk:
    num = rows.stop - rows.start
    digests, thumbs = np.zeros((num, 2), np.uint64), np.zeros((num, SIDE, SIDE), np.uint8)
    reasons: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    for place in range(num):
        row = rows.start + place
        try:
            data = pictures.read(row)
            digests[place] = np.frombuffer(blake2b(data.data, digest_size=16).digest(), np.uint64)
            thumbs[place], kind = _decode(data)
            kinds[kind] += 1
        except UnreachableError as error:
            catalog, sample = pictures.place(row)
            if not (root := catalog.root(sample)).is_available():
                raise InputError(f"{show_path(root.path)}: cannot be read any more; run the command again") from error
            reasons[row] = str(error)
        except UnreadableError as error:
            reasons[row] = str(error)
        except UNDECODABLE as error:
            reasons[row] = f"does not decode: {error}"
    return _Chunk(rows, digests, thumbs, hash_views(thumbs), reasons, kinds)


def _decode(data: np.ndarray) -> tuple[np.ndarray, str]:
    """A grey thumbnail, uint8 [SIDE, SIDE], and the kind of the picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(io.BytesIO(data.data)) as image:
            kind = f"{image.format}, {image.mode}"
            image.draft("L", (_DECODED, _DECODED))
            small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small), kind
