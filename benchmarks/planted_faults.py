"""A picture set with known faults: exact and near duplicates, leaks into val, and wrong labels."""

from __future__ import annotations

import io
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from benchmarks.subset import link_splits

LANCZOS = Image.Resampling.LANCZOS


class Planted(NamedTuple):
    """What was planted.

    Attributes:
        pairs: paths of copy and original relative to the folder, by kind of copy.
        wrong: path of each wrongly labelled picture, and its true class.
    """

    pairs: dict[str, list[tuple[str, str]]]
    wrong: dict[str, str]


def plant(
    source: Path, out: Path, *, num_train: int, num_val: int, per_kind: int, wrong: float, seed: int = 0
) -> Planted:
    """Makes `out` from a part of the set `source`, and plants faults in it.

    Args:
        source: holds train/ and val/ with class folders.
        out: a new folder.
        num_train, num_val: pictures of the part.
        per_kind: copies of each kind within train, and as many from train into val.
        wrong: share of the training pictures that are moved to another class.
        seed: of the choices.
    """
    draw = random.Random(seed)
    link_splits(source, out, num_train, num_val)
    classes = sorted(os.listdir(out / "train"))
    files = [(name, file) for name in classes for file in sorted(os.listdir(out / "train" / name))]
    draw.shuffle(files)
    kinds = {"exact": _copy, "re-encoded": _reencode, "resized": _resize, "cropped": _crop}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for kind, make in kinds.items():
        for split in ("train", "val"):
            for _ in range(per_kind):
                name, file = files.pop()
                original = f"train/{name}/{file}"
                copy = f"{split}/{name}/{kind}-{Path(file).stem}.jpg"
                make(out / original, out / copy, draw)
                pairs.setdefault(f"{kind} {split}", []).append((copy, original))
    moved = {}
    for name, file in files[: round(wrong * num_train)]:
        other = draw.choice([one for one in classes if one != name])
        (out / "train" / name / file).rename(out / "train" / other / f"was-{name}-{file}")
        moved[f"train/{other}/was-{name}-{file}"] = name
    return Planted(pairs, moved)


def _copy(source: Path, to: Path, draw: random.Random) -> None:
    shutil.copyfile(source, to)


def _reencode(source: Path, to: Path, draw: random.Random) -> None:
    _save(Image.open(source), to, draw.randint(40, 80))


def _resize(source: Path, to: Path, draw: random.Random) -> None:
    image = Image.open(source)
    _save(image.resize((round(0.8 * image.width), round(0.8 * image.height)), LANCZOS), to, 85)


def _crop(source: Path, to: Path, draw: random.Random) -> None:
    """Cuts up to 5 % off each side."""
    image = Image.open(source)
    left, top, right, bottom = (draw.uniform(0, 0.05) for _ in range(4))
    box = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    _save(image.crop(tuple(map(round, box))), to, 85)


def _save(image: Image.Image, to: Path, quality: int) -> None:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    to.write_bytes(buffer.getvalue())
