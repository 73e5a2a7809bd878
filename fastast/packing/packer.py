"""Makes packs from class folders: tar shards and their index. After a kill, the next run continues.

Every shard is planned before the first is written, from the listing and the file sizes alone. An unfinished shard is a
file in `.parts/`; a finished one is renamed into place, and its records stay in `.parts/` until the index is written.
So a second run does what is missing and ends at the same bytes. `pack.json` is written last: a folder with it is a
complete pack.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import PIL

from fastast._version import __version__
from fastast.atomic_files import write_whole
from fastast.data.dataset import find_splits, require_same_classes
from fastast.data.losses import describe_hidden, describe_losses, find_losses
from fastast.data.sampler import epoch_ids
from fastast.data.splits import list_split
from fastast.errors import InputError
from fastast.number_text import counted
from fastast.packing.converting import MENDED, PackOptions, Picture
from fastast.packing.verifying import verify_pack
from fastast.packing.writing import SplitPlan, SplitWriter, load_picture, picture_bits
from fastast.scan.file_index import FileIndex, show_path
from fastast.scan.file_scan import Progress, stamp_files
from fastast.scan.pack_index import BLOCK, PackIndex, Split, header_bytes, index_bytes, is_pack, read_index

_CHUNK = 64  # pictures handed to a thread at a time
_EXTRA_BYTES = 4 * BLOCK  # of a sample beside its picture: two headers, the label, padding


def run_pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    max_side: int | None = None,
    shard_size_mb: float = 1024,
    quality: int = 95,
    bits: int | None = None,
    verify: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], object] = print,
) -> int:
    """Runs `fastast pack`.

    Args:
        source: folders of pictures in any layout of `open_dataset`; with `verify` and no `out`, a pack.
        out: the folder of the pack: new, empty, or with an unfinished pack of the same source.
        max_side: as in `PackOptions`.
        shard_size_mb: megabytes (10^6 bytes) of source pictures in a shard.
        quality: as in `PackOptions`.
        bits: as in `PackOptions`; None: those that the brightest picture with 16 bits a channel takes, at least 8.
        verify: read the pack back afterwards and check all of it.
        workers: threads; None: the cores that this process may use.
        progress: called now and then as `progress(done, total)`, in pictures.
        say: prints one line.

    Returns:
        0.

    Raises:
        InputError: an option or a folder is not valid, or the pack is damaged.
    """
    num_workers = workers if workers is not None else len(os.sched_getaffinity(0))
    for name, value, least, most in (
        ("--max-side", max_side, 1, 65535),
        ("--quality", quality, 1, 100),
        ("--bits", bits, 8, 16),
        ("--workers", num_workers, 1, 1024),
    ):
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} {value}: must be in {least} ... {most}")
    if not 0 < shard_size_mb <= 10**6:
        raise InputError(f"--shard-size {shard_size_mb:g}: must be in (0, 1,000,000] MB")
    if out is None:
        if not verify:
            raise InputError(f"{show_path(source)}: name the folder for the pack: fastast pack SRC OUT")
        index = read_index(source)
    else:
        options = PackOptions(max_side, quality, bits)
        index = make_pack(source, out, options, max(1, int(shard_size_mb * 10**6)), num_workers, progress, say)
        for line in describe_pack(index):
            say(line)
    if verify:
        count = verify_pack(index, num_workers, progress)
        shards = counted(sum(len(split.shards) for split in index.splits.values()), "shard")
        say(f"{show_path(index.root)}: verified: {counted(count, 'picture')} in {shards}, all sound")
    return 0


def describe_pack(index: PackIndex) -> Iterator[str]:
    """A few lines about the content of a pack."""
    for name, split in index.splits.items():
        size_mb = sum(shard.num_bytes for shard in split.shards) / 10**6
        pictures, shards = counted(len(split.records), "picture"), counted(len(split.shards), "shard")
        yield f"{name}: {pictures}, {shards}, {size_mb:,.1f} MB"
        for reason, count in split.converted.items():
            how = "the picture as it was" if reason == MENDED else f"JPEG quality {index.options['quality']}, 4:4:4"
            yield f"{name}: {count:,} {'changed' if reason == MENDED else 're-encoded'} ({reason}; {how})"
        if split.quarantined:
            path, reason = split.quarantined[0]
            yield f"{name}: {len(split.quarantined):,} left out, such as {show_path(path)}: {reason}"
    if index.bits is not None:
        yield (
            f"16-bit pictures: the lower {index.bits} bits became 0 to 255; "
            f"pack others for the same network with --bits {index.bits}"
        )


def make_pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: PackOptions,
    shard_bytes: int,
    workers: int,
    progress: Progress | None = None,
    say: Callable[[str], object] | None = None,
) -> PackIndex:
    """Packs `source` into the folder `out`, or finishes an unfinished pack.

    Pictures are in seeded random order in the shards, so that classes are mixed for readers that read a shard from
    front to back; the index lists them in the order of the folders.

    Args:
        source, out, progress, say: as in `run_pack`.
        options: how pictures are converted.
        shard_bytes: source bytes in a shard.
        workers: threads.

    Raises:
        InputError: as `run_pack`.
    """
    root, inside = Path(os.path.realpath(out)), Path(os.path.realpath(source))
    if root == inside or inside in root.parents:
        raise InputError(f"{show_path(out)}: lies inside the folder of the pictures; name a folder outside {source}")
    listed = {name: list_split(part) for name, part in find_splits(source, on_note=say).items()}
    for index in listed.values():
        stamp_files(index)
        if say is not None:
            lost = find_losses(index, np.ones(len(index), bool))
            for line in (*describe_hidden(index), *describe_losses(index, lost)):
                say(line)
    digest = _digest(listed, options, shard_bytes)
    parts = root / ".parts"
    with _claim(root, digest) as finished:
        if finished is not None:
            return finished
        if options.bits is None:
            options = replace(options, bits=_find_bits(listed, workers))
        classes, plans = _plan(listed, options, shard_bytes)
        total = sum(len(plan.index) for plan in plans.values())
        splits: dict[str, Split] = {}
        done = 0
        with ThreadPoolExecutor(workers, thread_name_prefix="fastast-pack") as pool:
            for name, plan in plans.items():
                writer = SplitWriter(root, name, plan, options, pool, workers)
                for num_more in writer.write():
                    done += num_more
                    if progress is not None:
                        progress(done, total)
                splits[name] = writer.split
        packed = PackIndex(
            root,
            classes,
            splits,
            digest,
            {**asdict(options), "shard_bytes": shard_bytes},
            {"source": os.fspath(inside), "fastast": __version__, "pillow": PIL.__version__},
        )
        for name, split in splits.items():
            _place(parts / f"{name}.index", root, index_bytes(split))
        _place(parts / "pack.json", root, header_bytes(packed))
        shutil.rmtree(parts)
        return packed


def _find_bits(listed: dict[str, FileIndex], workers: int) -> int | None:
    """Bits that pictures with 16 bits a channel use, at least 8, over all splits; None where there are none."""

    def most_bits(job: tuple[FileIndex, int]) -> int:
        index, first = job
        return max(picture_bits(index, row) for row in range(first, min(first + _CHUNK, len(index))))

    jobs = [(index, first) for index in listed.values() for first in range(0, len(index), _CHUNK)]
    with ThreadPoolExecutor(workers) as pool:
        most = max(pool.map(most_bits, jobs), default=0)
    return most or None


def _plan(
    listed: dict[str, FileIndex], options: PackOptions, shard_bytes: int
) -> tuple[tuple[str, ...], dict[str, SplitPlan]]:
    """Fixes classes, labels and shards before anything is written.

    As for folders, a class counts only if one of its pictures can be used, so pictures are tried until one can.
    """
    used = {name: _usable_classes(index, options) for name, index in listed.items()}
    names = {split: tuple(os.fsdecode(listed[split].classes[i]) for i in used[split]) for split in listed}
    for split, index in listed.items():
        if not names[split]:
            folders = counted(len(index.classes), "class folder")
            raise InputError(f"{show_path(index.roots[0])}: no readable picture in {folders}")
    if "val" in listed:
        require_same_classes(names["train"], names["val"], listed["train"].roots[0], listed["val"].roots[0])
    plans = {}
    for split, index in listed.items():
        new = np.full(len(index.classes), -1, np.int32)
        new[used[split]] = np.arange(len(used[split]), dtype=np.int32)
        order = epoch_ids(len(index), 0, 0)
        weight = np.maximum(index.stamps[order, 0], 0) + _EXTRA_BYTES
        shard = (np.cumsum(weight) - weight) // shard_bytes
        bounds = np.flatnonzero(np.diff(shard)) + 1
        plans[split] = SplitPlan(index, new[index.labels], np.split(order, bounds))
    return names["train"], plans


def _usable_classes(index: FileIndex, options: PackOptions) -> list[int]:
    def is_usable(row: int) -> bool:
        return isinstance(load_picture(index, row, options), Picture)

    bounds = np.searchsorted(index.labels, np.arange(len(index.classes) + 1)).tolist()
    return [label for label, rows in enumerate(map(range, bounds, bounds[1:])) if any(map(is_usable, rows))]


def _digest(listed: dict[str, FileIndex], options: PackOptions, shard_bytes: int) -> str:
    """Changes when a file's path, size or mtime does, or an option."""
    digest = hashlib.sha256(json.dumps([asdict(options), shard_bytes, PIL.__version__, __version__]).encode())
    for name, index in listed.items():
        digest.update(b"\0".join([name.encode(), *index.roots, *index.classes]))
        digest.update(index.names)
        for array in (index.lengths, index.labels, index.root_of, index.stamps):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _claim(root: Path, digest: str) -> Iterator[PackIndex | None]:
    """Creates or locks the folder of a pack; yields the pack if it is already complete.

    Raises:
        InputError: the folder holds something else, or another process packs into it.
    """
    parts = root / ".parts"
    if is_pack(root):
        index = read_index(root)
        if index.plan != digest:
            raise InputError(
                f"{show_path(root)}: holds a pack of other pictures, options or versions; remove it or name another"
            )
        shutil.rmtree(parts, ignore_errors=True)  # left by a kill between the last two steps
        yield index
        return
    if root.exists() and not parts.is_dir() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{show_path(root)}: neither empty nor an unfinished pack; name another folder")
    parts.mkdir(parents=True, exist_ok=True)
    with open(parts / "lock", "wb") as lock:  # released when the process ends, even if killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{show_path(root)}: another process packs into it; wait for it or stop it") from None
        plan = parts / "plan"
        known = plan.read_text("latin-1") if plan.exists() else digest
        if known != digest:
            raise InputError(
                f"{show_path(root)}: holds an unfinished pack of other pictures, options or versions; "
                "remove it or name another"
            )
        write_whole(plan, digest)
        yield None


def _place(part: Path, folder: Path, content: bytes) -> None:
    write_whole(part, content)
    os.replace(part, folder / part.name)
