"""The matrix: its order, the length of matched runs, which runs are shared, and what it is expected to take."""

import pytest

from fastast.bench.estimate import Outcome, estimate, fit_epochs, pace_of
from fastast.bench.matrix import JOULES, SHARE, TIME, UNITS, Job, order_gates, walk
from fastast.config import TrainConfig
from fastast.errors import InputError
from tests.bench.fake_runs import BATCH, NUM_TRAIN, S_PER_UNIT, fake_summary

EPOCHS = 4.0


def simulator(ran, *, overhead=1.0, j=None, shares=None, failing=()):
    """Runs a job by arithmetic, and lists it."""

    def run(job):
        ran.append(job)
        if job.name in failing:
            return None
        share = job.changes.get("target", (shares or {}).get(job.gate, 0.3))
        slow = overhead if job.role == "gate" else 1.0
        return Outcome(fake_summary(job.gate, job.epochs, seed=job.seed, share=share, overhead=slow, j=j)).work

    return run


def test_order_of_the_matrix():
    ran = []
    gates = order_gates(["dense", "forward", "infobatch", "random", "forward"])
    assert gates == ("random", "forward", "infobatch")
    entries = walk(gates, [7, 8], EPOCHS, simulator(ran, overhead=1.2, j=2.0, shares={"infobatch": 0.75}))
    names = [job.name for job in ran]
    assert names[: len(names) // 2] == [
        "seed7-dense",
        "seed7-random",
        "seed7-random-dense_equal_units",
        "seed7-random-dense_equal_time",
        "seed7-forward",
        "seed7-forward-dense_equal_units",
        "seed7-forward-dense_equal_time",
        "seed7-infobatch",
        "seed7-infobatch-random_equal_share",
        "seed7-infobatch-dense_equal_units",
        "seed7-infobatch-dense_equal_time",
    ]
    assert [name.replace("seed8", "seed7") for name in names[len(names) // 2 :]] == names[: len(names) // 2]
    filled = {(e.role, e.of): e.job.place for e in entries if e.job.seed == 8}
    assert filled[SHARE, "forward"] == "random"  # of the same share
    assert filled[JOULES, "forward"] == "forward-dense_equal_units"  # as joules go with units here
    assert (SHARE, "random") not in filled
    assert set(filled) == {("dense", None), ("gate", None)} | {
        (role, of) for of in gates for role in (UNITS, TIME, JOULES, SHARE) if (role, of) != (SHARE, "random")
    }


@pytest.mark.parametrize("share", [0.02, 0.1, 0.31, 0.9])
@pytest.mark.parametrize("gate", ["forward", "memory", "infobatch"])
def test_matched_runs_cost_the_same(gate, share):
    took = {}
    simulate = simulator([], overhead=1.4, j=3.0, shares={gate: share})

    def run(job):
        took[job.name] = simulate(job)
        return took[job.name]

    lengths = {entry.role: entry.job for entry in walk([gate], [0], EPOCHS, run)}
    mine = took[lengths["gate"].name]
    assert took[lengths[UNITS].name].forward_units == pytest.approx(mine.forward_units, rel=0.02)
    assert took[lengths[JOULES].name].train_j == pytest.approx(mine.train_j, rel=0.02)
    assert took[lengths[TIME].name].train_s == pytest.approx(mine.train_s, rel=0.02)
    assert took[lengths[SHARE].name].share == pytest.approx(mine.share, rel=0.02)
    assert lengths[SHARE].epochs == EPOCHS
    assert lengths[SHARE].changes["target"] == share
    for role in (UNITS, TIME):
        batches = lengths[role].epochs * NUM_TRAIN / BATCH
        assert batches == pytest.approx(round(batches), abs=1e-6)


def test_joules_are_matched_only_where_measured():
    job = Job(role="gate", gate="memory", seed=0, epochs=EPOCHS)
    roles = {entry.role for entry in walk(["memory"], [0], EPOCHS, simulator([])) if entry.of == job.gate}
    assert roles == {SHARE, UNITS, TIME}


def test_failed_runs_have_no_baselines():
    ran = []
    entries = walk(["random", "memory"], [0], EPOCHS, simulator(ran, failing={"seed0-random", "seed0-dense"}))
    assert [(entry.role, entry.of) for entry in entries] == [
        ("dense", None),
        ("gate", None),
        ("gate", None),
        (SHARE, "memory"),
        (UNITS, "memory"),
    ]


CONFIG = TrainConfig(epochs=EPOCHS, target=0.3)


@pytest.fixture(scope="module")
def pace():
    summary = fake_summary("dense", EPOCHS)
    pace = pace_of(Outcome(summary, seconds=summary["time_s"]["total"] + 2.0), EPOCHS)
    assert pace is not None
    assert (pace.s_per_unit, pace.start_s, pace.batch) == pytest.approx((S_PER_UNIT, 2.0, BATCH))
    return pace


def test_estimate_counts_unfinished_runs(pace):
    gates = ("random", "memory")
    whole = estimate(CONFIG, gates, [0, 1], EPOCHS, pace)
    # dense; random and its two dense runs; memory, whose other runs are those of random by the same arithmetic
    assert whole.num_runs == 2 * 5
    assert len(whole.entries) == 2 * 8
    dense_s = 2.0 + 3 * EPOCHS * NUM_TRAIN * S_PER_UNIT + EPOCHS * 0.05
    assert whole.seconds["seed0-dense"] == pytest.approx(dense_s)
    known = {}

    def run(job):
        summary = fake_summary(job.gate, job.epochs, seed=job.seed, overhead=1.5 if job.role == "gate" else 1.0)
        known[job.name] = Outcome(summary, seconds=100.0)
        return known[job.name].work

    walk(gates, [0], EPOCHS, run)
    rest = estimate(CONFIG, gates, [0, 1], EPOCHS, pace, known)
    assert {name.split("-")[0] for name in rest.seconds} == {"seed1"}
    assert set(rest.seconds.values()) == {100.0}  # as with the other seed


def test_budget_is_filled_and_not_exceeded(pace):
    config = TrainConfig(epochs=40.0, target=0.1)
    gates = ("random", "forward", "memory", "infobatch")
    for budget_s in (500.0, 1000.0):
        epochs = fit_epochs(config, gates, [0, 1, 2], pace, budget_s, "--budget")
        assert 2.0 <= epochs < 40.0
        assert estimate(config, gates, [0, 1, 2], epochs, pace).left_s <= budget_s
        assert estimate(config, gates, [0, 1, 2], epochs + 0.1, pace).left_s > budget_s
    assert fit_epochs(config, gates, [0], pace, 1e6, "--budget") == 40.0
    with pytest.raises(InputError, match="--budget 9s: 2 epochs for each run would take about"):
        fit_epochs(config, gates, [0], pace, 9.0, "--budget 9s")
