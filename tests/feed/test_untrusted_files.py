"""Everything found in folders of pictures is trained on, converted or quarantined, whether it is packed first or not.

Never a crash, a hang or a wrong label.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.catalog import Quarantined
from fastast.data.dataset import open_dataset
from fastast.packing.packer import run_pack
from tests.data.image_files import (
    cut_entropy,
    cut_png,
    deep_png,
    encode,
    motion_photo,
    picture,
    with_frame,
    with_junk,
    without,
    write_tree,
)
from tests.feed.helpers import eval_loader, train_loader

RGB = picture(48, 64, 3)
WHOLE = encode(RGB, quality=90)


def ycck() -> bytes:
    """A CMYK JPEG that says it is YCCK."""
    data = encode(RGB.convert("CMYK"))
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


def adobe(transform: int) -> bytes:
    """An RGB JPEG with Adobe's marker and this colour transform."""
    segment = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return WHOLE[:2] + segment + WHOLE[2:]


def missing_scans() -> bytes:
    """A progressive JPEG that ends after its third scan."""
    data = encode(RGB, progressive=True)
    at = -1
    for _ in range(4):
        at = data.index(b"\xff\xda", at + 1)
    return data[:at] + b"\xff\xd9"


def rotated(orientation: int) -> bytes:
    exif = RGB.getexif()
    exif[0x0112] = orientation
    return encode(RGB, exif=exif)


# A file of class "a", or how to make it, and its outcome from folders and through a pack: used, or quarantined for a
# reason with this phrase. "" where either is right, depending on the decoder.
KINDS: dict[str, tuple[bytes | Callable[[Path], object], str, str]] = {
    "text": (b"no picture " * 50, "text", "text"),
    "html": (b"<!DOCTYPE html><html>404</html>", "web page", "web page"),
    "gif": (encode(RGB, "GIF"), "GIF", "used"),
    "webp": (encode(RGB, "WEBP"), "WebP", "used"),
    "avif": (b"\0\0\0\x20ftypavif" + bytes(90), "AVIF", "AVIF"),
    "zero-byte": (b"", "empty", "empty"),
    "100-byte stub": (WHOLE[:100], "cut off", "cut off"),
    "truncated png": (encode(RGB, "PNG")[:900], "cut off", "cut off"),
    "png cut in its data": (cut_png(encode(RGB, "PNG"), 0.4), "cannot be decoded", "damaged picture data"),
    "65500 x 65500": (with_frame(WHOLE, height=65500, width=65500), "megapixels", "megapixels"),
    "20000 x 20000": (with_frame(WHOLE, height=20000, width=20000), "megapixels", "megapixels"),
    "0 x 0": (with_frame(WHOLE, height=0, width=0), "0 x 0", "0 x 0"),
    "arithmetic-coded": (with_frame(WHOLE, marker=0xC9), "arithmetic", "arithmetic"),
    "12-bit": (with_frame(WHOLE, marker=0xC1, precision=12), "12-bit", "12-bit"),
    "lossless": (with_frame(WHOLE, marker=0xC3), "lossless", "lossless"),
    "cmyk": (encode(RGB.convert("CMYK")), "used", "used"),
    "ycck": (ycck(), "used", "used"),
    "adobe transform 0": (adobe(0), "used", "used"),
    "adobe transform 1": (adobe(1), "used", "used"),
    "adobe transform 9": (adobe(9), "used", "used"),
    "rgb jpeg": (encode(RGB, keep_rgb=True), "used", "used"),
    "gray": (encode(RGB.convert("L")), "used", "used"),
    "16-bit png": (encode(RGB.convert("I;16"), "PNG"), "16-bit", "under a JPEG's name"),
    "16-bit colour png": (deep_png(np.full((40, 50, 4), 4095, np.uint16)), "16-bit", "16-bit colour"),
    "ppm": (encode(RGB, "PPM"), "PPM", "used"),
    "missing scans": (missing_scans(), "used", "used"),
    "progressive cut": (cut_entropy(encode(RGB, progressive=True), 0.1), "", ""),
    "baseline cut": (cut_entropy(WHOLE, 0.3), "", ""),
    "trailing junk": (WHOLE + b"junk" * 500, "used", "used"),
    "padding": (WHOLE + bytes(100_000), "used", "used"),
    "motion photo": (motion_photo(WHOLE), "used", "used"),
    "padding without an end": (WHOLE[:-2] + bytes(100_000), "cut off", "cut off"),
    "junk in the header": (with_junk(WHOLE, 3), "no marker", "used"),
    "motion jpeg": (without(WHOLE, 0xC4), "a table is missing", "used"),
    "mpo": (encode(RGB, "MPO", save_all=True, append_images=[RGB.rotate(90)]), "used", "used"),
    **{f"exif rotation {i}": (rotated(i), "used", "used") for i in (3, 6, 8)},
    "fifo": (os.mkfifo, "pipe", "pipe"),
    "folder named jpg": (os.mkdir, "ignored", "ignored"),
    "link in a circle": (lambda path: path.symlink_to(path), "Too many levels", "Too many levels"),
    "dangling link": (lambda path: path.symlink_to(path.parent / "nothing"), "leads nowhere", "leads nowhere"),
    "link out of the tree": (lambda path: path.symlink_to(path.parents[4] / "outside.jpg"), "used", "used"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file", "not a regular file"),
}
NAMES = ["new\nline.jpg", "ünïcødé-☃.jpg", "x" * 246 + ".jpg", "\udcff\udcfe.jpg", "-rf .jpg", "%s{0}$HOME.jpg"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set of two classes with different brightness, and a picture outside it."""
    tree = {}
    for split, count in (("train", 4), ("val", 1)):
        for name, level in (("a", 60), ("b", 200)):
            for i in range(count):
                image = picture(40, 50, i).point(lambda value, level=level: level + value // 8)
                tree[f"{split}/{name}/{i}.jpg"] = encode(image)
    root = tmp_path_factory.mktemp("hostile")
    (root / "outside.jpg").write_bytes(WHOLE)
    write_tree(root / "whole" / "d", tree)
    return root


def train_on(data: Path) -> tuple[dict[str, int], list[Quarantined]]:
    """Trains and evaluates one epoch; returns the label of each picture used, and all that was quarantined."""
    dataset = open_dataset(data)
    log = list(dataset.quarantined)
    report = lambda *line: log.append(Quarantined(*line))  # noqa: E731
    loader = train_loader(dataset.train, batch_size=4, image_size=64, on_quarantine=report)
    used: dict[str, int] = {}
    for batch in loader.epoch(0, np.arange(dataset.train.num_samples)):
        for row in range(batch.num_valid):
            path = dataset.train.path(int(batch.ids[row]))
            used["/".join(path.replace(".tar:", "/").split("/")[-2:])] = int(batch.labels[row])
            assert torch.isfinite(batch.images[row]).all()
    loader.close()
    held = eval_loader(dataset.val, image_size=64, on_quarantine=report)
    assert sum(batch.num_valid for batch in held) == 2
    held.close()
    return used, log


def check(root: Path, name: str, expected: tuple[str, str], tmp_path: Path) -> None:
    run_pack(root, tmp_path / "p", workers=2, verify=True, say=lambda line: None)
    for data, outcome in ((root, expected[0]), (tmp_path / "p", expected[1])):
        used, log = train_on(data)
        assert {path: label for path, label in used.items() if not path.endswith(name)} == {
            f"{kind}/{i}.jpg": label for label, kind in enumerate("ab") for i in range(4)
        }
        assert len(log) == len({entry.path for entry in log})
        if outcome == "used":
            assert used.get(f"a/{name}") == 0, (outcome, used, log)
            assert log == []
        elif outcome == "ignored":
            assert f"a/{name}" not in used
            assert log == []
        else:
            assert (f"a/{name}" in used) != any(entry.path.endswith("a/" + name) for entry in log)
            assert used.get(f"a/{name}", 0) == 0
            if outcome:
                assert [outcome in entry.reason for entry in log] == [True], log
                assert "\n" not in log[0].reason


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of the sound data set, to add a file to."""
    shutil.copy(whole / "outside.jpg", tmp_path)
    return shutil.copytree(whole / "whole" / "d", tmp_path / "x" / "d")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, root: Path, tmp_path: Path) -> None:
    content, *expected = KINDS[kind]
    path = root / "train" / "a" / "zz.jpg"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    check(root, "zz.jpg", (expected[0], expected[1]), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_name(name: str, root: Path, tmp_path: Path) -> None:
    write_tree(root, {f"train/a/{name}": WHOLE})
    check(root, name, ("used", "used"), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(root: Path, tmp_path: Path) -> None:
    path = root / "train" / "a" / "zz.jpg"
    path.write_bytes(WHOLE)
    path.chmod(0)
    check(root, "zz.jpg", ("permission denied", "permission denied"), tmp_path)
