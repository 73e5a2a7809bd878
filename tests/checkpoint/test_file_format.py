"""Checkpoint files are whole or refused, and a snapshot does not change any more."""

from __future__ import annotations

import copy
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.robustness.crash_test import same
from fastast.checkpoint.file_format import SCHEMA, load_checkpoint, load_last, save_checkpoint, snapshot
from fastast.checkpoint.writer import CheckpointWriter
from fastast.errors import InputError
from fastast.run_folder import RunFolder
from tests.processes import refuse, state_of


def test_plain_torch_reads_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "a.pt", state_of(7))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["schema"] == SCHEMA
    assert state["values"].tolist() == [7.0] * 3000
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_every_flipped_bit_and_cut_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, state_of(7, size=100))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[: rng.integers(len(whole))] for _ in range(200)]
    damaged += [whole[:-71], whole[:-73] + b"\0\0", whole + b"\0", b"PK" + whole, b""]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pt: damaged") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert load_checkpoint(path)["number"] == 7


def test_other_files_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "plain.pt")
    save_checkpoint(tmp_path / "newer.pt", {"schema": SCHEMA + 1})
    for name, message in (
        ("plain.pt", "not a fastast checkpoint"),
        ("newer.pt", f"another version of fastast .its schema is {SCHEMA + 1}, here {SCHEMA}.; continue with that"),
        ("none.pt", "no such checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / name)


def test_load_last_falls_back_to_the_previous_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    with pytest.raises(InputError, match=r"last\.pt: no such checkpoint; .*there is no previous\.pt"):
        load_last(folder)
    writer = CheckpointWriter(folder, refuse)
    for number in (1, 2):
        writer.submit(state_of(number))
    assert writer.wait() is None
    assert load_last(folder)[1:] == (folder.last, None)
    whole = folder.last.read_bytes()
    folder.last.write_bytes(whole[:3000] + b"?" + whole[3001:])
    state, path, note = load_last(folder)
    assert (state["number"], path) == (1, folder.previous)
    assert "last.pt: damaged" in note
    assert "previous.pt" in note
    folder.last.unlink()
    assert load_last(folder)[0]["number"] == 1
    folder.previous.write_text("text")
    with pytest.raises(InputError, match=r"last\.pt: no such .*previous\.pt: damaged") as caught:
        load_last(folder)
    assert "\n" not in str(caught.value)


def test_later_changes_do_not_reach_a_snapshot():
    array = np.ones(4)
    state = {
        "parameter": nn.Parameter(torch.ones(2)),
        "nested": [{"counts": torch.zeros(2, dtype=torch.int64)}, (torch.ones(1), "text")],
        "array": torch.from_numpy(array),
        "log": [1, 2],
    }
    before, frozen = copy.deepcopy(state), snapshot(state)
    with torch.no_grad():
        for tensor in (state["parameter"], state["nested"][0]["counts"], state["nested"][1][0]):
            tensor += 5
    array += 5
    state["log"].append(3)
    state["nested"][0]["more"] = 1
    assert not frozen["parameter"].requires_grad
    assert same(frozen, {**before, "parameter": before["parameter"].detach()})


def test_snapshot_keeps_order_strides_versions_and_shared_tensors():
    shared = torch.arange(6.0).reshape(2, 3)
    state = nn.BatchNorm2d(2).state_dict()
    state["picture"] = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state["shared"], state["again"], state["row"] = shared, shared, shared[1]
    state["empty"], state["other"] = torch.empty(0), torch.empty(0, dtype=torch.int64)
    frozen = snapshot(state)
    assert type(frozen) is OrderedDict
    assert list(frozen) == list(state)
    assert frozen._metadata == state._metadata
    assert frozen["picture"].stride() == state["picture"].stride()
    for name, value in state.items():
        assert torch.equal(frozen[name], value), name
        assert frozen[name].dtype == value.dtype, name
    assert frozen["shared"] is frozen["again"]
    assert frozen["row"].untyped_storage().nbytes() == 3 * 4  # not all of what it is a view of


def test_snapshot_holds_plain_values_only(tmp_path):
    frozen = snapshot({"a": np.float64(1.5), "b": [np.int64(3)]})
    assert [type(frozen["a"]), type(frozen["b"][0])] == [float, int]
    save_checkpoint(tmp_path / "a.pt", frozen)
    assert load_checkpoint(tmp_path / "a.pt") == {"schema": SCHEMA, **frozen}
    with pytest.raises(TypeError, match="not Random"):
        snapshot({"a": [random.Random()]})
