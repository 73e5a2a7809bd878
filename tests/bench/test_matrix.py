"""The matrix: its order, the names of runs, and what it is expected to take."""

import pytest

from fastast.bench.arms import parse_arms, parse_budgets
from fastast.bench.estimate import GATE_OVERHEAD, START_S, Outcome, Pace, estimate, fit_scale, pace_of
from fastast.bench.matrix import jobs_of
from fastast.errors import InputError
from tests.bench.fake_runs import EVAL_S, NUM_TRAIN, S_PER_UNIT, fake_summary

ARMS = parse_arms("dense;random:target=0.3;memory:target=0.3")
BUDGETS = parse_budgets("1,2ep")
EPOCH_S = 3 * NUM_TRAIN * S_PER_UNIT
PACE = Pace(epoch_s=EPOCH_S, eval_s=EVAL_S, start_s=2.0)


def test_seed_by_seed_then_budget_by_budget():
    names = [job.name for job in jobs_of(ARMS, BUDGETS, [7, 8])]
    assert names[:6] == [
        "seed7-1ep-dense",
        "seed7-1ep-random-target=0.3",
        "seed7-1ep-memory-target=0.3",
        "seed7-2ep-dense",
        "seed7-2ep-random-target=0.3",
        "seed7-2ep-memory-target=0.3",
    ]
    assert [name.replace("seed8", "seed7") for name in names[6:]] == names[:6]


def test_names_are_short_and_of_their_own():
    long = "/" + "x" * 300
    arms = parse_arms(f"dense;memory:weights={long}a;memory:weights={long}b")
    names = [job.name for job in jobs_of(arms, BUDGETS, [0])]
    assert len(set(names)) == 6
    assert all(len(name) < 120 and "/" not in name for name in names)


def test_job_has_the_options_of_its_run():
    job = jobs_of(ARMS, BUDGETS, [3])[-1]
    assert job.options == {"gate": "memory", "target": 0.3, "seed": 3, "budget": "2ep"}


def test_pace_of_a_short_dense_run():
    summary = fake_summary("dense", 0.1, j=2.0)
    pace = pace_of(Outcome(summary, seconds=summary["time_s"]["total"] + 3))
    assert pace.epoch_s == pytest.approx(EPOCH_S)
    assert (pace.eval_s, pace.start_s) == (pytest.approx(EVAL_S), pytest.approx(3))
    assert pace.watts == pytest.approx(2.0 / S_PER_UNIT)
    assert pace_of(Outcome(fake_summary("dense", 0.001))) is None  # not one step
    summary["time_s"]["eval"] = 0.0  # the time limit came first
    assert pace_of(Outcome(summary)).eval_s == pytest.approx(summary["data"]["val"] * S_PER_UNIT)


@pytest.mark.parametrize(("text", "seconds"), [("10m", 602.0), ("100kJ", 202.0)])
def test_time_and_joules_are_expected_to_be_spent(text, seconds):
    pace = Pace(epoch_s=1.0, eval_s=1.0, start_s=2.0, watts=500.0)
    (budget,) = parse_budgets(text)
    assert pace.seconds(budget, "memory") == seconds


def test_joules_that_are_not_measured_are_refused():
    with pytest.raises(InputError, match="--budgets 100kJ: no joules were measured here"):
        PACE.seconds(parse_budgets("100kJ")[0], "dense")


def test_estimate_learns_from_finished_runs():
    jobs = jobs_of(ARMS, BUDGETS, [0, 1])
    first = estimate(jobs, {}, PACE)
    assert first["seed1-2ep-dense"] == pytest.approx(2 + 2 * EPOCH_S + 3 * EVAL_S)
    assert first["seed0-1ep-memory-target=0.3"] == pytest.approx(2 + GATE_OVERHEAD * EPOCH_S + 3 * EVAL_S)
    known = {"seed0-1ep-dense": Outcome({"seed": 0}, seconds=START_S + 100)}
    learned = estimate(jobs, known, PACE)
    assert "seed0-1ep-dense" not in learned
    assert learned["seed1-1ep-dense"] == START_S + 100  # as with the other seed
    assert learned["seed1-2ep-dense"] == START_S + 200  # as the arm with another budget
    assert learned["seed0-1ep-memory-target=0.3"] == START_S + 100  # as any arm
    known["seed0-1ep-memory-target=0.3"] = Outcome(None, "killed", seconds=1.0)
    assert estimate(jobs, known, PACE)["seed1-1ep-memory-target=0.3"] == START_S + 100  # nothing learned from failures
    assert estimate(jobs, {}, None) == {}


def test_time_is_filled_and_not_exceeded():
    jobs = jobs_of(ARMS, BUDGETS, [0, 1, 2])

    def seconds(factor):
        return sum(PACE.seconds(job.budget.scaled(factor), job.arm.gate) for job in jobs)

    for limit_s in (60.0, 90.0):
        factor = fit_scale(jobs, PACE, limit_s, "--time")
        assert seconds(factor) <= limit_s < seconds(1.02 * factor)
    assert fit_scale(jobs, PACE, 1e6, "--time") == 1.0
    with pytest.raises(InputError, match=r"--time 9s: starting and evaluating the 18 runs takes about 0\.8 minutes"):
        fit_scale(jobs, PACE, 9.0, "--time 9s")
