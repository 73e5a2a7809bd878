"""The device's half of training: warming up leaves no trace, and a state continues exactly."""

import copy
import json

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.feed import Batch
from fastast.device import open_runtime
from fastast.gates import shrink
from fastast.train.engine import Engine
from tests.sync_guard import no_sync
from tests.train.test_run import options

B, SIDE = 8, 16


PROXY = {"gate": "proxy", "proxy_bn_every": 4}
VARIANTS = [{}, PROXY, {**PROXY, "proxy_arch": "tiny"}, {**PROXY, "proxy_arch": "tiny", "thumbs": 8, "unbiased": True}]


def engine(thumbs=None, **changes):
    config = TrainConfig(
        arch="tests.nets:tiny", image_size=SIDE, batch_size=B, lr=0.1, target=0.5, epochs=2, device="cpu", **changes
    )
    return Engine(config, open_runtime("cpu"), weights="none", num_classes=3, num_train=64, thumbnail_side=thumbs)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (B,), generator=generator)
    return Batch(images, labels, torch.arange(B) + seed % 8 * B, torch.ones(B, dtype=torch.bool), B)


def chosen(full, decision):
    """The rows of a batch that were selected, as a loader delivers them: padded to a batch."""
    ids, weights = decision.numpy().reshape(2, B)
    rows = np.flatnonzero(weights)
    order = torch.from_numpy(np.concatenate([rows, np.zeros(B - len(rows), int)]))
    parts = [part[order] for part in (full.images, full.labels, full.ids)]
    assert np.array_equal(parts[2][: len(rows)].numpy(), ids[rows])
    return Batch(*parts, torch.arange(B) < len(rows), len(rows))


def run(one, seeds):
    one.set_lr(0.1)
    trained = one.read_status().steps
    for seed in seeds:
        full = batch(seed)
        if one.select_step is None:
            one.score(full)
        else:
            decision, _ = one.select(full._replace(images=shrink(full.images, one.proxy.size)))
            one.enqueue(chosen(full, decision), one.selected_weights)
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_warming_up_leaves_no_trace(variant):
    one = run(engine(**variant), range(5))
    before = copy.deepcopy(one.state_dict())
    one.warm_up()
    assert_same(one.state_dict(), before)
    assert_same(run(one, range(5, 12)).state_dict(), run(engine(**variant), range(12)).state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_state_continues_as_if_never_stopped(variant, tmp_path):
    torch.save(run(engine(**variant), range(7)).state_dict(), tmp_path / "state.pt")
    other = engine(**variant, seed=5)  # another start, all of which the state replaces but the keys of the draws
    other.gate.controller.seed = 0
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(run(other, range(7, 14)).state_dict(), run(engine(**variant), range(14)).state_dict())


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_a_proxy_does_not_change_where_the_network_starts(variant):
    plain = engine()
    before = torch.get_rng_state()
    other = engine(**variant)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(other.model.state_dict(), plain.model.state_dict())


def test_selected_thumbnails_carry_their_weights_into_training():
    one = engine(thumbs=8, unbiased=True, **PROXY)
    seen = {}
    for seed in range(8):
        full = batch(seed)
        decision, _ = one.select(full._replace(images=shrink(full.images, 8)))
        seen |= {int(i): w for i, w in decision.numpy().reshape(2, B).T if w}
        one.enqueue(chosen(full, decision), one.selected_weights)
        if one.queue.check(one.queue.status().numpy()) >= B:
            rows = one.queue.pop()
            assert rows.weights.tolist() == pytest.approx([seen[int(i)] for i in rows.ids])
    assert len(set(seen.values())) > 8  # they do differ
    assert int(one.queue.popped) >= 2 * B
    assert engine(thumbs=8, **PROXY).selected_weights is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_waits_for_the_device(variant):
    one = engine(**variant)
    for seed in range(6):
        full = batch(seed)
        small = full._replace(images=shrink(full.images, 8))
        with no_sync():
            one.set_lr(0.1)
            one.learn_proxy(full)
            if one.select_step is None:
                one.score(full)
            else:
                one.select(small)
                one.proxy.check(small, full)
                one.enqueue(full, one.selected_weights)


@pytest.mark.slow
def test_a_compiled_run_trains_and_says_so(pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, compile="on", epochs=2)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"]["compiled"] is True
    assert summary["model"]["compile_note"] == "on: asked for"
    assert abs(summary["gate"]["activation_rate"] - 0.3) < 0.05 * 0.3 + 1 / 240
    assert summary["accuracy"]["best_val_top1"] > 0.5
