"""The demo set: deterministic, complete or absent, and varied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastast.data.dataset import open_dataset
from fastast.data.demo import CLASSES, draw_dataset
from fastast.errors import InputError


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def test_draws_what_was_asked(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    draw_dataset(
        tmp_path / "deep" / "set",
        num_classes=16,
        train_per_class=6,
        val_per_class=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    dataset = open_dataset(tmp_path / "deep" / "set")
    assert dataset.classes == tuple(sorted(CLASSES))
    assert np.bincount(dataset.train.labels).tolist() == [6] * 16
    assert np.bincount(dataset.val.labels).tolist() == [2] * 16
    assert dataset.quarantined == []
    assert len(np.unique(dataset.train.sizes, axis=0)) > 50
    assert 72 <= dataset.train.sizes.min() <= dataset.train.sizes.max() < 136
    assert seen[-1] == (128, 128)
    pictures = contents(tmp_path / "deep" / "set")
    assert len(set(pictures.values())) == 128
    assert {Image.open(tmp_path / "deep" / "set" / name).format for name in pictures} == {"JPEG"}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_dataset(tmp_path / name, num_classes=3, train_per_class=3, val_per_class=1, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a").values()) & set(contents(tmp_path / "c").values())
    train, val = (set(contents(tmp_path / "a" / split).values()) for split in ("train", "val"))
    assert not train & val


def test_finished_set_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "set"
    draw_dataset(out, num_classes=2, train_per_class=2, val_per_class=1)
    whole = contents(out)
    stamp = (out / "train/stripes/00000.jpg").stat().st_mtime_ns
    draw_dataset(out, num_classes=2, train_per_class=2, val_per_class=1)
    assert (out / "train/stripes/00000.jpg").stat().st_mtime_ns == stamp
    draw_dataset(out, num_classes=2, train_per_class=3, val_per_class=1)
    assert len(contents(out)) == 8

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "other", num_classes=2, train_per_class=2, val_per_class=1, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    draw_dataset(tmp_path / "other", num_classes=2, train_per_class=2, val_per_class=1)
    assert contents(tmp_path / "other") == whole


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 2 and 16"):
        draw_dataset(tmp_path / "set", num_classes=17, train_per_class=1, val_per_class=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other"):
        draw_dataset(tmp_path / "mine", num_classes=2, train_per_class=1, val_per_class=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
