"""The device's half of training: warming up leaves no trace, and a state continues exactly."""

import copy
import json

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.data import Batch
from fastast.train.engine import Engine
from fastast.train.setup import open_machine
from tests.train.test_run import options

B, SIDE = 8, 16


def engine(**changes):
    config = TrainConfig(
        arch="tests.nets:tiny", image_size=SIDE, batch_size=B, lr=0.1, target=0.5, epochs=2, device="cpu", **changes
    )
    return Engine(config, open_machine("cpu"), weights="none", num_classes=3, num_train=64)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (B,), generator=generator)
    return Batch(images, labels, torch.arange(B) + seed % 8 * B, torch.ones(B, dtype=torch.bool), B)


def run(one, seeds):
    one.guard.set_lr(0.1)
    trained = one.read_status().steps
    for seed in seeds:
        one.score(batch(seed))
        while one.read_status().pushed - trained * B >= B:
            one.train()
            trained += 1
    return one


def flat(state):
    """Every tensor and number of a nested state, by its path."""
    if isinstance(state, dict):
        return {f"{key}/{rest}": value for key, item in state.items() for rest, value in flat(item).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)))
    return {"": state}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, torch.Tensor):
            np.testing.assert_array_equal(value.numpy(), b[path].numpy(), err_msg=path)
        else:
            assert value == b[path], path


def test_warming_up_leaves_no_trace():
    one = run(engine(), range(5))
    before = copy.deepcopy(one.state_dict())
    one.warm_up()
    assert_same(one.state_dict(), before)
    assert_same(run(one, range(5, 12)).state_dict(), run(engine(), range(12)).state_dict())


def test_a_saved_state_continues_as_if_never_stopped(tmp_path):
    torch.save(run(engine(), range(7)).state_dict(), tmp_path / "state.pt")
    other = engine(seed=5)  # another start, all of which the state replaces but the keys of the gate's draws
    other.gate.controller.seed = 0
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(run(other, range(7, 14)).state_dict(), run(engine(), range(14)).state_dict())


@pytest.mark.slow
def test_a_compiled_run_trains_and_says_so(pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, compile="on", epochs=2)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"]["compiled"] is True
    assert summary["model"]["compile_note"] == "on: asked for"
    assert abs(summary["gate"]["activation_rate"] - 0.3) < 0.05 * 0.3 + 1 / 240
    assert summary["accuracy"]["best_val_top1"] > 0.5
