"""The peers: each rule against a plain twin, each trainer from end to end within its budget, and the counted work."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from importlib.util import find_spec
from unittest import mock

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.peers import loops, one, rules, training
from benchmarks.peers.training import Task, Training
from benchmarks.peers.work import Spending, Work
from fastast import cli
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.engine import engine
from fastast.engine.steps import EvalStep
from fastast.models.build import scoring_twin
from fastast.run_folder import read_json
from tests.nets import tiny

NUM_TRAIN, BATCH, LR = 240, 16, 0.1  # of the fixture `pictures`
PACKAGES = {"timm": "timm", "ast": "adaptive_sparse_training"}
PEERS = [
    pytest.param(peer, marks=pytest.mark.skipif(not find_spec(PACKAGES.get(peer, "torch")), reason="not installed"))
    for peer in one.PEERS
]


@pytest.fixture
def task(pictures):
    """A task of two dense epochs' worth of work, by any peer."""

    def make(peer="torchvision", **options):
        shared = {"kind": "ep", "amount": 2.0, "seed": 0, "lr": LR, "image_size": 32, "batch_size": BATCH}
        shared |= {"arch": "tests.nets:tiny", "label_smoothing": 0.0, "precision": "fp32", "workers": 0}
        return Task(peer=peer, data=str(pictures), **shared | options)

    return make


def run(task):
    return one.run_task(task, began_s=0.0)


def twin_of_infobatch(losses, prune):
    """Numbers of which a share is left out, and everyone's weight if kept."""
    mean = sum(losses) / len(losses)
    learned = {number for number, loss in enumerate(losses) if loss < mean}
    weights = [1 / (1 - prune) if number in learned else 1.0 for number in range(len(losses))]
    return learned, weights, int((1 - prune) * len(learned))


@pytest.mark.parametrize("prune", [0.0, 0.3, 0.5, 0.9])
def test_infobatch_prunes_and_rescales_learned_samples(prune):
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(501, generator=generator) ** 3
    learned, weights, num_kept = twin_of_infobatch(losses.tolist(), prune)
    ids, found = rules.infobatch_plan(losses, prune, generator)
    assert found.tolist() == pytest.approx(weights)
    kept = set(ids.tolist())
    assert set(range(501)) - learned <= kept
    assert len(kept & learned) == num_kept
    other, _ = rules.infobatch_plan(losses, prune, generator)
    assert (set(other.tolist()) == kept) == (prune == 0.0)


def twin_of_selective_backprop(losses, keep, draw):
    """Draws one row after another, each with a chance by the rank of its loss."""
    order = sorted(range(len(losses)), key=lambda row: losses[row])
    left = {row: ((rank + 0.5) / len(losses)) ** (1 / keep - 1) for rank, row in enumerate(order)}
    drawn = []
    for _ in range(int(keep * len(losses))):
        (row,) = draw.choices(list(left), weights=list(left.values()))
        drawn.append(row)
        del left[row]
    return drawn


@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_selective_backprop_equals_its_twin(keep):
    generator, draw, num_draws = torch.Generator().manual_seed(0), random.Random(0), 3000
    losses = torch.tensor([0.3, 2.0, 0.1, 1.1, 0.9, 0.2, 3.0, 0.5])
    mine, theirs = Counter(), Counter()
    for _ in range(num_draws):
        rows = rules.selective_backprop_rows(losses, keep, generator).tolist()
        assert len(set(rows)) == len(rows) == int(keep * 8)
        mine.update(rows)
        theirs.update(twin_of_selective_backprop(losses.tolist(), keep, draw))
    for row in range(8):
        assert abs(mine[row] - theirs[row]) / num_draws < 0.05  # 4 standard errors of the difference


@pytest.mark.parametrize(
    ("progress", "batch", "interrupt", "on"),
    [
        *((0.49, 0, 2, False), (0.5, 0, 2, True), (0.5, 1, 2, False)),
        *((0.89, 2, 2, True), (0.9, 0, 2, False), (0.6, 1, 0, True)),
    ],
)
def test_selective_backprop_schedule(progress, batch, interrupt, on):
    assert rules.selective_backprop_is_on(progress, batch, interrupt=interrupt) is on


def test_work_counts_copies_and_small_pictures_unless_paused():
    work = Work(32)
    network = work.count(tiny(4))
    images = torch.rand(8, 3, 32, 32)
    network(images).sum().backward()
    assert (work.forward, work.backward, work.units) == (8, 8, 24)
    with torch.no_grad():
        scoring_twin(network)(images)
    assert (work.forward, work.backward) == (16, 8)
    with torch.no_grad():
        network(images[:, :, ::2, ::2])
    assert work.forward == 16 + 8 / 4
    with torch.no_grad(), work.paused():
        network(images)
    assert work.forward == 18


@pytest.mark.parametrize(("limit", "steps"), [(30, 10), (31, 10), (32, 11), (29, 10), (1, 1)])
def test_spending_ends_at_the_nearest_number_of_steps(limit, steps):
    spent = [0.0]
    spending = Spending(limit, lambda: spent[0])
    seen = []
    while not spending.is_over:
        seen.append(spending.progress)
        spent[0] += 3
        spending.finish_step()
    assert len(seen) == steps
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert spending.progress == pytest.approx(min(1, 3 * steps / limit))


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("amount", [0.4, 2.0])
def test_peer_spends_its_budget_with_a_learning_rate_that_ends_at_zero(peer, amount, task):
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        found = run(task(peer, amount=amount))
    finally:
        hook.remove()
    wanted = amount * 3 * NUM_TRAIN
    assert abs(found["compute"]["forward_units"] - wanted) <= 4 * BATCH / 2  # half a batch of the costliest
    assert found["budget"]["spent"] == pytest.approx(found["compute"]["forward_units"] / (3 * NUM_TRAIN))
    samples = found["samples"]
    assert found["compute"]["forward_units"] == samples["forward"] + 2 * samples["backward"]
    assert len(rates) == samples["steps"]
    top = rates.index(max(rates))
    assert LR * 0.8 < max(rates) <= LR
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert rates[-1] < LR * (0.3 if amount < 1 else 0.03)  # the last of 6 steps, of 30
    if amount > 1:
        assert found["accuracy"]["val_top1"] > 0.35  # of four classes


@pytest.mark.parametrize("peer", PEERS)
def test_run_repeats_with_its_seed(peer, task):
    first, second, other = (run(task(peer, amount=0.4, seed=seed))["accuracy"] for seed in (1, 1, 2))
    assert first == second
    assert first["val_top5"] == other["val_top5"] == 1.0  # of four classes


def test_time_budget_holds_start_and_evaluation(task, monkeypatch):
    clock = itertools.count(1000.0, 0.01)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    found = one.run_task(task(kind="time", amount=2.5), began_s=999.0)
    assert found["budget"] == {"kind": "time", "given": 2.5, "spent": pytest.approx(2.5, rel=0.03)}
    assert found["time_s"]["total"] < 1.7  # a second was gone before


def test_plain_loop_trains_every_picture(task):
    samples = run(task())["samples"]
    assert samples["forward"] == samples["backward"] == samples["offered"] == samples["decoded"] == 2 * NUM_TRAIN


def test_network_starts_as_that_of_the_bench(task, tmp_path):
    options = {"arch": "tests.nets:tiny", "image_size": 32, "batch_size": BATCH, "lr": LR, "seed": 3, "device": "cpu"}
    runtime = open_runtime("cpu", "fp32")
    ours = engine.Engine(TrainConfig(**options), runtime, weights="none", num_classes=4, num_train=NUM_TRAIN)
    theirs = Training(task(seed=3), 0.0).network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.model.state_dict().items())


def test_infobatch_run_prunes_half_of_learned_pictures(task, monkeypatch):
    plans = []
    plan = rules.infobatch_plan

    def recorded(losses, prune, generator):
        plans.append((losses.clone(), *plan(losses, prune, generator)))
        return plans[-1][1:]

    monkeypatch.setattr(rules, "infobatch_plan", recorded)
    samples = run(task("infobatch", amount=1.7))["samples"]
    assert len(plans) == 2
    assert len(plans[0][1]) == NUM_TRAIN
    losses = plans[1][0]
    learned = int((losses < losses.mean()).sum())
    assert 0 < learned < NUM_TRAIN
    assert len(plans[1][1]) == NUM_TRAIN - learned + learned // 2
    assert samples["backward"] == samples["forward"] == samples["decoded"] < samples["offered"]
    left_out = (samples["offered"] - NUM_TRAIN) / (samples["decoded"] - NUM_TRAIN)
    assert left_out == pytest.approx(NUM_TRAIN / len(plans[1][1]), rel=0.05)


def test_infobatch_prunes_neither_first_nor_last_epochs(task):
    rule = loops.InfoBatch(Training(task("infobatch"), 0.0))
    ids, weights = rule.plan()
    assert (ids.tolist(), weights.unique().tolist()) == (list(range(NUM_TRAIN)), [1.0])
    rule.learn(torch.arange(NUM_TRAIN), torch.arange(float(NUM_TRAIN)))
    assert len(rule.plan()[0]) < NUM_TRAIN
    rule.training.work.forward = 0.88 * rule.training.spending.limit
    assert len(rule.plan()[0]) == NUM_TRAIN


def test_selective_backprop_run_counts_extra_forwards(task):
    samples = run(task("selective-backprop"))["samples"]
    selected = (samples["forward"] - samples["decoded"]) / (BATCH // 2)  # batches: half of each goes forward twice
    assert 5 <= selected <= 7  # every other one between 50 % and 90 % of 31
    assert samples["backward"] == samples["decoded"] - selected * BATCH // 2


def test_original_package_costs_four_units_a_picture(task):
    pytest.importorskip("adaptive_sparse_training", reason="pip install adaptive-sparse-training")
    found = run(task("ast"))
    assert found["compute"]["forward_units"] == 4 * found["samples"]["decoded"]
    assert found["samples"]["backward"] == found["samples"]["decoded"]


_work = Work(32)


def counted_network(num_classes):
    return _work.count(tiny(num_classes))


@pytest.mark.parametrize("gate", ["dense", "forward"])
def test_hooks_agree_with_our_own_count(gate, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}._work", Work(32))
    # Neither evaluation nor the look at whether the network takes such pictures is training.
    with (
        mock.patch.object(EvalStep, "forward", _work.paused()(EvalStep.forward)),
        mock.patch.object(engine, "check_fits", _work.paused()(engine.check_fits)),
    ):
        words = (
            f"--arch {__name__}:counted_network --gate {gate} --image-size 32 --epochs 2 --batch-size 16 --device cpu"
        )
        assert cli.main(["train", "--data", str(pictures), "--out", str(tmp_path / "run"), *words.split()]) == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert _work.units == summary["compute"]["forward_units"] > 0
    assert (_work.forward == _work.backward) == (gate == "dense")
