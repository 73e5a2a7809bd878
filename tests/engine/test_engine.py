"""The device's half of training: warming up leaves no trace, and a state resumes exactly."""

import copy

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.engine.compiled_engine import warm_up
from tests.engine.engines import B, batch, engine
from tests.sync_guard import no_sync
from tests.train.test_run import options, summary_of

GROWING = {"image_size": 32, "train_size": "16:32"}
ADAMW = {"dtype": torch.float16, "optimizer": "adamw"}
VARIANTS = [{}, {"unbiased": True, "explore": 0.1, "ema": "auto"}, ADAMW, GROWING]


def run(one, seeds):
    """One batch for each seed; if pictures grow, every fourth batch is the first of a larger size."""
    one.set_lr(0.1)
    trained = one.read_status().steps
    for seed in seeds:
        sizes = one.train_sizes
        one.score(batch(seed, side=sizes[min(seed // 4, len(sizes) - 1)]))
        while one.read_status().pushed - trained * B >= B:
            one.train()
            trained += 1
    return one


def states(one):
    return one.shared_state(), one.rank_state()


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_warming_up_leaves_no_trace(variant):
    one = run(engine(**variant), range(5))
    before = copy.deepcopy(states(one))
    warm_up(one)
    assert_same(states(one), before)
    assert_same(states(run(one, range(5, 12))), states(run(engine(**variant), range(12))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_loaded_state_resumes_exactly(variant, tmp_path):
    torch.save(states(run(engine(**variant), range(7))), tmp_path / "state.pt")
    other = engine(**variant, seed=5)  # another start, all of which the state replaces but the keys of the draws
    other.selector.controller.seed = 0
    other.load_states(*torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(states(run(other, range(7, 14))), states(run(engine(**variant), range(14))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_never_waits_for_the_device(variant):
    one = engine(**variant)
    for seed in range(6):
        full = batch(seed, side=one.train_sizes[seed // 2 % len(one.train_sizes)])
        with no_sync():
            one.set_lr(0.1)
            one.score(full)
            one.enqueue(full, torch.ones(8 * B))
            one.gather_status()
            one.train()


@pytest.mark.slow
def test_compiled_run_trains_and_says_so(pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, compile="on", epochs=2)]) == 0
    summary = summary_of(out)
    assert summary["model"]["compiled"] is True
    assert summary["model"]["compile_note"] == "on: asked for"
    assert abs(summary["gate"]["activation_rate"] - 0.3) < 0.05 * 0.3 + 1 / 240
    assert summary["accuracy"]["best_val_top1"] > 0.5
