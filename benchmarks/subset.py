"""A seeded part of a set of class folders, as links.

    python -m benchmarks.subset --data DIR --train 6000 --val 2000 --out NEW

DIR holds train/ and val/ with class folders; NEW gets both, with as many pictures of each class.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from pathlib import Path

from fastast.errors import InputError


def link_subset(source: Path, out: Path, count: int, *, seed: int = 0) -> None:
    """Links `count` pictures, as many of each class as of any other (give or take one), to class folders in `out`.

    Args:
        source: class folders.
        out: a new folder.
        count: pictures in all.
        seed: of the choice.

    Raises:
        InputError: there are no class folders, or fewer pictures than asked for.
    """
    folders = sorted(path for path in source.iterdir() if path.is_dir()) if source.is_dir() else []
    if not folders:
        raise InputError(f"{source}: holds no class folders")
    for place, folder in enumerate(folders):
        names = sorted(os.listdir(folder))
        random.Random(f"{seed} {folder.name}").shuffle(names)
        share = count // len(folders) + (place < count % len(folders))
        if share > len(names):
            raise InputError(f"{folder}: has {len(names)} pictures, {share} are needed; ask for fewer")
        (out / folder.name).mkdir(parents=True)
        for name in names[:share]:
            (out / folder.name / name).symlink_to((folder / name).resolve())


def link_splits(source: Path, out: Path, num_train: int, num_val: int) -> Path:
    """Makes the folder `out` with that many pictures of train/ and val/, all at once, if it does not exist."""
    if not out.exists():
        unfinished = out.with_name(out.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        link_subset(source / "train", unfinished / "train", num_train)
        link_subset(source / "val", unfinished / "val", num_val)
        unfinished.rename(out)
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--train", required=True, type=int, help="training pictures in all")
    parser.add_argument("--val", required=True, type=int, help="validation pictures in all")
    parser.add_argument("--out", required=True, type=Path, metavar="NEW", help="a new folder")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"--out {args.out}: exists already; name a new folder")
    link_splits(args.data, args.out, args.train, args.val)


if __name__ == "__main__":
    main()
