"""The index of a pack: where every picture lies in the shards, checked as untrusted input.

A pack is a folder of uncompressed tar shards that `tar` and `webdataset` open (`train-00000.tar`, ...; members
KEY.jpg and KEY.cls, the label as text), and of the files that allow random access:

    pack.json     classes, options, provenance, and for each split its counts, shards and checksums
    train.index   one `RECORD` for each picture in id order, then all relative paths end to end; `val.index` likewise

Packs of earlier versions may also hold thumbnails (KEY.thumb.jpg), which are ignored. Nothing is
pickled. Sizes are compared with the files before anything is read, so that a false count costs no memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fastast.errors import InputError
from fastast.scan.file_index import show_path
from fastast.scan.image_headers import MAX_PIXELS
from fastast.scan.image_scan import MAX_BYTES

FORMAT, VERSION = "fastast-pack", 1
SPLITS = ("train", "val")
BLOCK = 512  # of a tar file, bytes: a member is one header block and its body, padded to whole blocks

RECORD = np.dtype(
    [
        ("offset", "<i8"),  # of the picture's first byte in its shard
        ("thumb_offset", "<i8"),  # of its thumbnail; all thumb_ fields are 0 where there is none
        ("length", "<i4"),  # bytes
        ("thumb_length", "<i4"),
        ("shard", "<i4"),
        ("label", "<i4"),
        ("height", "<i4"),  # pixels
        ("width", "<i4"),
        ("thumb_height", "<i4"),
        ("thumb_width", "<i4"),
        ("name_length", "<i4"),  # bytes of the relative path
    ]
)

_MAX_JSON = 256 * 2**20  # bytes; a pack.json of a million quarantined files has about half as many
_SHARD_NAME = re.compile(r"(train|val)-\d{5,9}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, length in bytes, SHA-256 in hex, and number of pictures."""

    name: str
    num_bytes: int
    sha256: str
    count: int


@dataclass
class Split:
    """The pictures of one split, in id order."""

    records: np.ndarray  # RECORD[N]
    names: bytes  # relative paths, end to end
    shards: list[Shard]
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # path and reason of what was left out
    converted: dict[str, int] = field(default_factory=dict)  # pictures that were encoded anew, by the reason
    index_sha256: str = ""  # of the index file that this was read from


@dataclass
class PackIndex:
    """All metadata of a pack."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    plan: str  # digest of the source's listing and of the options
    options: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def bits(self) -> int | None:
        """Of pictures with 16 bits a channel, the lower bits that became 0 to 255; None: it has none."""
        return self.options.get("bits")


def is_pack(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a pack."""
    return os.path.isfile(os.path.join(path, "pack.json"))


def index_bytes(split: Split) -> bytes:
    """Content of a split's index file."""
    return split.records.tobytes() + split.names


def header_bytes(index: PackIndex) -> bytes:
    """Content of `pack.json`; the same for the same pack, so it holds no time."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "plan": index.plan,
        "options": index.options,
        "provenance": index.provenance,
        "classes": list(index.classes),
        "splits": {
            name: {
                "count": len(split.records),
                "name_bytes": len(split.names),
                "index_sha256": hashlib.sha256(index_bytes(split)).hexdigest(),
                "shards": [
                    {"name": s.name, "bytes": s.num_bytes, "sha256": s.sha256, "count": s.count} for s in split.shards
                ],
                "converted": split.converted,
                "quarantined": [list(entry) for entry in split.quarantined],
            }
            for name, split in index.splits.items()
        },
    }
    return json.dumps(header, indent=1).encode() + b"\n"  # ASCII: names that are not UTF-8 become escapes


def read_index(path: str | os.PathLike[str]) -> PackIndex:
    """Reads and checks the index of a pack. Opens no shard, but compares each one's length.

    Raises:
        InputError: it is not a pack, or something in it is inconsistent; the message names the file and the fault.
    """
    root = Path(path)
    where = root / "pack.json"
    try:
        header = json.loads(_read_bytes(where, _MAX_JSON))
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not readable as JSON ({type(error).__name__})")
    _check(isinstance(header, dict) and header.get("format") == FORMAT, where, "not a pack of fastast")
    _check(header.get("version") == VERSION, where, f"version {header.get('version')!r:.20}, not {VERSION}")
    classes = header.get("classes")
    _check(_is_list(classes, str) and 0 < len(classes) == len(set(classes)), where, "classes")
    entries = header.get("splits")
    _check(isinstance(entries, dict) and entries and set(entries) <= set(SPLITS), where, "splits")
    for name in ("options", "provenance"):
        _check(isinstance(header.get(name), dict), where, name)
    _check(isinstance(header.get("plan"), str), where, "plan")
    _check(header["options"].get("bits") in (None, *range(8, 17)), where, "bits")
    splits = {name: _read_split(root, name, entries[name], len(classes)) for name in SPLITS if name in entries}
    return PackIndex(root, tuple(classes), splits, header["plan"], header["options"], header["provenance"])


def _read_split(root: Path, name: str, entry: Any, num_classes: int) -> Split:
    where = root / "pack.json"
    _check(isinstance(entry, dict), where, f"split {name}")
    count, name_bytes = entry.get("count"), entry.get("name_bytes")
    _check(_is_count(count) and count > 0 and _is_count(name_bytes), where, f"counts of {name}")
    shards = _read_shards(root, name, entry.get("shards"))
    _check(sum(shard.count for shard in shards) == count, where, f"counts of the shards of {name}")
    quarantined = entry.get("quarantined")
    _check(isinstance(quarantined, list), where, f"quarantine of {name}")
    _check(all(_is_list(pair, str) and len(pair) == 2 for pair in quarantined), where, f"quarantine of {name}")
    converted = entry.get("converted")
    _check(isinstance(converted, dict) and all(_is_count(n) for n in converted.values()), where, f"counts of {name}")
    file = root / f"{name}.index"
    expected = count * RECORD.itemsize + name_bytes
    data = _read_bytes(file, expected)
    _check(len(data) == expected, file, f"{len(data):,} bytes where pack.json says {expected:,}")
    digest = hashlib.sha256(data).hexdigest()
    _check(digest == entry.get("index_sha256"), file, "checksum")
    records = np.frombuffer(data, RECORD, count)
    names = bytes(memoryview(data)[count * RECORD.itemsize :])
    _check_records(file, records, shards, num_classes)
    _check_names(file, records["name_length"], names)
    return Split(records, names, shards, [(p, r) for p, r in quarantined], converted, digest)


def _read_shards(root: Path, split: str, entries: Any) -> list[Shard]:
    where = root / "pack.json"
    _check(_is_list(entries, dict) and len(entries) > 0, where, f"shards of {split}")
    shards = []
    for entry in entries:
        name, num_bytes, digest, count = (entry.get(key) for key in ("name", "bytes", "sha256", "count"))
        # The pattern holds no slash, so a shard lies beside pack.json or nowhere.
        sound = isinstance(name, str) and _SHARD_NAME.fullmatch(name) and name.startswith(split)
        _check(sound, where, f"shard name {name!r:.60}")
        _check(_is_count(num_bytes) and _is_count(count), where, f"counts of {name}")
        _check(isinstance(digest, str) and _SHA256.fullmatch(digest), where, f"checksum of {name}")
        try:
            actual = os.stat(root / name).st_size
        except OSError:
            raise InputError(f"{show_path(root / name)}: the shard is missing; copy the pack again") from None
        if actual != num_bytes:
            raise InputError(
                f"{show_path(root / name)}: {actual:,} bytes of {num_bytes:,}; copy the shard again or pack anew"
            )
        shards.append(Shard(name, num_bytes, digest, count))
    _check(len({shard.name for shard in shards}) == len(shards), where, f"shards of {split}: one is named twice")
    return shards


def _check_records(file: Path, records: np.ndarray, shards: list[Shard], num_classes: int) -> None:
    """Checks that pictures lie inside their shards without overlap, with valid labels and sizes."""
    label, shard = records["label"], records["shard"]
    _check(((label >= 0) & (label < num_classes)).all(), file, "a label out of range")
    _check(((shard >= 0) & (shard < len(shards))).all(), file, "a shard out of range")
    counts = np.bincount(shard, minlength=len(shards))
    _check(np.array_equal(counts, [s.count for s in shards]), file, "pictures in a shard")
    height, width = records["height"].astype(np.int64), records["width"].astype(np.int64)
    # Each side is below 2^31, so the product fits int64.
    _check(((height > 0) & (width > 0) & (height * width <= MAX_PIXELS)).all(), file, "a picture's size")
    begin, length = records["offset"], records["length"].astype(np.int64)
    # A body follows its header block, and two blocks of zeros follow the last body.
    limit = np.array([s.num_bytes for s in shards])[shard] - 2 * BLOCK
    inside = (begin >= BLOCK) & (begin % BLOCK == 0) & (length > 0) & (length <= MAX_BYTES) & (begin <= limit - length)
    _check(inside.all(), file, "a picture outside its shard")
    order = np.lexsort((begin, shard))
    begin, end, shard = begin[order], (begin + length)[order], shard[order]
    apart = (shard[1:] != shard[:-1]) | (begin[1:] - BLOCK >= end[:-1])
    _check(apart.all(), file, "two pictures overlap")


def _check_names(file: Path, lengths: np.ndarray, names: bytes) -> None:
    """Checks that paths are relative and stay below their folder."""
    _check((lengths > 0).all() and int(lengths.sum(dtype=np.int64)) == len(names), file, "lengths of the paths")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    _check((np.frombuffer(names, np.uint8)[starts] != ord("/")).all() and b"\0" not in names, file, "a path")
    if b".." in names:  # only then is each name looked at
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            _check(b".." not in names[start : start + length].split(b"/"), file, "a path that leads out of the pack")


def _read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; of a longer one, one byte more than that."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, limit + 1))
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read ({error.strerror}); copy the pack again") from error


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check(sound: Any, where: Path, what: str) -> None:
    if not sound:
        _refuse(where, what)


def _refuse(where: Path, what: str) -> NoReturn:
    raise InputError(f"{show_path(where)}: damaged or foreign pack index: {what}; copy the pack again or pack anew")
