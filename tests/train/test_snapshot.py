"""A snapshot is frozen: nothing that training does later reaches it."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fastast.checkpoint.file_format import load_checkpoint, save_checkpoint, snapshot


def test_nothing_that_happens_later_reaches_a_snapshot():
    state = {
        "weights": torch.ones(3),
        "parameter": nn.Parameter(torch.ones(2)),
        "nested": [{"counts": torch.zeros(2, dtype=torch.int64)}, (torch.ones(1), "text")],
        "shared": torch.from_numpy(shared := np.ones(4)),
        "log": [1, 2],
    }
    frozen = snapshot(state)
    with torch.no_grad():
        for tensor in (state["weights"], state["parameter"], state["nested"][0]["counts"], state["nested"][1][0]):
            tensor += 5
    shared += 5
    state["log"].append(3)
    state["nested"][0]["more"] = 1
    assert frozen["weights"].tolist() == [1, 1, 1]
    assert frozen["parameter"].tolist() == [1, 1]
    assert not frozen["parameter"].requires_grad
    assert frozen["nested"][0]["counts"].tolist() == [0, 0]
    assert frozen["nested"][0].keys() == {"counts"}
    assert frozen["nested"][1][0].tolist() == [1]
    assert frozen["shared"].tolist() == [1, 1, 1, 1]
    assert frozen["log"] == [1, 2]


def test_a_snapshot_keeps_order_strides_module_versions_and_what_is_one_tensor():
    tied = torch.arange(6.0).reshape(2, 3)
    state = nn.BatchNorm2d(2).state_dict()
    state["picture"] = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state["tied"], state["again"], state["row"] = tied, tied, tied[1]
    state["empty"], state["other"] = torch.empty(0), torch.empty(0, dtype=torch.int64)
    frozen = snapshot(state)
    assert type(frozen) is OrderedDict
    assert list(frozen) == list(state)
    assert frozen._metadata == state._metadata
    assert frozen["picture"].stride() == state["picture"].stride()
    for name, value in state.items():
        assert torch.equal(frozen[name], value), name
        assert frozen[name].dtype == value.dtype, name
    assert frozen["tied"] is frozen["again"]
    assert frozen["row"].untyped_storage().nbytes() == 3 * 4  # not all of what it is a view of


def test_numbers_of_numpy_become_plain_and_anything_else_is_named(tmp_path):
    frozen = snapshot({"a": np.float64(1.5), "b": [np.int64(3)]})
    assert [type(frozen["a"]), type(frozen["b"][0])] == [float, int]
    save_checkpoint(tmp_path / "a.pt", frozen)
    assert load_checkpoint(tmp_path / "a.pt") == {"schema": 1, **frozen}
    with pytest.raises(TypeError, match="not Random"):
        snapshot({"a": [random.Random()]})
