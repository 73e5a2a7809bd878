"""Files that are read back are untrusted: each gives a value or one clear line, and no code of theirs runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastast.checkpoint.file_format import SCHEMA, load_checkpoint, save_checkpoint
from fastast.config import TrainConfig
from fastast.config.config_file import read_toml, resolve
from fastast.errors import InputError
from fastast.models.build import read_weights
from fastast.record.run_record import read_record
from fastast.run_folder import read_json

TOML = b"""epochs = 3
lr = 0.1
batch-size = 32
arch = "resnet18"
data = 'd'
unbiased = true
max-time = "8h50m"
"""
CONFIG = json.dumps({"arch": "resnet18", "epochs": 3.0, "data": None, "unbiased": True, "batch_size": 32}).encode()
SUMMARY = json.dumps({"schema": 1, "stopped": None, "gate": {"name": "dense", "target": 0.1}, "resumes": []}).encode()
METRICS = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"kind": "step", "epoch": 1, "phase": "gated", "offered": 64, "activation": 0.1, "threshold": None},
        {"kind": "epoch", "epoch": 1, "phase": "gated", "val_top1": 0.5, "hist": None, "offered": 640},
    )
)
STATE = {
    "number": 3,
    "share": 1.5,
    "names": ["a", None, True],
    "model": {"weight": torch.arange(12.0).reshape(4, 3), "count": torch.arange(5)},
}
SEAL = (71).to_bytes(2, "little") + b"sha256:"

fragments = st.sampled_from(
    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"[" * 30_000, b"1e999", b"9" * 5000, b"\xed\xa0\x80", b"\r\n", b"="]
    + [bytes([code]) for code in b"(.0cRbB}]tueasqQhjKMJXGNIi{}[]\",:'\x80\x81\x85\x86\x87\x8a\x8b\x93\x94\x95"]
)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "put", "insert", "delete", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(fragments, st.binary(min_size=1, max_size=4)),
    ),
    min_size=1,
    max_size=4,
)
fuzzed = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def edit(content, changes):
    """Applies edits, each at a share of the length."""
    data = bytearray(content)
    for kind, share, piece in changes:
        at = int(share * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << piece[0] % 8
        elif kind == "put":
            data[at : at + len(piece)] = piece
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at : at + piece[0] % 8 + 1]
        elif kind == "cut" and piece[0] < 64:
            del data[at:]
    return bytes(data)


def value_or_one_line(read, path):
    """What was read; None for an `InputError` of one line. Any other exception fails the test."""
    try:
        return read(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return None


def reseal(archive):
    """A checkpoint whose seal fits, whatever it holds: an attacker can make one."""
    body = archive[:-2]
    return body + SEAL + hashlib.sha256(body + b"\0\0").hexdigest().encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("untrusted")


@pytest.fixture(scope="module")
def sealed(place):
    save_checkpoint(place / "whole.pt", STATE)
    return (place / "whole.pt").read_bytes()


def read_options(path):
    return resolve(read_toml(str(path)))


@fuzzed
@given(changes=edits)
def test_options_file(place, changes):
    path = place / "options.toml"
    path.write_bytes(edit(TOML, changes))
    with contextlib.suppress(InputError):
        assert isinstance(read_options(path), TrainConfig)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_options, b"lr = " + b"[" * 30_000),
        (read_options, b"lr = " + b"{a=" * 30_000),
        (read_options, b"epochs = 1" + b"0" * 400),
        (read_options, b"lr = " + b"9" * 5000),
        (read_options, b"seed = 0x" + b"f" * 9000),
        (read_options, b"arch = '\xed\xa0\x80'"),
        (read_options, b"epochs = 1979-05-27"),
        (read_options, b"[lr]\na = 1"),
        (read_json, b'{"a":' + b"[" * 30_000),
        (read_json, b'{"a":' * 30_000),
        (read_json, b'{"a":' + b"9" * 5000 + b"}"),
    ],
)
def test_files_too_deep_too_long_or_of_another_type(place, read, content):
    path = place / "hard"
    path.write_bytes(content)
    assert value_or_one_line(read, path) is None


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@fuzzed
@given(changes=edits)
def test_run_folder(place, name, changes):
    run = place / "run"
    run.mkdir(exist_ok=True)
    contents = {"config.json": CONFIG, "summary.json": SUMMARY, "metrics.jsonl": METRICS}
    contents[name] = edit(contents[name], changes)
    for file, content in contents.items():
        (run / file).write_bytes(content)
    record = value_or_one_line(read_record, run)
    assert record is None or len(record.steps["offered"]) + len(record.epochs) <= METRICS.count(b"\n") + 4


@fuzzed
@given(changes=edits)
def test_changed_checkpoint_is_refused(place, sealed, changes):
    path = place / "any.pt"
    changed = edit(sealed, changes)
    path.write_bytes(changed)
    state = value_or_one_line(load_checkpoint, path)
    assert (state is None) == (changed != sealed)


@fuzzed
@given(changes=edits)
def test_hostile_checkpoint(place, sealed, changes):
    path = place / "resealed.pt"
    path.write_bytes(reseal(edit(sealed[: -len(SEAL) - 64] + b"\0\0", changes)))
    state = value_or_one_line(load_checkpoint, path)
    assert state is None or state["schema"] == SCHEMA


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@fuzzed
@given(changes=edits)
def test_weights(place, sealed, suffix, changes):
    path = place / f"any{suffix}"
    path.write_bytes(edit(sealed if suffix == ".pt" else safetensors.torch.save(STATE["model"]), changes))
    state = value_or_one_line(lambda path: read_weights(str(path)), path)
    assert state is None or all(isinstance(value, torch.Tensor) for value in state.values())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["archive", "old format", "bare pickle"])
@pytest.mark.parametrize("reader", [load_checkpoint, lambda path: read_weights(str(path))])
def test_pickled_code_does_not_run(tmp_path, kind, reader):
    path, content = tmp_path / "a.pt", {"schema": SCHEMA, "model": Bomb(tmp_path / "ran")}
    buffer = io.BytesIO()
    if kind == "bare pickle":
        pickle.dump(content, buffer, 2)
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=kind == "archive")
    path.write_bytes(reseal(buffer.getvalue()) if reader is load_checkpoint else buffer.getvalue())
    with pytest.raises(InputError, match="more than plain tensors") as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    if kind == "archive":  # it was one that works
        pickle.loads(zipfile.ZipFile(buffer).read("archive/data.pkl"))
        assert (tmp_path / "ran").exists()
