"""Folder layouts, error messages for bad ones, the order of ids, and the scan cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastast.data.dataset import Dataset, open_dataset, open_folder
from fastast.errors import InputError
from fastast.scan import file_scan
from tests.data.image_files import encode, jpeg, picture, write_tree

GOOD = jpeg(20, 30)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastast"


def split(prefix: str, counts: dict[str, int], data: bytes = GOOD) -> dict[str, bytes]:
    return {f"{prefix}{name}/{i}.jpg": data for name, count in counts.items() for i in range(count)}


def relative(dataset: Dataset, root: Path) -> tuple[list[str], list[str]]:
    return tuple(  # type: ignore[return-value]
        [os.path.relpath(catalog.path(i), root) for i in range(catalog.num_samples)]
        for catalog in (dataset.train, dataset.val)
    )


@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_train_and_val(val: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"b": 3, "a": 2}), **split(f"{val}/", {"a": 1, "b": 1})})
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    train, held = relative(dataset, root)
    assert train == ["train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg", "train/b/1.jpg", "train/b/2.jpg"]
    assert held == [f"{val}/a/0.jpg", f"{val}/b/0.jpg"]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.train.labels.dtype == dataset.train.sizes.dtype == np.int32
    assert dataset.train.sizes.tolist() == [[20, 30]] * 5
    assert dataset.train.num_samples == 5
    assert dataset.quarantined == []
    assert [data.tobytes() for data in dataset.train.read(np.array([4, 0]))] == [GOOD, GOOD]


def test_val_is_preferred_to_test_and_one_class_is_enough(tmp_path: Path) -> None:
    tree = {**split("train/", {"a": 1}), **split("test/", {"a": 2}), **split("val/", {"a": 3})}
    dataset = open_dataset(write_tree(tmp_path / "d", tree))
    assert dataset.val.num_samples == 3
    assert dataset.classes == ("a",)


def test_kaggle_parts_are_merged(tmp_path: Path) -> None:
    tree = {
        **split("train.X1/", {"n1": 1, "n2": 1}),
        **split("train.X2/", {"n3": 2}),
        "train.X2/n1/extra.jpg": GOOD,
        **split("val.X/", {"n1": 1, "n2": 1, "n3": 1}),
        "Labels.json": b"{}",
    }
    root = write_tree(tmp_path / "d", tree)
    dataset = open_dataset(root)
    assert dataset.classes == ("n1", "n2", "n3")
    assert relative(dataset, root)[0] == [
        "train.X1/n1/0.jpg",
        "train.X2/n1/extra.jpg",
        "train.X1/n2/0.jpg",
        "train.X2/n3/0.jpg",
        "train.X2/n3/1.jpg",
    ]


def test_explicit_folders(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "d", {**split("one/", {"a": 1}), **split("two/", {"b": 2}), **split("held/", {"a": 1, "b": 1})}
    )
    dataset = open_dataset(train_dirs=[root / "one", root / "two"], val_dir=root / "held")
    assert (dataset.train.num_samples, dataset.val.num_samples) == (3, 2)
    also = open_dataset(root / "held", val_dir=root / "held")
    assert (also.train.num_samples, also.val.num_samples) == (2, 2)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_val_split(prefix: str, tmp_path: Path) -> None:
    counts = {"a": 1, "b": 2, "c": 40, "d": 101}
    root = write_tree(tmp_path / "d", split(prefix, counts))
    dataset = open_dataset(root, val_split=0.1, seed=1)
    train, held = relative(dataset, root)
    assert sorted(train + held) == sorted(f"{prefix}{c}/{i}.jpg" for c, n in counts.items() for i in range(n))
    assert np.bincount(dataset.val.labels, minlength=4).tolist() == [0, 1, 4, 10]
    assert dataset.train.classes == dataset.val.classes == ("a", "b", "c", "d")
    assert relative(open_dataset(root, val_split=0.1, seed=1), root) == (train, held)
    assert relative(open_dataset(root, val_split=0.1, seed=2), root)[1] != held
    assert np.bincount(open_dataset(root, val_split=0.999).train.labels).tolist() == [1, 1, 1, 1]


def test_subfolders_and_links(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "d",
        {**split("train/", {"a": 1, "b": 1}), "train/a/images/deep.JPEG": GOOD, **split("val/", {"a": 1, "b": 1})},
    )
    outside = write_tree(tmp_path / "elsewhere", split("c/", {"x": 1})) / "c" / "x"
    (root / "train" / "c").symlink_to(outside)
    (root / "val" / "c").symlink_to(outside)
    (root / "train" / "a" / "back").symlink_to(root / "train" / "a")
    (root / "circle").symlink_to(root / "circle")
    (root / "train" / "circle").symlink_to(root / "train" / "circle")
    (root / "train" / "a" / "link.jpg").symlink_to(outside / "0.jpg")
    train, _ = relative(open_dataset(root), root)
    assert train == ["train/a/0.jpg", "train/a/images/deep.JPEG", "train/a/link.jpg", "train/b/0.jpg", "train/c/0.jpg"]


def test_ignored_and_quarantined_files(tmp_path: Path) -> None:
    tree = {
        **split("train/", {"a": 2, "b": 1}),
        **split("val/", {"a": 1, "b": 1}),
        "train/.hidden/x.jpg": GOOD,
        "train/__MACOSX/a.jpg": GOOD,
        "train/a/.DS_Store": b"x",
        "train/a/._0.jpg": b"x",
        "train/a/notes.txt": b"x",
        "train/a/is_png.JPEG": encode(picture(9, 9), "PNG"),
        "train/a/page.jpg": b"<html>no</html>",
        "train/b/anim.gif": encode(picture(9, 9).convert("P"), "GIF"),
        "val/a/cut.jpg": GOOD[:-30],
    }
    root = write_tree(tmp_path / "d", tree)
    os.mkfifo(root / "train/a/pipe.jpg")
    (root / "train/a/loop.jpg").symlink_to(root / "train/a/loop.jpg")
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    assert dataset.train.num_samples == 4
    found = {os.path.relpath(path, root): reason for _, path, reason in dataset.quarantined}
    assert list(found) == [
        "train/a/loop.jpg",
        "train/a/page.jpg",
        "train/a/pipe.jpg",
        "train/b/anim.gif",
        "val/a/cut.jpg",
    ]
    assert all(sample is None for sample, _, _ in dataset.quarantined)
    assert "GIF" in found["train/b/anim.gif"]


WEIRD = [
    os.fsencode("new\nline.jpg"),
    os.fsencode("unicodé 猫 🐈.jpg"),
    b"\xff\xfe not utf-8 \x80.jpg",
    b"x" * 246 + b".jpg",
    b" leading and trailing .jpg",
    b"-dash.jpg",
    b"quote'\"$(x)`.jpg",
]


def test_odd_file_names(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "d" / "train")
    for number, name in enumerate(WEIRD):
        for label in (b"plain", b"class \xff\n"):
            os.makedirs(os.path.join(folder, label), exist_ok=True)
            with open(os.path.join(folder, label, name), "wb") as file:
                file.write(jpeg(10 + number, 16))
    for _ in range(2):  # from a scan, then from its cache
        catalog = open_folder(tmp_path / "d" / "train")
        assert catalog.classes == (os.fsdecode(b"class \xff\n"), "plain")
        names = [os.path.basename(os.fsencode(catalog.path(i))) for i in range(catalog.num_samples)]
        assert names == sorted(WEIRD) * 2
        for sample, data in enumerate(catalog.read(np.arange(catalog.num_samples))):
            height = 10 + WEIRD.index(names[sample])
            assert catalog.sizes[sample].tolist() == [height, 16]
            assert data.tobytes() == jpeg(height, 16)


def test_messages_for_bad_data_sets(tmp_path: Path) -> None:
    pair = {**split("train/", {"a": 1, "b": 1}), **split("val/", {"a": 1, "b": 1})}
    trees: dict[str, tuple[dict[str, bytes], list[str]]] = {
        "no_val": (split("train/", {"a": 1}), ["no val/", "--val-dir", "--val-split 0.05"]),
        "only_classes": (split("", {"a": 2, "b": 1}), ["--val-split 0.05"]),
        "no_train": (split("val/", {"a": 1}), ["no train/", "--train-dir"]),
        "loose": ({"1.jpg": GOOD, "2.jpg": GOOD}, ["2 files but no class folders", "folder of its own"]),
        "loose_split": ({"train/1.jpg": GOOD, "val/1.jpg": GOOD}, ["loose_split/train", "no class folders"]),
        "val_lacks": ({**split("train/", {"a": 1, "b": 1, "c": 1}), **split("val/", {"a": 1})}, ["/val", ": b, c;"]),
        "train_lacks": ({**split("train/", {"a": 1}), **split("val/", {"a": 1, "zz": 1})}, ["/train", "zz"]),
        "bad_class": ({**pair, "train/c/0.jpg": b"text", "val/c/0.jpg": GOOD}, ["/train", ": c (1 refused: text,"]),
        "nothing": ({"train/a/x.txt": b"", "train/a/y.csv": b"", **split("val/", {"a": 1})}, ["1 .txt", "1 .csv"]),
        "refused": (
            {"train/a/x.jpg": b"<html>", **split("val/", {"a": 1})},
            ["1 refused, all as", "x.jpg is: a web page"],
        ),
    }
    for name, (tree, phrases) in trees.items():
        write_tree(tmp_path / name, tree)
        with pytest.raises(InputError) as caught:
            open_dataset(tmp_path / name)
        message = str(caught.value)
        assert all(phrase in message for phrase in phrases), (name, message)
        assert "\n" not in message


def test_messages_for_bad_arguments(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"a": 1}), **split("val/", {"a": 1})})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    cases = [
        ({}, "--data DIR"),
        ({"data": root, "train_dirs": [root / "train"]}, "name the data once"),
        ({"data": tmp_path / "missing"}, "no such folder"),
        ({"data": tmp_path / "file"}, "a file, not a folder"),
        ({"data": tmp_path / "empty"}, "empty"),
        ({"data": root, "val_dir": tmp_path / "missing"}, "no such folder"),
        ({"data": root, "val_split": 1.5}, "for example 0.05"),
        ({"data": root, "val_split": 0.1, "val_dir": root / "val"}, "not both"),
        ({"data": root, "val_split": 0.1}, "no class has two pictures"),
        ({"train_dirs": [root / "train"]}, "--val-dir"),
    ]
    for arguments, phrase in cases:
        with pytest.raises(InputError, match=phrase) as caught:
            open_dataset(**arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_open_folder_maps_classes(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"a": 1}), **split("val/", {"b": 1, "a": 2})})
    for directory in (root, root / "val"):
        catalog = open_folder(directory, ["b", "c", "a"])
        assert catalog.labels.tolist() == [2, 2, 0]
        assert catalog.classes == ("b", "c", "a")
    assert open_folder(root).labels.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="does not know: b;"):
        open_folder(root, ["a"])
    with pytest.raises(InputError, match="has train/ but no val/"):
        open_folder(write_tree(tmp_path / "t", split("train/", {"a": 1})))


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"a": 2, "b": 2}), **split("val/", {"a": 1, "b": 1})})
    copy = write_tree(tmp_path / "e", {**split("train/", {"a": 2, "b": 2}), **split("val/", {"a": 1, "b": 1})})
    first = open_dataset(root).fingerprint
    assert first == open_dataset(root).fingerprint == open_dataset(copy).fingerprint
    (root / "train/a/.ignored").write_bytes(b"")
    (root / "train/a/bad.jpg").write_bytes(b"text")
    assert open_dataset(root).fingerprint == first
    (root / "train/a/0.jpg").write_bytes(jpeg(21, 30))
    second = open_dataset(root).fingerprint
    os.rename(root / "train/a/1.jpg", root / "train/a/9.jpg")
    assert len({first, second, open_dataset(root).fingerprint}) == 3


# --------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose header is read, as it happens."""
    names: list[str] = []
    real = file_scan.scan_file

    def spy(path: bytes):
        names.append(os.path.basename(os.fsdecode(path)))
        return real(path)

    monkeypatch.setattr(file_scan, "scan_file", spy)
    return names


def test_only_what_changed_is_scanned_again(tmp_path: Path, scanned: list[str]) -> None:
    root = write_tree(tmp_path / "d", split("", {"a": 5, "b": 5}))
    open_folder(root)
    assert len(scanned) == 10
    scanned.clear()
    assert open_folder(root).num_samples == 10
    assert scanned == []
    (root / "a/3.jpg").write_bytes(jpeg(44, 55))
    (root / "a/2.jpg").unlink()
    (root / "b/new.jpg").write_bytes(jpeg(11, 12))
    catalog = open_folder(root)
    assert sorted(scanned) == ["3.jpg", "new.jpg"]
    assert catalog.sizes.tolist() == [[20, 30]] * 2 + [[44, 55]] + [[20, 30]] * 6 + [[11, 12]]
    scanned.clear()
    status = os.stat(root / "a/0.jpg")
    os.utime(root / "a/0.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    open_folder(root)
    assert scanned == ["0.jpg"]


def test_folder_that_was_empty_when_it_was_scanned_is_scanned_again(tmp_path: Path, scanned: list[str]) -> None:
    root = write_tree(tmp_path / "d", {"train/a/0": GOOD, "train/b/0": GOOD, "val/a/0": GOOD, "val/b/0": GOOD})
    with pytest.raises(InputError, match="no readable picture"):
        open_dataset(root)
    for path in list(root.rglob("0")):
        path.rename(path.with_suffix(".jpg"))  # the remedy
    assert open_dataset(root).train.num_samples == 2
    assert len(scanned) == 4


def test_splits_of_one_folder_have_a_cache_each(tmp_path: Path, scanned: list[str]) -> None:
    lists = {"meta/train.txt": b"a/0\na/1\nb/0\nb/1\n", "meta/test.txt": b"a/2\nb/2\n"}
    tree = {f"images/{name}/{i}.jpg": GOOD for name in "ab" for i in range(3)}
    root = write_tree(tmp_path / "d", {**tree, **lists})
    for _ in range(3):
        assert open_dataset(root).val.num_samples == 2
    assert len(scanned) == 6


def test_refused_file_is_scanned_again(tmp_path: Path, scanned: list[str]) -> None:
    """Its permissions may have changed, so no refusal is cached."""
    root = write_tree(tmp_path / "d", {**split("", {"a": 2}), "a/bad.jpg": b"text"})
    for _ in range(2):
        assert len(open_folder(root).quarantined) == 1
    assert scanned.count("bad.jpg") == 2
    assert scanned.count("0.jpg") == 1


@pytest.mark.parametrize("damage", ["truncate", "noise", "empty", "pickle", "foreign", "shapes", "folder"])
def test_damaged_cache_is_rebuilt(damage: str, tmp_path: Path, fresh_cache: Path, scanned: list[str]) -> None:
    root = write_tree(tmp_path / "d", split("", {"a": 5, "b": 5}))
    open_folder(root)
    (cache,) = fresh_cache.iterdir()
    whole = cache.read_bytes()
    if damage == "truncate":
        cache.write_bytes(whole[: len(whole) // 2])
    elif damage == "noise":
        cache.write_bytes(bytes(byte ^ 0x55 for byte in whole))
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        with np.load(cache) as file:
            arrays = dict(file)
        if damage == "pickle":
            arrays["sizes"] = np.array([{"a": 1}], dtype=object)
        elif damage == "foreign":
            arrays = {"x": np.zeros(3)}
        else:
            arrays["sizes"] = arrays["sizes"][:3]
        np.savez(cache, **arrays)
    scanned.clear()
    assert open_folder(root).num_samples == 10
    assert len(scanned) == 10


def test_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    open_folder(write_tree(tmp_path / "d", split("", {"a": 2})))
    assert len(list((tmp_path / ".cache" / "fastast").iterdir())) == 1
    assert not Path("relative").exists()


def test_works_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file: nothing can be made below it
    root = write_tree(tmp_path / "d", split("", {"a": 2}))
    assert open_folder(root).num_samples == 2


def test_nothing_is_written_beside_the_data(tmp_path: Path, fresh_cache: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"a": 2}), **split("val/", {"a": 2})})
    before = sorted(root.rglob("*"))
    open_dataset(root)
    assert sorted(root.rglob("*")) == before
    assert len(list(fresh_cache.iterdir())) == 2
    link = tmp_path / "link"
    link.symlink_to(root)
    open_dataset(link)  # the key is the real path
    assert len(list(fresh_cache.iterdir())) == 2


def test_progress_counts_every_file(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {**split("train/", {"a": 300, "b": 300}), **split("val/", {"a": 5, "b": 5})})
    seen: list[tuple[int, int]] = []
    open_dataset(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (610, 610)
    assert len(seen) > 2
