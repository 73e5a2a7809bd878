"""Packs: the same pictures, labels and order as the folders, in files that other programs can open."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastast.data.catalog import Catalog
from fastast.data.dataset import Dataset, open_dataset, open_folder
from fastast.data.pack_catalog import PackCatalog
from fastast.errors import InputError
from fastast.packing.packer import run_pack
from tests.data.image_files import deep_png, encode, jpeg, picture, with_junk, without, write_tree
from tests.feed.helpers import same_batches, train_loader


def pack(source: Path, out: Path, **options: Any) -> list[str]:
    said: list[str] = []
    assert run_pack(source, out, workers=2, say=said.append, **options) == 0
    return said


def tree_of(prefix: str, counts: dict[str, int], seed: int = 0) -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{i:02d}.jpg": jpeg(20 + 3 * i, 50 - i, seed + i, quality=60 + i)
        for name, count in counts.items()
        for i in range(count)
    }


def same(packed: Dataset, folders: Dataset) -> None:
    assert packed.fingerprint == folders.fingerprint
    assert packed.classes == folders.classes
    for ours, theirs in ((packed.train, folders.train), (packed.val, folders.val)):
        assert isinstance(ours, PackCatalog)
        assert ours.num_samples == theirs.num_samples
        assert ours.classes == theirs.classes
        assert ours.digest() == theirs.digest()
        for name in ("labels", "sizes"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)
        for sample in range(ours.num_samples):
            assert np.array_equal(ours.read_one(sample), theirs.read_one(sample))
            inside = ours.path(sample).split(".tar:")[1]
            assert theirs.path(sample).endswith("/" + inside)


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_equals_the_folders(val: str, tmp_path: Path) -> None:
    tree = {**tree_of("train/", {"b": 7, "a": 9, "c": 1}), **tree_of(f"{val}/", {"a": 2, "b": 3, "c": 1}, 50)}
    root = write_tree(tmp_path / "d", tree)
    pack(root, tmp_path / "p", shard_size_mb=0.01, verify=True)
    assert len(list((tmp_path / "p").glob("train-*.tar"))) > 2
    same(open_dataset(tmp_path / "p"), open_dataset(root))
    same(open_dataset(tmp_path / "p", val_split=0.4, seed=3), open_dataset(root, val_split=0.4, seed=3))
    held, folder = open_folder(tmp_path / "p", ["c", "b", "a"]), open_folder(root, ["c", "b", "a"])
    assert held.labels.tolist() == folder.labels.tolist()
    assert held.classes == folder.classes == ("c", "b", "a")


def test_parts_and_odd_names(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "ünïcode ☃.jpg", "x" * 246 + ".jpg", "..jpg.jpg", "two.dots.here.jpg", "\udcff\udcfe.jpg"]
    tree = {f"train.X1/n1/{name}": jpeg(20, 30, i) for i, name in enumerate(names)}
    tree |= {"train.X2/n1/deep/er/1.jpg": jpeg(9, 9), "train.X2/n\n2/0.jpg": jpeg(8, 8)}
    tree |= {"val.X/n1/0.jpg": jpeg(7, 7), "val.X/n\n2/0.jpg": jpeg(6, 6)}
    root = write_tree(tmp_path / "d", tree)
    pack(root, tmp_path / "p", verify=True)
    same(open_dataset(tmp_path / "p"), open_dataset(root))


def test_bare_class_folders_and_separate_packs(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", tree_of("", {"a": 6, "b": 5}))
    held = write_tree(tmp_path / "h", tree_of("", {"a": 2, "b": 2}, 30))
    pack(root, tmp_path / "both" / "train")
    pack(held, tmp_path / "both" / "val")
    train = tmp_path / "both" / "train"
    with pytest.raises(InputError, match="no val/ folder; add --val-dir DIR or --val-split"):
        open_dataset(train)
    same(open_dataset(train, val_split=0.3), open_dataset(root, val_split=0.3))
    expected = open_dataset(train_dirs=[root], val_dir=held)
    same(open_dataset(tmp_path / "both"), expected)
    same(open_dataset(train, val_dir=tmp_path / "both" / "val"), expected)
    mixed = open_dataset(train, val_dir=held)
    assert mixed.fingerprint == expected.fingerprint
    with pytest.raises(InputError, match="cannot be merged"):
        open_dataset(train_dirs=[train, root], val_dir=held)


def test_same_training_batches(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", tree_of("", {"a": 11, "b": 10}))
    pack(root, tmp_path / "p", shard_size_mb=0.01)
    for side in (32, 64):
        loaders = [train_loader(open_folder(place), image_size=side) for place in (root, tmp_path / "p")]
        assert same_batches(*(list(loader.epoch(0, np.arange(21))) for loader in loaders))
        for loader in loaders:
            loader.close()


def test_shards_are_plain_tar_files(tmp_path: Path) -> None:
    tree = tree_of("train/", {"b": 5, "a": 6}) | tree_of("val/", {"a": 1, "b": 1})
    root = write_tree(tmp_path / "d", tree)
    pack(root, tmp_path / "p", shard_size_mb=0.01)
    found = {}
    for shard in sorted((tmp_path / "p").glob("train-*.tar")):
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
            assert all(member.isreg() and member.mtime == 0 for member in members)
            bodies = {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        keys = [name[:-4] for name in bodies if name.endswith(".cls")]
        assert list(bodies) == [f"{key}.{kind}" for key in keys for kind in ("jpg", "cls")]
        found |= {int(key): (bodies[key + ".jpg"], int(bodies[key + ".cls"])) for key in keys}
    catalog = open_dataset(root).train
    expected = [(catalog.read_one(i).tobytes(), int(catalog.labels[i])) for i in range(11)]
    assert [found[key] for key in sorted(found)] == expected
    assert list(found) != sorted(found)  # classes are mixed, for readers that go from front to back


def test_webdataset_reads_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    root = write_tree(tmp_path / "d", tree_of("", {"b": 5, "a": 6}))
    pack(root, tmp_path / "p", shard_size_mb=0.01)
    shards = sorted(map(str, (tmp_path / "p").glob("*.tar")))
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8")
    pixels = {int(sample["__key__"]): (sample["jpg"], sample["cls"]) for sample in samples}
    catalog = open_folder(root)
    assert sorted(pixels) == list(range(11))
    for key, (image, label) in pixels.items():
        assert label == catalog.labels[key]
        assert image.shape[:2] == tuple(catalog.sizes[key])


# ----------------------------------------------------------------------------------- conversion and quarantine

RGB = picture(40, 60, 7)
GRAY16 = Image.fromarray(np.asarray(RGB.convert("L"), np.uint16) * 257)
CONVERTED = {
    "png.png": (encode(RGB, "PNG"), RGB),
    "png named jpg.jpg": (encode(RGB, "PNG"), RGB),
    "webp.webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "gif.gif": (encode(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]), None),
    "palette.png": (encode(RGB.convert("P"), "PNG"), RGB.convert("P").convert("RGB")),
    "alpha.png": (encode(RGB.convert("RGBA"), "PNG"), RGB),
    "16 bits.png": (encode(GRAY16, "PNG"), RGB.convert("L").convert("RGB")),
    "16-bit colour.png": (deep_png(np.asarray(RGB, np.uint16) * 257), RGB),
    "bmp.bmp": (encode(RGB, "BMP"), RGB),
    "ppm.ppm": (encode(RGB, "PPM"), RGB),
    "avif.avif": (encode(RGB, "AVIF", quality=100), RGB),
    "jpeg 2000.jp2": (encode(RGB, "JPEG2000"), RGB),
    "tiff.tif": (encode(RGB, "TIFF"), RGB),
    "cmyk.jpg": (encode(RGB.convert("CMYK"), quality=95), RGB),
    "one bit.png": (encode(RGB.convert("1"), "PNG"), RGB.convert("1").convert("RGB")),
}
LEFT_OUT = {
    "text.jpg": (b"no picture at all", "text, not a picture"),
    "empty.jpg": (b"", "empty file"),
    "half.jpg": (jpeg(90, 90)[:1500], "cut off"),
    "half.png": (encode(RGB, "PNG")[:600], "cut off"),
    "float.tif": (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    "long.png": (encode(Image.new("L", (70_000, 2)), "PNG"), "too long for a JPEG"),
}


def test_converted_and_left_out(tmp_path: Path) -> None:
    tree = {f"train/a/{name}": data for name, (data, _) in CONVERTED.items()}
    tree |= {f"train/a/{name}": data for name, (data, _) in LEFT_OUT.items()}
    kept = {
        "train/a/color.jpg": jpeg(30, 30),
        "train/a/gray.jpg": encode(RGB.convert("L")),
        "train/b/0.jpg": jpeg(9, 9),
    }
    tree |= kept | {"train/none/text.jpg": b"text", "val/a/0.jpg": jpeg(9, 9), "val/b/0.webp": encode(RGB, "WEBP")}
    root = write_tree(tmp_path / "d", tree)
    said = "\n".join(pack(root, tmp_path / "p", verify=True))
    assert "14 re-encoded (not a JPEG; JPEG quality 95, 4:4:4)" in said
    assert "1 re-encoded (CMYK" in said
    assert "7 left out, such as" in said
    dataset = open_dataset(tmp_path / "p")
    assert dataset.classes == ("a", "b")
    train = dataset.train
    where = {os.path.basename(train.path(i)): i for i in range(train.num_samples)}
    assert sorted(where) == sorted([*CONVERTED, "color.jpg", "gray.jpg", "0.jpg"])
    for name, data in kept.items():
        assert train.read_one(where[os.path.basename(name)]).tobytes() == data
    for name, (_, expected) in CONVERTED.items():
        image = Image.open(io.BytesIO(train.read_one(where[name]).tobytes()))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (60, 40))
        pixels = np.asarray(image, np.float32)
        assert np.abs(pixels - np.asarray(expected or RGB, np.float32)).mean() < (20 if expected is None else 4), name
    reasons = {os.path.basename(entry.path): entry.reason for entry in dataset.quarantined if "none" not in entry.path}
    assert sorted(reasons) == sorted(LEFT_OUT)
    assert all(phrase in reasons[name] for name, (_, phrase) in LEFT_OUT.items()), reasons
    assert [entry.reason[:4] for entry in dataset.quarantined if "/none/" in entry.path] == ["text"]


def deep(most: int, kind: str = "PNG") -> bytes:
    """A gray ramp from 0 to `most` with 16 bits."""
    return encode(Image.fromarray(np.linspace(0, most, 2000).reshape(40, 50).astype(np.uint16)), kind)


def extremes(catalog: Catalog, sample: int) -> tuple[int, int]:
    pixels = np.asarray(Image.open(io.BytesIO(catalog.read_one(sample).tobytes())))
    return int(pixels.min()), int(pixels.max())


def test_sixteen_bits_are_scaled_by_one_range(tmp_path: Path) -> None:
    """X-rays of 12 bits in 16 became levels 0 to 15 of 255."""
    tree = {"train/a/0.png": deep(1000), "train/b/0.tif": deep(2000, "TIFF"), "val/a/0.png": deep(4095)}
    root = write_tree(tmp_path / "d", tree | {"val/b/0.png": deep(60), "train/b/1.jpg": jpeg(9, 9)})
    assert "16-bit pictures: the lower 12 bits became 0 to 255; " in pack(root, tmp_path / "p", verify=True)[-2]
    dataset = open_dataset(tmp_path / "p")
    levels = [extremes(catalog, sample) for catalog in (dataset.train, dataset.val) for sample in (0, 1)]
    assert np.abs(np.array(levels) - [(0, 62), (0, 125), (0, 255), (0, 3)]).max() <= 2
    assert dataset.train.bits == dataset.val.bits == dataset.train.take(np.arange(1)).bits == 12
    refusal = (
        r"no readable picture.* all as .*/a/0.png is: 16-bit PNG; `fastast pack SRC OUT` converts all by one range"
    )
    with pytest.raises(InputError, match=refusal):
        open_folder(root / "val")


def test_packs_of_two_ranges_do_not_mix(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "t", {"a/0.png": deep(4095), "b/0.png": deep(900)})
    held = write_tree(tmp_path / "v", {"a/0.png": deep(1000), "b/0.png": deep(900)})
    pack(source, tmp_path / "p")
    pack(held, tmp_path / "p10")
    with pytest.raises(InputError, match=r"another range \(10 bits\).*\(12 bits\); pack it again with --bits 12"):
        open_dataset(tmp_path / "p", val_dir=tmp_path / "p10")
    pack(held, tmp_path / "p12", bits=12)
    levels = extremes(open_dataset(tmp_path / "p", val_dir=tmp_path / "p12").val, 0)
    assert np.abs(np.array(levels) - (0, 62)).max() <= 2


def test_colour_of_few_bits_is_left_out(tmp_path: Path) -> None:
    """Pillow reads the upper 8 bits of 16-bit colour, which leaves 16 levels of 12 bits."""
    dark = deep_png(np.full((9, 9, 3), 4000, np.uint16))
    root = write_tree(tmp_path / "d", {"a/0.png": dark, "a/1.png": deep(60_000)})
    assert "16-bit colour in another range" in "\n".join(pack(root, tmp_path / "p"))


def test_mended_headers_keep_the_picture(tmp_path: Path) -> None:
    whole = jpeg(40, 60, 7)
    junk = (b"junk", b"\xff\0", b"\xff\xd3", b"\0\0\0")
    odd = [with_junk(whole, place, between) for place in range(1, 6) for between in junk] + [without(whole, 0xC4)]
    root = write_tree(tmp_path / "d", {f"a/{i:02d}.jpg": data for i, data in enumerate(odd)})
    said = pack(root, tmp_path / "p", verify=True)
    assert f"train: {len(odd)} changed (header mended; the picture as it was)" in said
    catalog = open_folder(tmp_path / "p")
    for sample, data in enumerate(odd):
        mended = catalog.read_one(sample).tobytes()
        assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(file))) for file in (data, mended)))
        assert mended == whole or sample == len(odd) - 1


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    tree = {
        "a/big.jpg": jpeg(200, 300, 1),
        "a/fits.jpg": jpeg(60, 100, 2),
        "a/tall.png": encode(picture(150, 30), "PNG"),
    }
    root = write_tree(tmp_path / "d", tree)
    pack(root, tmp_path / "p", max_side=100, quality=90, verify=True)
    catalog = open_folder(tmp_path / "p")
    assert isinstance(catalog, PackCatalog)
    assert catalog.sizes.tolist() == [[67, 100], [60, 100], [100, 20]]
    assert catalog.read_one(1).tobytes() == tree["a/fits.jpg"]
    small = np.asarray(Image.open(io.BytesIO(catalog.read_one(0).tobytes())), np.float32)
    expected = np.asarray(picture(200, 300, 1).resize((100, 67), Image.Resampling.LANCZOS), np.float32)
    assert np.abs(small - expected).mean() < 4


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"max_side": 0}, "--max-side 0: must be in 1 ... 65535"),
        ({"quality": 101}, "--quality 101"),
        ({"bits": 7}, "--bits 7: must be in 8 ... 16"),
        ({"workers": 0}, "--workers 0"),
        ({"shard_size_mb": 0.0}, "--shard-size 0"),
    ],
)
def test_options_are_checked(options: dict, phrase: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=phrase):
        run_pack(tmp_path, tmp_path / "p", **options)


def test_sources_that_cannot_be_packed(tmp_path: Path) -> None:
    good = write_tree(tmp_path / "good", tree_of("train/", {"a": 1, "b": 1}) | tree_of("val/", {"a": 1}))
    with pytest.raises(InputError, match="1 class that the other split has: b"):
        pack(good, tmp_path / "p")
    assert not (tmp_path / "p" / "pack.json").exists()
    cases = [
        (write_tree(tmp_path / "text", {"a/0.jpg": b"text", "b/0.jpg": b"text"}), "no readable picture in 2 class"),
        (tmp_path / "absent", "no such folder"),
        (write_tree(tmp_path / "flat", {"0.jpg": jpeg(9, 9)}), "no class folders"),
        (write_tree(tmp_path / "held", tree_of("val/", {"a": 1})), "has no train/ folder"),
    ]
    for source, phrase in cases:
        with pytest.raises(InputError, match=phrase):
            pack(source, tmp_path / "q" / source.name)
    root = write_tree(tmp_path / "r", tree_of("", {"a": 1}))
    with pytest.raises(InputError, match="lies inside the folder of the pictures"):
        pack(root, root / "a" / "pack")
    occupied = write_tree(tmp_path / "occupied", {"notes.txt": b"mine"})
    with pytest.raises(InputError, match="neither empty nor an unfinished pack"):
        pack(root, occupied)
    with pytest.raises(InputError, match="fastast pack SRC OUT"):
        run_pack(root)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", tree_of("train/", {"a": 40, "b": 3}) | tree_of("val/", {"a": 1, "b": 1}))
    seen: list[tuple[int, int]] = []
    pack(root, tmp_path / "p", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (45, 45)
    assert len(seen) > 2
