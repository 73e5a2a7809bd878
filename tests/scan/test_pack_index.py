"""The index of a pack is untrusted input: the result is one clear error or a sound pack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastast.data.dataset import open_dataset, open_folder
from fastast.errors import InputError
from fastast.packing.packer import run_pack
from fastast.scan.pack_index import RECORD, read_index
from tests.data.image_files import jpeg, write_tree

COUNT = 9


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("original")
    tree = {f"train/{'abc'[i % 3]}/{i}.jpg": jpeg(20 + i, 30, i) for i in range(COUNT)}
    root = write_tree(tmp_path / "d", tree | {f"val/{name}/0.jpg": jpeg(9, 9) for name in "abc"})
    run_pack(root, tmp_path / "p", shard_size_mb=0.01, say=lambda line: None)
    return tmp_path / "p"


@pytest.fixture
def pack(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "p")


def edit_header(pack: Path, edit: Callable[[dict], Any]) -> None:
    header = json.loads((pack / "pack.json").read_text())
    edit(header)
    (pack / "pack.json").write_text(json.dumps(header))


def edit_index(pack: Path, edit: Callable[[np.ndarray, bytearray], Any]) -> None:
    """Changes records or names, and makes the checksum fit, as an attacker would."""
    data = (pack / "train.index").read_bytes()
    records = np.frombuffer(data, RECORD, COUNT).copy()
    names = bytearray(data[COUNT * RECORD.itemsize :])
    edit(records, names)
    data = records.tobytes() + bytes(names)
    (pack / "train.index").write_bytes(data)

    def fix(header: dict) -> None:
        header["splits"]["train"].update(
            index_sha256=hashlib.sha256(data).hexdigest(), name_bytes=len(names), count=len(records)
        )

    edit_header(pack, fix)


def refused(pack: Path, phrase: str) -> None:
    for opened in (open_dataset, open_folder, read_index):
        with pytest.raises(InputError, match=phrase) as caught:
            opened(pack)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def setter(field: str, row: int, value: int) -> Callable[[np.ndarray, bytearray], None]:
    return lambda records, _: records[field].__setitem__(row, value)


def overlap(records: np.ndarray, _: bytearray) -> None:
    same = np.flatnonzero(records["shard"] == records["shard"][0])
    records["offset"][0] = records["offset"][same[-1]]


def rename(name: bytes) -> Callable[[np.ndarray, bytearray], None]:
    def edit(records: np.ndarray, names: bytearray) -> None:
        names[: int(records["name_length"][0])] = name
        records["name_length"][0] = len(name)

    return edit


RECORDS: dict[str, tuple[Callable[[np.ndarray, bytearray], None], str]] = {
    "offset beyond the file": (setter("offset", 3, 2**40), "outside its shard"),
    "offset near 2^63": (setter("offset", 3, 2**63 - 512), "outside its shard"),
    "offset negative": (setter("offset", 3, -512), "outside its shard"),
    "offset in a header": (setter("offset", 3, 0), "outside its shard"),
    "offset between blocks": (setter("offset", 3, 1025), "outside its shard"),
    "length beyond the file": (setter("length", 3, 2**31 - 1), "outside its shard"),
    "length negative": (setter("length", 3, -5), "outside its shard"),
    "length zero": (setter("length", 3, 0), "outside its shard"),
    "overlap": (overlap, "overlap"),
    "label negative": (setter("label", 0, -1), "label"),
    "label too large": (setter("label", 0, 3), "label"),
    "shard negative": (setter("shard", 0, -1), "shard out of range"),
    "shard too large": (setter("shard", 0, 99), "shard out of range"),
    "shard of another": (lambda records, _: records["shard"].__setitem__(slice(None), 0), "pictures in a shard"),
    "no height": (setter("height", 0, 0), "size"),
    "width negative": (setter("width", 0, -7), "size"),
    "too many pixels": (setter("height", 0, 2**31 - 1), "size"),
    "names too long": (setter("name_length", 0, 1000), "lengths of the paths"),
    "names negative": (setter("name_length", 0, -4), "lengths of the paths"),
    "absolute path": (rename(b"/etc/passwd"), "a path"),
    "path upwards": (rename(b"a/../../x.jpg"), "leads out of the pack"),
    "nul in a path": (rename(b"a/\0.jpg"), "a path"),
    "fewer records": (lambda records, names: names.pop(), "lengths of the paths"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_inconsistent_records(name: str, pack: Path) -> None:
    edit, phrase = RECORDS[name]
    edit_index(pack, edit)
    refused(pack, phrase)


def split(header: dict) -> dict:
    return header["splits"]["train"]


HEADERS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "format": (lambda h: h.update(format="zip"), "not a pack"),
    "version": (lambda h: h.update(version=2), "version 2, not 1"),
    "no classes": (lambda h: h.update(classes=[]), "classes"),
    "classes twice": (lambda h: h.update(classes=["a", "a", "b"]), "classes"),
    "classes of numbers": (lambda h: h.update(classes=[1, 2, 3]), "classes"),
    "no splits": (lambda h: h.update(splits={}), "splits"),
    "foreign split": (lambda h: h["splits"].update({"../x": split(h)}), "splits"),
    "huge count": (lambda h: split(h).update(count=10**18), "counts"),
    "absurd count": (lambda h: split(h).update(count=10**300), "counts"),
    "infinite count": (lambda h: split(h).update(count=float("inf")), "counts"),
    "negative count": (lambda h: split(h).update(count=-1), "counts"),
    "true count": (lambda h: split(h).update(count=True), "counts"),
    "huge counts that agree": (
        lambda h: (split(h).update(count=10**15), split(h)["shards"][0].update(count=10**15 - COUNT + 2)),
        "counts|train.index",
    ),
    "huge names": (lambda h: split(h).update(name_bytes=2**60), "train.index.*bytes where pack.json says"),
    "shard upwards": (lambda h: split(h)["shards"][0].update(name="../train-00000.tar"), "shard name"),
    "shard absolute": (lambda h: split(h)["shards"][0].update(name="/etc/passwd"), "shard name"),
    "shard of another split": (lambda h: split(h)["shards"][0].update(name="val-00000.tar"), "shard name"),
    "shard twice": (lambda h: split(h)["shards"][1].update(split(h)["shards"][0]), "named twice|counts"),
    "shard missing": (lambda h: split(h)["shards"][0].update(name="train-00077.tar"), "the shard is missing"),
    "shard longer": (lambda h: split(h)["shards"][0].update(bytes=10**12), "bytes of 1,000,000,000,000"),
    "shard checksum": (lambda h: split(h)["shards"][0].update(sha256="x"), "checksum"),
    "no shards": (lambda h: split(h).update(shards=[]), "shards"),
    "shards of numbers": (lambda h: split(h).update(shards=[1]), "shards"),
    "index checksum": (lambda h: split(h).update(index_sha256="0" * 64), "train.index.*checksum"),
    "quarantine": (lambda h: split(h).update(quarantined=[["x"]]), "quarantine"),
    "converted": (lambda h: split(h).update(converted={"x": "many"}), "counts"),
    "options": (lambda h: h.update(options=None), "options"),
    "plan": (lambda h: h.update(plan=5), "plan"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_inconsistent_headers(name: str, pack: Path) -> None:
    edit, phrase = HEADERS[name]
    edit_header(pack, edit)
    tracemalloc.start()
    refused(pack, phrase)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\x80\x04\x95pickle", b"null", b"[]", b'"x"', b"1" * 10_000, bytes(5000)]
)
def test_header_that_is_not_json(content: bytes, pack: Path) -> None:
    (pack / "pack.json").write_bytes(content)
    refused(pack, "pack.json: damaged or foreign")


def test_missing_files(pack: Path) -> None:
    whole = (pack / "train.index").read_bytes()
    (pack / "train.index").write_bytes(whole[:-1])
    refused(pack, "train.index.*bytes where")
    (pack / "train.index").unlink()
    refused(pack, "train.index: cannot be read")
    (pack / "train.index").write_bytes(whole)
    shard = pack / "train-00000.tar"
    os.truncate(shard, shard.stat().st_size - 512)
    refused(pack, "copy the shard again or pack anew")
    shard.unlink()
    refused(pack, "the shard is missing")


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_in_the_records(pack: Path, edits: list[tuple[int, int]]) -> None:
    """Refused, or sound enough to be read without any error but a quarantine."""
    whole, header = (pack / "train.index").read_bytes(), (pack / "pack.json").read_bytes()

    def edit(records: np.ndarray, _: bytearray) -> None:
        raw = records.view(np.uint8)
        for place, value in edits:
            raw[place % len(raw)] = value

    try:
        edit_index(pack, edit)
        try:
            catalog = open_dataset(pack).train
        except InputError:
            return
        for sample in range(catalog.num_samples):
            try:
                data = catalog.read_one(sample)
            except Exception as error:
                assert type(error).__name__ == "UnreadableError"  # noqa: PT017
            else:
                assert data[:2].tobytes() == b"\xff\xd8"
    finally:
        (pack / "train.index").write_bytes(whole)
        (pack / "pack.json").write_bytes(header)


def add_thumbnails(pack: Path) -> None:
    """Adds thumbnails to the first shard, as earlier versions stored them."""
    thumb, shard = jpeg(8, 8), pack / "train-00000.tar"
    body = bytearray(shard.read_bytes()[:-1024])

    def edit(records: np.ndarray, _: bytearray) -> None:
        for row in np.flatnonzero(records["shard"] == 0).tolist():
            member = tarfile.TarInfo(f"{row:09d}.thumb.jpg")
            member.size = len(thumb)
            body.extend(member.tobuf(tarfile.USTAR_FORMAT))
            for field, value in (("offset", len(body)), ("length", len(thumb)), ("height", 8), ("width", 8)):
                records[f"thumb_{field}"][row] = value
            body.extend(thumb + bytes(-len(thumb) % 512))
        body.extend(bytes(1024))

    edit_index(pack, edit)
    shard.write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    edit_header(pack, lambda header: split(header)["shards"][0].update(bytes=len(body), sha256=digest))


def test_thumbnails_of_earlier_versions_are_ignored(original: Path, pack: Path) -> None:
    add_thumbnails(pack)
    run_pack(pack, verify=True, say=lambda line: None)
    plain, old = open_dataset(original), open_dataset(pack)
    assert old.fingerprint == plain.fingerprint
    ids = np.arange(COUNT)
    assert [data.tobytes() for data in old.train.read(ids)] == [data.tobytes() for data in plain.train.read(ids)]


# ------------------------------------------------------------------------------------------------------ verify


def test_verify_finds_flipped_bytes(pack: Path) -> None:
    run_pack(pack, verify=True, say=lambda line: None)
    shard = pack / "train-00000.tar"
    whole = shard.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40).tolist():
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"train-00000.tar: .*; copy the shard again or pack anew"):
            run_pack(pack, verify=True, say=lambda line: None)
    shard.write_bytes(whole)
    said: list[str] = []
    run_pack(pack, verify=True, say=said.append)
    assert said == [f"{pack}: verified: 12 pictures in 4 shards, all sound"]


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/passwd", "a/b.jpg", "000000001.sh"])
def test_verify_refuses_unknown_members(name: str, pack: Path) -> None:
    shard = pack / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    member = tarfile.TarInfo.frombuf(bytes(data[:512]), "utf-8", "strict")
    member.name = name
    data[:512] = member.tobuf(tarfile.USTAR_FORMAT)
    shard.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_header(pack, lambda header: split(header)["shards"][0].update(sha256=digest))
    with pytest.raises(InputError, match="has no place in a pack"):
        run_pack(pack, verify=True, say=lambda line: None)
