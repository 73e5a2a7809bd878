"""Layouts of public sets, folders that are refused as ambiguous, and what is said about each."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastast.data.dataset import Dataset, find_splits, open_dataset, open_folder, require_outside
from fastast.errors import InputError
from fastast.packing.packer import run_pack
from tests.data.image_files import encode, jpeg, picture, write_tree

GOOD = jpeg(20, 30)
WNIDS = ("n01443537", "n02119789")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def classes(prefix: str, names: str | tuple[str, ...], count: int = 4) -> dict[str, bytes]:
    return {f"{prefix}{name}/{i}.jpg": GOOD for name in names for i in range(count)}


def flat(prefix: str, count: int = 4, extension: str = "JPEG") -> dict[str, bytes]:
    return {f"{prefix}{i}.{extension}": GOOD for i in range(count)}


def lines(*rows: str) -> bytes:
    return "\n".join(rows).encode() + b"\n"


TINY = {
    **{f"train/{wnid}/images/{wnid}_{i}.JPEG": GOOD for wnid in WNIDS for i in range(4)},
    "train/n01443537/n01443537_boxes.txt": b"x",
    **flat("val/images/val_"),
    **flat("test/images/test_"),
    "val/val_annotations.txt": lines(*(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t9\t9" for i in range(4))),
}
IMAGENET = {**classes("train/", WNIDS), **flat("val/ILSVRC2012_val_0000000"), **flat("test/")}
SOLUTION = lines("ImageId,PredictionString", *(f"ILSVRC2012_val_0000000{i},{WNIDS[i % 2]} 1 2 3 4" for i in range(4)))
FOOD = {
    **classes("images/", "ab"),
    "meta/train.txt": lines("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"),
    "meta/test.txt": lines("a/3", "b/3"),
}

# By the name of the set: files, classes, numbers of pictures (None: --val-split is needed), part of the layout's line.
LAYOUTS: dict[str, tuple[dict[str, bytes], str, tuple[int, int] | None, str]] = {
    "any_case": ({**classes("Training/", "ab"), **classes("Testing/", "ab", 2)}, "ab", (8, 4), "Training/ and Tes"),
    "deeper": ({**classes("x/y/train/", "ab"), **classes("x/y/dev/", "ab")}, "ab", (8, 8), "x/y/train/ and x/y/dev/"),
    "wrapped": ({**classes("train/train/", "ab"), **classes("val/", "ab")}, "ab", (8, 8), "train/train/ and val/"),
    "intel": (
        {**classes("seg_train/seg_train/", "ab"), **classes("seg_test/seg_test/", "ab"), **flat("seg_pred/seg_pred/")},
        "ab",
        (8, 8),
        "seg_train/seg_train/ and seg_test/seg_test/ (seg_pred/ not used)",
    ),
    "food-101": (FOOD, "ab", (6, 2), "Food-101"),
    "food-json": (
        {
            **classes("images/", "ab"),
            "meta/train.json": b'{"a": ["a/0", "a/1"], "b": ["b/0", "b/1"]}',
            "meta/test.json": b'{"a": ["a/3"], "b": ["b/3"]}',
        },
        "ab",
        (4, 2),
        "Food-101",
    ),
    "cub": (
        {
            **classes("images/", "ab", 2),
            "images.txt": lines("1 a/0.jpg", "2 a/1.jpg", "3 b/0.jpg", "4 b/1.jpg"),
            "train_test_split.txt": lines("1 1", "2 0", "3 0", "4 1"),
            "segmentations/a/0.png": b"mask",
        },
        "ab",
        (2, 2),
        "CUB-200-2011",
    ),
    "dogs": ({**classes("Images/", "ab"), "Annotation/a/a_1": b"<xml/>"}, "ab", None, "class folders in Images"),
    "caltech": (
        {**classes("101_ObjectCategories/", ("BACKGROUND_Google", "ant")), "Annotations/ant/1.mat": b"x"},
        ("BACKGROUND_Google", "ant"),
        None,
        "class folders in 101_ObjectCategories",
    ),
    "tiny": (TINY, WNIDS, (8, 4), "val/images/, val_annotations.txt (Tiny-ImageNet) (test/ not used)"),
    "kaggle_imagenet": (
        {
            **{f"ILSVRC/Data/CLS-LOC/{name}": data for name, data in IMAGENET.items()},
            "ILSVRC/Annotations/CLS-LOC/val/1.xml": b"x",
            "LOC_val_solution.csv": SOLUTION,
        },
        WNIDS,
        (8, 4),
        "LOC_val_solution.csv",
    ),
    "devkit": (
        {
            **{name.replace("0000000", "0000001"): data for name, data in IMAGENET.items()},
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines(*"12121212121212"),
            "ILSVRC2012_devkit_t12/data/map_clsloc.txt": lines("n02119789 1 kit_fox", "n01443537 2 goldfish"),
        },
        WNIDS,
        (8, 4),
        "ILSVRC2012_validation_ground_truth.txt",
    ),
    "dog_breeds": (
        {
            **flat("train/", 8, "jpg"),
            **flat("test/", 2),
            "labels.csv": lines("id,breed", *["0,a", "1,b", "2,a", "3,b", "4,a", "5,b", "6,a", "7,b"]),
        },
        "ab",
        None,
        "train/, labels.csv",
    ),
    "class_named_train": (
        {**classes("train/", ("oak", "train")), **classes("val/", ("oak", "train"))},
        ("oak", "train"),
        (8, 8),
        "train/ and val/",
    ),
    "only_that_class": (classes("", ("oak", "train")), ("oak", "train"), None, "class folders,"),
    "prefix_is_no_split": (
        classes("", ("bullet_train", "crash_test")),
        ("bullet_train", "crash_test"),
        None,
        "class folders,",
    ),
    "thumbnails": (
        {**classes("", "ab"), "@eaDir/x/1.jpg": GOOD, "a/@eaDir/0.jpg/SYNO.jpg": GOOD},
        "ab",
        None,
        "class folders,",
    ),
    "run_inside": (
        {**classes("", "ab"), "runs/x/metrics.jsonl": b"", "runs/x/thumbs/1.jpg": GOOD},
        "ab",
        None,
        "class folders,",
    ),
    "run_beside": (
        {**classes("train/", "ab"), "runs/x/metrics.jsonl": b"", "runs/x/thumbs/1.jpg": GOOD},
        "ab",
        None,
        "train/,",
    ),
}


def opened(root: Path, **options: Any) -> tuple[Dataset, list[str]]:
    notes: list[str] = []
    return open_dataset(root, on_note=notes.append, **options), notes


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_read_and_named(name: str, tmp_path: Path) -> None:
    """A split was taken for a class, a folder of pictures for a class, a class for a split."""
    tree, names, counts, phrase = LAYOUTS[name]
    root = write_tree(tmp_path / "d", tree)
    if counts is None:
        with pytest.raises(InputError, match=r"--val-split 0\.05"):
            open_dataset(root)
    dataset, notes = opened(root, val_split=0.25 if counts is None else None)
    assert dataset.classes == tuple(names)
    assert counts in (None, (dataset.train.num_samples, dataset.val.num_samples))
    assert notes[0].startswith("layout: ")
    assert phrase in notes[0]
    assert f"{len(names)} classes: {names[0]}, {names[1]}" in notes[0]
    for catalog in (dataset.train, dataset.val):  # labels are right, wherever they come from
        for sample in range(catalog.num_samples):
            path, label = catalog.path(sample), catalog.classes[catalog.labels[sample]]
            number = int(Path(path).stem[-1]) if Path(path).stem[-1].isdigit() else 0
            inside = f"/{label}/" in path
            assert inside or label == names[number % 2], (path, label)
    # Evaluation, and packs, take the same pictures.
    held = open_folder(root) if counts else None
    if held is not None:
        assert [held.path(i) for i in range(held.num_samples)] == [dataset.val.path(i) for i in range(held.num_samples)]
        assert held.labels.tolist() == dataset.val.labels.tolist()
    assert set(find_splits(root)) == ({"train", "val"} if counts else {"train"})


@pytest.mark.parametrize(
    ("tree", "folder"),
    [
        (TINY, "val"),
        (TINY, "val/images"),
        ({**IMAGENET, "LOC_val_solution.csv": SOLUTION}, "val"),
        ({**IMAGENET, "val/labels.csv": SOLUTION}, "val"),
    ],
)
def test_flat_val_is_evaluated_by_its_list(tree: dict[str, bytes], folder: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", tree)
    assert open_folder(root / folder, WNIDS).labels.tolist() == [0, 0, 1, 1]
    assert open_dataset(root, val_dir=root / folder).val.num_samples == 4


@pytest.mark.parametrize("header", ["id,filename,label", "name,file,class", "image_id,path,species"])
def test_column_of_files_is_told_from_one_of_numbers(header: str, tmp_path: Path) -> None:
    """Which name the same pictures, in another order."""
    rows = [f"{i},{(i + 1) % 4}.jpg,{'ab'[i % 2]}" for i in range(4)]
    tree = {**{f"val/{i}.jpg": GOOD for i in range(4)}, "val/labels.csv": "\n".join([header, *rows]).encode()}
    root = write_tree(tmp_path / "d", tree)
    assert open_folder(root / "val", ("a", "b")).labels.tolist() == [0, 0, 1, 1]
    catalog = open_folder(root / "val", ("a", "b"))
    assert [Path(catalog.path(i)).name for i in range(4)] == ["1.jpg", "3.jpg", "0.jpg", "2.jpg"]


def test_pictures_that_a_list_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    tree = {f"val/{i}.jpg": GOOD for i in range(4)} | {"val/0.jpeg": GOOD}
    root = write_tree(tmp_path / "d", {**tree, "val/labels.csv": b"0,a\n1,a\n2,b\n3,b\n"})
    with pytest.raises(InputError, match="2 pictures are named 0 but for their extension"):
        open_folder(root / "val")
    (root / "val" / "0.jpeg").unlink()  # the remedy
    assert open_folder(root / "val").num_samples == 4


def remedy(message: str, flag: str) -> list[str]:
    """The arguments that a message says, from `flag` on."""
    found = re.search(rf"{flag} [^;]*", message)
    assert found is not None, message
    return shlex.split(found[0])


def follow(arguments: list[str]) -> Dataset:
    values = dict(zip(arguments[::2], arguments[1::2], strict=True))
    return open_dataset(
        values.get("--data"),
        train_dirs=values["--train-dir"].split(",") if "--train-dir" in values else None,
        val_dir=values.get("--val-dir"),
        val_split=float(values["--val-split"]) if "--val-split" in values else None,
    )


def test_ambiguous_folders_are_refused_with_remedies_that_work(tmp_path: Path) -> None:
    domains = write_tree(
        tmp_path / "office", {**classes("amazon/images/", "ab"), **classes("webcam/images/", "abc"[:2])}
    )
    with pytest.raises(InputError, match="same names") as caught:
        open_dataset(domains, val_split=0.1)
    splits, insist = str(caught.value).split("if these are the classes: ")
    assert follow(remedy(splits, "--train-dir")).classes == ("a", "b")
    assert follow(shlex.split(insist)).classes == ("amazon", "webcam")

    beside = write_tree(tmp_path / "beside", {**classes("train/", "ab"), **classes("extra/", "ab")})
    with pytest.raises(InputError, match="may be splits or classes") as caught:
        open_dataset(beside, val_split=0.1)
    splits, insist = str(caught.value).split("if classes: ")
    assert follow(remedy(splits, "--train-dir")).classes == ("a", "b")
    assert follow(shlex.split(insist)).classes == ("extra", "train")

    deeper = write_tree(
        tmp_path / "deeper", {**classes("set/train/", "ab"), **classes("set/val/", "ab"), **classes("", "x")}
    )
    with pytest.raises(InputError, match="try --data") as caught:
        open_dataset(deeper, val_split=0.1)
    assert follow(remedy(str(caught.value), "--data")).classes == ("a", "b")

    with pytest.raises(InputError, match="not classes") as caught:
        open_dataset(train_dirs=[deeper / "set"], val_split=0.1)
    assert follow(remedy(str(caught.value), "--data")).classes == ("a", "b")


def test_unlabelled_pictures_are_no_split(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", IMAGENET)
    with pytest.raises(InputError, match=r"/val: pictures without class folders .* labels.csv .* --val-split 0.05"):
        open_dataset(root)
    with pytest.raises(InputError, match=r"/val: pictures without class folders"):
        open_folder(root)
    _, notes = opened(root, val_split=0.25)
    assert any("/val: pictures without class folders or a list of labels, ignored" in note for note in notes)
    (root / "val" / "labels.csv").write_bytes(SOLUTION)  # the remedy
    dataset, notes = opened(root)
    assert dataset.val.num_samples == 4
    (root / "val" / "more.jpg").write_bytes(GOOD)
    assert any("1 of 5 pictures are not in labels.csv, left out" in note for note in opened(root)[1])
    (root / "val" / "labels.csv").write_bytes(b"file,a,b\n\0\n" + b"x," * 99)
    with pytest.raises(InputError, match="pictures without class folders"):
        open_dataset(root)
    for name, tree in {
        "coco": {**flat("train2017/"), **flat("val2017/")},
        "cats": {**flat("train/"), **flat("test1/")},
    }.items():
        with pytest.raises(InputError, match=r"train.*no class folders"):
            open_dataset(write_tree(tmp_path / name, tree), val_split=0.1)  # were two classes


def test_classes_that_lose_their_pictures_are_named(tmp_path: Path) -> None:
    """They vanished without a word."""
    tree = {
        **classes("", ("good", ".NET", "some")),
        **{f"webp/{i}.webp": encode(picture(9, 9), "WEBP") for i in range(2)},
        **{f"ppm/{i}.ppm": encode(picture(9, 9), "PPM") for i in range(2)},
        **{f"bare/{i}": GOOD for i in range(3)},
        **{f"some/{i}": GOOD for i in range(5)},
        "good/notes.txt": b"x",
        **{f"good/{i}.txt": b"x" for i in range(9)},
    }
    root = write_tree(tmp_path / "d", tree)
    (root / "empty").mkdir()
    dataset, notes = opened(root, val_split=0.25)
    assert dataset.classes == ("good", "some")
    text = "\n".join(notes)
    for phrase in ("begins with a dot", ".NET", "bare (3 files without an extension)", "empty (no files)", "WebP"):
        assert phrase in text, (phrase, text)
    assert "some (5 files without an extension)" in text
    assert "ppm (2 refused:" in text
    assert "good (" not in text
    assert "most or all pictures of 5 classes are left out" in text
    told: list[str] = []
    run_pack(root, tmp_path / "pack", say=told.append)  # the remedy
    assert open_dataset(tmp_path / "pack", val_split=0.25).classes == ("good", "ppm", "some", "webp")
    assert any("bare (3 files without an extension)" in line for line in told)


def test_lost_class_of_one_split_is_refused_with_the_reason(tmp_path: Path) -> None:
    tree = {**classes("train/", "ab"), **classes("val/", "a"), **{f"val/b/{i}": GOOD for i in range(3)}}
    with pytest.raises(InputError, match=r"has: b \(3 files without an extension\); add"):
        open_dataset(write_tree(tmp_path / "d", tree))


def test_a_single_class_is_said_loudly(tmp_path: Path) -> None:
    _, notes = opened(write_tree(tmp_path / "d", classes("", "a")), val_split=0.25)
    assert any(note.startswith("WARNING: a single class, a") for note in notes)


def test_byte_identical_pictures_are_noted(tmp_path: Path) -> None:
    tree = {f"{split}/{name}/{i}.jpg": jpeg(20, 30, seed) for seed, (split, name, i) in enumerate(
        (split, name, i) for split in ("train", "val") for name in "ab" for i in range(3))}  # fmt: skip
    root = write_tree(tmp_path / "d", tree)
    assert not any("identical" in note for note in opened(root)[1])
    write_tree(root, {"val/a/leak.jpg": tree["train/a/1.jpg"], "train/b/both.jpg": tree["train/a/2.jpg"]})
    text = "\n".join(opened(root)[1])
    assert f"in train and in val: 1, such as {root}/train/a/1.jpg and {root}/val/a/leak.jpg" in text
    assert f"in two classes: 1, such as {root}/train/a/2.jpg and {root}/train/b/both.jpg" in text


def test_output_never_lies_in_a_scanned_folder(tmp_path: Path) -> None:
    """The second run had a class "runs"."""
    bare = write_tree(tmp_path / "bare", classes("", "ab"))
    (tmp_path / "link").symlink_to(bare)
    for data, out in ((bare, bare / "runs/x"), (tmp_path / "link", bare / "x"), (bare, bare)):
        with pytest.raises(InputError, match="data folder") as caught:
            require_outside(out, data)
        require_outside(remedy(str(caught.value), "example --out")[2], data)
    split = write_tree(tmp_path / "split", {**classes("train/", "ab"), **classes("val/", "ab")})
    require_outside(split / "runs/x", split)  # beside train/, which is not scanned
    for out, options in ((split / "train/x", {"data": split}), (split / "val/x", {"val_dir": split / "val"})):
        with pytest.raises(InputError, match="data folder"):
            require_outside(out, **options)
    with pytest.raises(InputError, match="data folder"):
        require_outside(bare / "x", train_dirs=[split / "train", bare])


def test_fingerprint_does_not_depend_on_the_roots_name(tmp_path: Path) -> None:
    for tree in (TINY, FOOD, {**classes("train/", "ab"), **classes("val/", "ab")}):
        first = open_dataset(write_tree(tmp_path / "one" / str(len(tree)), tree)).fingerprint
        inner = {f"inner/{name}": data for name, data in tree.items()}
        assert first == open_dataset(write_tree(tmp_path / "two" / str(len(tree)), inner)).fingerprint


def test_names_that_are_not_utf8_go_through_lists(tmp_path: Path) -> None:
    tree = {os.fsdecode(b"images/caf\xe9/0.jpg"): GOOD, "images/b/0.jpg": GOOD}
    listed = b"caf\xe9/0\nb/0\n"
    root = write_tree(tmp_path / "d", {**tree, "meta/train.txt": listed, "meta/test.txt": listed})
    dataset, _ = opened(root)
    assert dataset.classes == ("b", os.fsdecode(b"caf\xe9"))
    assert np.array_equal(dataset.val.labels, [0, 1])
