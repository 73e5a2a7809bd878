"""The peers: each rule against a plain twin, each loop from end to end, and the counted work."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
import torch

from benchmarks.peers import __main__ as command
from benchmarks.peers import loops, one, rules
from benchmarks.peers.original import run_original
from benchmarks.peers.ours import run_ours
from benchmarks.peers.setting import Setting, UnseenBatches, Work, network_of
from benchmarks.peers.table import rows, table
from fastast.models.build import scoring_twin
from tests.nets import tiny

NUM_TRAIN, EPOCHS, BATCH = 240, 2, 16  # of the fixture `pictures`


@pytest.fixture
def setting(pictures):
    options = {"image_size": 32, "epochs": EPOCHS, "batch_size": BATCH, "lr": 0.1, "target": 0.25}
    return Setting(data=str(pictures), arch="tests.nets:tiny", seed=0, workers=0, **options)


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
    with torch.no_grad():
        for batch in UnseenBatches([images, images], work):
            network(batch)
    assert work.forward == 18
    assert work.unseen_s > 0


def test_plain_loop_trains_every_picture_from_the_seeds_weights(setting):
    first, second = (network_of(setting, 4, Work(32)).parameters() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    found = loops.run_loop(setting, loops.Rule)
    assert found["forward"] == found["backward"] == found["offered"] == NUM_TRAIN * EPOCHS
    assert found["top1"] > 0.35  # of four classes
    assert found["seconds"] > 0


def test_infobatch_run_prunes_half_of_learned_pictures(setting, monkeypatch):
    monkeypatch.setattr(loops, "DELTA", 1.0)
    plans = []
    plan = rules.infobatch_plan

    def recorded(losses, prune, generator):
        plans.append((losses.clone(), *plan(losses, prune, generator)))
        return plans[-1][1:]

    monkeypatch.setattr(rules, "infobatch_plan", recorded)
    found = loops.run_loop(setting, loops.InfoBatch)
    losses = plans[1][0]
    learned = int((losses < losses.mean()).sum())
    assert 0 < learned < NUM_TRAIN
    assert found["backward"] == found["forward"] == 2 * NUM_TRAIN - learned + learned // 2
    assert found["offered"] == 2 * NUM_TRAIN


def test_infobatch_starts_and_ends_unpruned(setting):
    rule = loops.InfoBatch(setting, 10)
    ids, weights = rule.plan(0)
    assert (ids.tolist(), weights.tolist()) == (list(range(10)), [1.0] * 10)
    rule.learn(torch.arange(10), torch.arange(10.0))
    assert len(rule.plan(1)[0]) < 10
    assert len(rule.plan(2)[0]) == 10


def test_selective_backprop_run_counts_extra_forwards(setting):
    found = loops.run_loop(setting, loops.SelectiveBackprop)
    # The second epoch is half of the run; of its 15 batches, 12 begin before 90 %, and 6 of those have even places.
    assert found["forward"] == 2 * NUM_TRAIN - 6 * BATCH // 2 + 6 * BATCH
    assert found["backward"] == 2 * NUM_TRAIN - 6 * BATCH // 2


def test_original_package_is_counted(setting):
    pytest.importorskip("adaptive_sparse_training", reason="pip install adaptive-sparse-training")
    found = run_original(setting)
    assert found["forward"] == 2 * found["offered"] == 2 * NUM_TRAIN * EPOCHS
    assert found["backward"] == found["offered"]
    assert found["claim"].startswith("savings ")
    assert found["seconds"] > 0


@pytest.mark.parametrize("gate", ["dense", "forward"])
def test_hooks_agree_with_our_own_count(setting, gate):
    found = run_ours(setting, gate)
    assert found["claim"].startswith(f"{found['forward_units']:,.0f} units")
    assert found["offered"] == NUM_TRAIN * EPOCHS
    assert (found["forward"] == found["backward"]) == (gate == "dense")


@pytest.fixture
def run_here(monkeypatch):
    """Runs in this process what the command would start, with one peer that fails."""
    started = []

    def start(words, log):
        started.append(words[-3])
        if words[-3] == "AST package":
            log.write_text("began\nsomething broke\n")
            return 1
        monkeypatch.setattr(one.sys, "argv", ["one", *words[-3:]])
        return one.main()

    monkeypatch.setattr(command, "start", start)
    return started


def test_command_publishes_runs_and_failures_and_repeats_none(pictures, tmp_path, run_here, capsys):
    out = tmp_path / "peers.json"
    options = "--train 64 --val 16 --arch tests.nets:tiny --epochs 1 --batch-size 8 --seeds 2"
    words = ["--data", str(pictures), "--work", str(tmp_path / "work"), "--out", str(out), *options.split(), "--only"]
    command.main([*words, "PyTorch loop", "AST package"])
    result = json.loads(out.read_text())
    assert [(row["peer"], row["n"]) for row in result["rows"]] == [("PyTorch loop", 2)]
    assert result["rows"][0]["units_per_picture"] == 3
    assert [fail["reason"] for fail in result["failures"]] == ["something broke"] * 2
    assert result["sizes"] == {"train": 64, "val": 16, "classes": 4}
    text = out.with_suffix(".md").read_text()
    assert "\n| PyTorch loop | 2 | " in text
    assert "**AST package**, seed 1, failed: something broke" in text
    assert str(tmp_path) not in text + out.read_text()
    run_here.clear()
    command.main([*words, "PyTorch loop"])
    assert run_here == []
    assert len(json.loads(out.read_text())["runs"]) == 2


def test_rows_are_means_over_seeds():
    def run(peer, seed, top1):
        figures = {"seconds": 2.0, "offered": 100, "offered_per_s": 50.0, "forward": 200, "backward": 50}
        return {"peer": peer, "seed": seed, "top1": top1, **figures, "forward_units": 300, "claim": f"seed {seed}"}

    found = rows([run("InfoBatch", 1, 0.7), run("InfoBatch", 0, 0.5)], ["PyTorch loop", "InfoBatch"])
    assert len(found) == 1
    assert found[0]["top1"] == {"mean": pytest.approx(0.6), "se": pytest.approx(0.1)}
    assert (found[0]["units_per_picture"], found[0]["claim"]) == (3.0, "seed 0")
    result = {
        "rows": found,
        "failures": [],
        "seeds": [0, 1],
        "command": "python",
        "setting": {"arch": "a", "image_size": 32, "epochs": 1, "batch_size": 8, "lr": 0.1, "target": 0.3},
        "sizes": {"train": 100, "val": 10, "classes": 2},
        "packages": {"adaptive-sparse-training": None},
        "hardware": {"name": "a machine"},
        "versions": dict.fromkeys(("torch", "dali", "fastast", "commit"), "1"),
        "measured_at": "2026-01-01T00:00:00",
    }
    assert "| InfoBatch | 2 | 60.00 +- 10.00 | 2.0 +- 0.0 | 50 +- 0 | 300 +- 0 | 3.00 | seed 0 |" in table(result)
