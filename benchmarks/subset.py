"""A seeded part of a set of class folders, as links; with wrong labels or rare classes if that is what is studied.

    python -m benchmarks.subset --data DIR --train 6000 --val 2000 --out NEW
    python -m benchmarks.subset --data DIR --train 6000 --val 2000 --random-labels 0.1 --out NEW
    python -m benchmarks.subset --data DIR --train 50000 --val 2000 --rare 0.05 --out NEW

DIR holds train/ and val/ with class folders; NEW gets both, with as many pictures of each class. --random-labels gives
a share of the training pictures a label drawn evenly from all classes, --rare cuts all classes of the training pictures
but the first two to a share of them; val/ stays as it is.
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


def shuffle_labels(folder: Path, share: float, *, seed: int = 0) -> None:
    """Moves a share of the pictures to a class drawn evenly from all, their own included.

    A moved picture is called `was-<its class>-<its name>`.

    Args:
        folder: class folders, as `link_subset` makes them.
        share: of all pictures, in [0, 1].
        seed: of the choice.
    """
    classes = sorted(os.listdir(folder))
    pictures = [(name, file) for name in classes for file in sorted(os.listdir(folder / name))]
    draw = random.Random(f"{seed} labels")
    for name, file in draw.sample(pictures, round(share * len(pictures))):
        (folder / name / file).rename(folder / draw.choice(classes) / f"was-{name}-{file}")


def make_rare(folder: Path, share: float, *, num_whole: int = 2) -> None:
    """Removes all links but a share of them from every class of `folder` but the first `num_whole`."""
    for path in sorted(folder.iterdir())[num_whole:]:
        links = sorted(path.iterdir())
        for link in links[max(1, round(share * len(links))) :]:
            link.unlink()


def link_splits(
    source: Path, out: Path, num_train: int, num_val: int, *, random_labels: float = 0.0, rare: float = 1.0
) -> Path:
    """Makes the folder `out` with that many pictures of train/ and val/, all at once, if it does not exist."""
    if not out.exists():
        unfinished = out.with_name(out.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        link_subset(source / "train", unfinished / "train", num_train)
        link_subset(source / "val", unfinished / "val", num_val)
        make_rare(unfinished / "train", rare)
        shuffle_labels(unfinished / "train", random_labels)
        unfinished.rename(out)
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--train", required=True, type=int, help="training pictures in all")
    parser.add_argument("--val", required=True, type=int, help="validation pictures in all")
    parser.add_argument(
        "--random-labels", type=float, default=0.0, metavar="SHARE", help="training pictures whose label is drawn anew"
    )
    parser.add_argument(
        "--rare", type=float, default=1.0, metavar="SHARE", help="of --train, what classes but the first two keep"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="NEW", help="a new folder")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"--out {args.out}: exists already; name a new folder")
    for flag, share in (("--random-labels", args.random_labels), ("--rare", args.rare)):
        if not 0 <= share <= 1:
            raise InputError(f"{flag} {share:g}: must be in [0, 1], for example 0.1")
    link_splits(args.data, args.out, args.train, args.val, random_labels=args.random_labels, rare=args.rare)


if __name__ == "__main__":
    main()
