"""The pictures of a bench as class folders of links, which every peer's loader reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastast.data import Dataset
from fastast.errors import InputError


def link_pictures(dataset: Dataset, out: Path) -> Path:
    """Links the pictures of both splits to `out`/train/CLASS and `out`/val/CLASS, all at once, if it does not exist.

    Class folders and files are numbered, in the order of labels and ids.

    Raises:
        InputError: the pictures are in a pack, and no files of their own.
    """
    if out.exists():
        return out
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, catalog in (("train", dataset.train), ("val", dataset.val)):
        for label in range(len(dataset.classes)):
            (unfinished / split / f"{label:05d}").mkdir(parents=True)
        for sample, label in enumerate(catalog.labels.tolist()):
            source = Path(catalog.path(sample))
            if not source.is_file():
                raise InputError(f"{source}: is no file; the peers read no packs, so bench on class folders")
            # Pillow tells PNG from JPEG by the content.
            (unfinished / split / f"{label:05d}" / f"{sample:08d}.jpg").symlink_to(source.resolve())
    unfinished.rename(out)
    return out
