"""Writes the shards of one split: threads read and convert ahead, one thread writes in order."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fastast.atomic_files import write_whole
from fastast.data.catalog import UnreadableError, read_whole
from fastast.packing.converting import PackOptions, Picture, RefusedError, prepare, used_bits
from fastast.scan.file_index import FileIndex, take
from fastast.scan.pack_index import BLOCK, RECORD, Shard, Split

_CHUNK = 16  # pictures handed to a thread at a time
_DEEP_EXTENSIONS = frozenset(b".png .tif .tiff .jp2 .pgm .ppm .pnm".split())  # may have 16 bits a channel
_CHUNKS_AHEAD = 4  # of each thread; bounds the pictures held in memory


@dataclass
class SplitPlan:
    """The planned content of the shards of one split."""

    index: FileIndex  # every candidate file
    labels: np.ndarray  # int32[M], final labels; -1 where the class has no usable picture
    shards: list[np.ndarray]  # int64 rows of `index` in each shard, in the order in which they are written


@dataclass
class _Part:
    """One planned shard as it was written."""

    shard: Shard
    rows: np.ndarray  # int64[n] of the plan's index
    records: np.ndarray  # RECORD[n]
    reasons: dict[int, str] = field(default_factory=dict)  # why a row is left out
    converted: dict[str, int] = field(default_factory=dict)


def load_picture(index: FileIndex, row: int, options: PackOptions) -> Picture | str:
    """One converted picture, or the reason why it is left out."""
    try:
        return prepare(read_whole(index.path(row)).tobytes(), options)
    except (UnreadableError, RefusedError) as error:
        return str(error)


def picture_bits(index: FileIndex, row: int) -> int:
    """Bits that the brightest pixel takes if the picture has 16 bits a channel, else 0."""
    path = index.path(row)
    if os.path.splitext(path)[1].lower() not in _DEEP_EXTENSIONS:
        return 0
    try:
        return used_bits(read_whole(path).tobytes())
    except UnreadableError:
        return 0


class SplitWriter:
    """Writes the planned shards that are not finished yet.

    Args:
        root: folder of the pack; holds `.parts/`.
        name: train or val.
        plan: the content of each shard.
        options: how pictures are converted.
        pool: its threads read and convert.
        workers: number of those threads.

    Attributes:
        split: the outcome, once `write` has run to its end.
    """

    split: Split

    def __init__(
        self, root: Path, name: str, plan: SplitPlan, options: PackOptions, pool: ThreadPoolExecutor, workers: int
    ) -> None:
        self._root, self._name, self._plan, self._options = root, name, plan, options
        self._pool, self._workers = pool, workers

    def write(self) -> Iterator[int]:
        """Writes all; yields the number of candidates processed since the last time."""
        parts = []
        for number, rows in enumerate(self._plan.shards):
            part = self._finished(number)
            if part is None:
                part = yield from self._write_shard(number, rows)
            else:
                yield len(rows)
            parts.append(part)
        filled = [part for part in parts if len(part.rows)]
        for place, part in enumerate(filled):
            part.records["shard"] = place
        rows = np.concatenate([part.rows for part in filled])
        order = np.argsort(rows)
        kept = take(self._plan.index, rows[order])
        reasons = {row: reason for part in parts for row, reason in part.reasons.items()}
        self.split = Split(
            records=np.concatenate([part.records for part in filled])[order],
            names=b"".join(kept.name(row) for row in range(len(kept))),
            shards=[part.shard for part in filled],
            quarantined=[(os.fsdecode(self._plan.index.path(row)), reasons[row]) for row in sorted(reasons)],
            converted=dict(sorted(sum((Counter(part.converted) for part in parts), Counter()).items())),
        )

    def _write_shard(self, number: int, rows: np.ndarray):
        """Writes one shard into `.parts/`, renames it and saves its records; yields as `write`, returns the part."""
        shard_name = f"{self._name}-{number:05d}.tar"
        partial = self._root / ".parts" / shard_name
        kept: list[int] = []
        records: list[tuple] = []
        reasons: dict[int, str] = {}
        converted: Counter[str] = Counter()
        digest, offset = hashlib.sha256(), 0
        with open(partial, "wb") as file:

            def append(name: str, body: bytes) -> int:
                """Adds a member; returns where its body begins."""
                nonlocal offset
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(body), 0o644
                begin = offset + BLOCK
                for piece in (member.tobuf(tarfile.USTAR_FORMAT), body, bytes(-len(body) % BLOCK)):
                    file.write(piece)
                    digest.update(piece)
                    offset += len(piece)
                return begin

            for chunk, pictures in self._prepared(rows):
                for row, picture in zip(chunk.tolist(), pictures, strict=True):
                    key, label = f"{row:09d}", int(self._plan.labels[row])
                    if not isinstance(picture, str) and label < 0:
                        picture = "no picture of its class could be read when packing began; pack anew"
                    if isinstance(picture, str):
                        reasons[row] = picture
                        continue
                    begin = append(f"{key}.jpg", picture.data)
                    append(f"{key}.cls", str(label).encode())
                    kept.append(row)
                    name_length = int(self._plan.index.lengths[row])
                    size = picture.height, picture.width
                    records.append((begin, 0, len(picture.data), 0, 0, label, *size, 0, 0, name_length))
                    if picture.change is not None:
                        converted[picture.change] += 1
                yield len(chunk)
            end = bytes(2 * BLOCK)
            file.write(end)
            digest.update(end)
            file.flush()
            os.fsync(file.fileno())
        shard = Shard(shard_name, offset + len(end), digest.hexdigest(), len(kept))
        part = _Part(shard, np.array(kept, np.int64), np.array(records, RECORD), reasons, dict(converted))
        if kept:
            os.replace(partial, self._root / shard_name)
        else:
            partial.unlink()
        self._save_part(number, part)
        return part

    def _prepared(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[Picture | str]]]:
        """Chunks of rows with their pictures, in order; a bounded number is prepared ahead."""

        def load(chunk: np.ndarray) -> list[Picture | str]:
            return [load_picture(self._plan.index, row, self._options) for row in chunk.tolist()]

        pending: deque[tuple[np.ndarray, Future[list[Picture | str]]]] = deque()
        try:
            for first in range(0, len(rows), _CHUNK):
                chunk = rows[first : first + _CHUNK]
                pending.append((chunk, self._pool.submit(load, chunk)))
                if len(pending) == _CHUNKS_AHEAD * self._workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _part_file(self, number: int) -> Path:
        return self._root / ".parts" / f"{self._name}-{number:05d}.npz"

    def _save_part(self, number: int, part: _Part) -> None:
        rest = {"shard": asdict(part.shard), "reasons": list(part.reasons.items()), "converted": part.converted}
        text = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        write_whole(
            self._part_file(number), lambda file: np.savez(file, rows=part.rows, records=part.records, rest=text)
        )

    def _finished(self, number: int) -> _Part | None:
        """This shard as an earlier run finished it; None if it did not."""
        try:
            with np.load(self._part_file(number), allow_pickle=False) as stored:
                rows, records, text = (stored[key] for key in ("rows", "records", "rest"))
            rest = json.loads(text.tobytes())
            shard = Shard(**rest["shard"])
            if len(rows) and os.stat(self._root / shard.name).st_size != shard.num_bytes:
                return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None
        return _Part(shard, rows, records, dict(map(tuple, rest["reasons"])), rest["converted"])
