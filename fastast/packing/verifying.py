"""Verifies a pack: reads all of it back and compares it with its index."""

from __future__ import annotations

import hashlib
import re
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastast.errors import InputError
from fastast.number_text import counted
from fastast.scan.file_index import show_path
from fastast.scan.file_scan import Progress
from fastast.scan.image_scan import MAX_BYTES, scan_bytes
from fastast.scan.pack_index import BLOCK, PackIndex, Shard, Split

_MEMBER = re.compile(r"\d{9,10}\.(jpg|cls|thumb\.jpg)")  # thumbnails: of earlier versions


class _DamagedError(Exception):
    """What is wrong with a shard, in one phrase."""


def verify_pack(index: PackIndex, workers: int, progress: Progress | None = None) -> int:
    """Checks checksum, members, labels, places and headers of every picture of every shard.

    Args:
        index: of a pack.
        workers: shards read at once.
        progress: called now and then as `progress(done, total)`, in pictures.

    Returns:
        The number of pictures.

    Raises:
        InputError: a shard is not what the index says; the message names the first and counts the others.
    """
    total = sum(len(split.records) for split in index.splits.values())
    done, lock = 0, threading.Lock()

    def check(job: tuple[Split, int]) -> str | None:
        nonlocal done
        split, number = job
        shard = split.shards[number]
        try:
            _verify_shard(index.root / shard.name, shard, split.records[split.records["shard"] == number])
        except (_DamagedError, OSError) as error:
            return f"{show_path(index.root / shard.name)}: {error}"
        with lock:
            done += shard.count
            if progress is not None:
                progress(done, total)
        return None

    jobs = [(split, number) for split in index.splits.values() for number in range(len(split.shards))]
    with ThreadPoolExecutor(workers) as pool:
        damaged = [fault for fault in pool.map(check, jobs) if fault is not None]
    if damaged:
        more = f" (and {len(damaged) - 1} more shards)" if len(damaged) > 1 else ""
        raise InputError(f"{damaged[0]}{more}; copy the shard again or pack anew")
    return total


def _verify_shard(path: Path, shard: Shard, records: np.ndarray) -> None:
    wanted = {int(record["offset"]): record for record in records}
    digest, label = hashlib.sha256(), None
    with open(path, "rb") as file:
        while True:
            header = _read(file, BLOCK, digest)
            if not any(header):
                break
            name, size = _parse_header(header)
            begin = file.tell()
            body = _read(file, size + -size % BLOCK, digest)[:size]
            if name.endswith(".cls"):
                if label is None or body != b"%d" % label:
                    raise _DamagedError(f"{name}: the label differs from the index")
                continue
            if name.endswith(".thumb.jpg"):
                continue
            record = wanted.pop(begin, None)
            if record is None or record["length"] != size:
                raise _DamagedError(f"{name}: not where the index has it")
            height, width, _, reason = scan_bytes(body)
            if reason is not None or (height, width) != (record["height"], record["width"]):
                raise _DamagedError(f"{name}: {reason or 'its size in pixels differs from the index'}")
            label = int(record["label"])
        if any(_read(file, BLOCK, digest)) or file.read(1):
            raise _DamagedError("something follows the last member")
    if wanted:
        raise _DamagedError(f"{counted(len(wanted), 'picture')} of the index not in it")
    if digest.hexdigest() != shard.sha256:
        raise _DamagedError("its checksum differs from the index")


def _parse_header(header: bytes) -> tuple[str, int]:
    """Name and length of a member, which must be a plain file named by a key and a known extension, without a path."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise _DamagedError(f"not a tar header ({error})") from error
    if member.type != tarfile.REGTYPE or not _MEMBER.fullmatch(member.name) or member.size > MAX_BYTES:
        raise _DamagedError(f"member {member.name!r:.60} has no place in a pack")
    return member.name, member.size


def _read(file: BinaryIO, count: int, digest: hashlib._Hash) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _DamagedError("it ends too early")
    digest.update(data)
    return data
