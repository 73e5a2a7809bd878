"""Budgets of time and energy: spent to the end, across kills, and the same on all ranks."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fastast.cli import main
from fastast.config.options import Amount
from fastast.distributed.ranks import Ranks
from fastast.loggers.counters import Counters
from fastast.plan.budget import MIN_STEPS, MeteredBudget
from fastast.process_age import process_age_s
from fastast.run_folder import RunFolder
from fastast.session import spent
from fastast.session.spent import LOST_S, SessionMeter, read_record, recorded
from fastast.session.watchdog import Watchdog
from fastast.signals import StopRequest
from fastast.train import budget_meter, segment_loop, validation
from fastast.train.validation import Validation
from tests.conftest import ROOT, run_fastast
from tests.distributed.rank_processes import RankProcesses, command
from tests.plan.test_budget import BATCH, budgeted
from tests.stops import stopping_at
from tests.train.test_run import lines_of, summary_of


def clocked(set_up_s=5.0, batch_s=0.1):
    """A clock that each batch of training and evaluation moves on, in place of the real one."""
    beat, now = Watchdog.beat, [set_up_s]

    def counted(self):
        now[0] += batch_s
        beat(self)

    Watchdog.beat = counted
    SessionMeter.__call__ = lambda self: now[0]
    budget_meter.END_S = 0.5


@pytest.fixture
def clock(monkeypatch):
    """The same, undone after the test."""

    def start(*arguments):
        for owner, name in ((Watchdog, "beat"), (SessionMeter, "__call__"), (budget_meter, "END_S")):
            monkeypatch.setattr(owner, name, getattr(owner, name))
        clocked(*arguments)

    return start


def steps_of(out):
    return [line for line in lines_of(out) if line["kind"] == "step"]


def assert_decayed(out):
    steps = steps_of(out)
    progress = [line["progress"] for line in steps]
    assert progress == sorted(progress)
    assert progress[-1] > 0.99
    assert steps[-1]["lr"] < 0.002 * max(line["lr"] for line in steps)
    assert [line for line in lines_of(out) if line["kind"] == "epoch"][-1]["val_top1"] is not None


@pytest.mark.parametrize(("batch_s", "batches"), [(0.1, 13), (5.0, 6)])
def test_few_slow_batches_tell_the_pace(batch_s, batches):
    """Else they would spend what the last evaluation needs before its cost is known."""
    budget = MeteredBudget(Amount("time", 100.0), 1000)
    budget.resume()
    count = 0
    while not budget.is_settled:
        count += 1
        budget.count(192 * count)
        budget.take([batch_s * count])
    assert count == batches
    assert budget.unit_cost == pytest.approx(batch_s / 192)


@pytest.mark.parametrize("gate", ["dense", "forward", "memory"])
def test_run_ends_decayed_with_its_evaluation_inside_the_time(pictures, tmp_path, clock, gate):
    out = tmp_path / "run"
    clock()
    assert main(["train", *budgeted(pictures, out, "40s", gate=gate, warmup_epochs=0.5)]) == 0
    assert_decayed(out)
    summary = summary_of(out)
    assert summary["budget"] == {"kind": "time", "given": 40.0, "spent": pytest.approx(40, rel=0.02)}
    assert steps_of(out)[0]["progress"] < 0.02  # set-up does not move it
    assert read_record(RunFolder(out).spent, "time") == pytest.approx(summary["budget"]["spent"], abs=0.002)


def test_evaluations_are_no_part_of_the_time_of_training(pictures, tmp_path, clock, monkeypatch):
    """Neither whole ones nor the part that tells early what one costs: each takes 1,000 s here."""
    now, passed, batches, calls = time.monotonic, [0.0], Validation._batches, []

    def slow(self, num_pictures):
        calls.append(num_pictures)
        passed[0] += 1000
        return batches(self, num_pictures)

    for module in (segment_loop, validation):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now() + passed[0]))
    monkeypatch.setattr(Validation, "_batches", slow)
    clock()
    assert main(["train", *budgeted(pictures, tmp_path / "run", "40s", gate="memory", warmup_epochs=0.5)]) == 0
    seconds = summary_of(tmp_path / "run")["time_s"]
    assert len(calls) >= 2
    assert seconds["train"] < 1000
    assert 0 <= seconds["eval"] - 1000 * len(calls) < 1000


@pytest.mark.parametrize(("num_pictures", "share"), [(64, 1), (65, 1 / 2), (600, 6 / 10), (64_000, (50 - 4) / 1000)])
def test_part_of_an_evaluation_stands_for_its_batches(num_pictures, share):
    """The last of which costs as much as a full one."""
    shares, batch = [], SimpleNamespace(images=None, labels=None, valid=None)
    engine = SimpleNamespace(device="cpu", ema=None, synchronize=lambda: None, evaluate=lambda *_: None)
    loaders = SimpleNamespace(val=SimpleNamespace(over=lambda slices: (batch for _ in slices)))
    energy = SimpleNamespace(meter=SimpleNamespace(set_phase=lambda phase: None))
    meter = SimpleNamespace(begin_evaluation=lambda: None, end_evaluation=shares.append)
    sizes = {"num_pictures": num_pictures, "batch_size": 64}
    Validation(engine, loaders, Counters(), energy, meter, Ranks(), **sizes).time_part()
    assert shares == [pytest.approx(share)]


def test_joules_that_cannot_be_read_for_a_while_end_no_run(monkeypatch):
    """As after a suspended process: only what stays unreadable is lost."""
    now, joules = [100.0], [5.0]
    monkeypatch.setattr(spent, "time", SimpleNamespace(monotonic=lambda: now[0]))
    measure = SessionMeter("joules", 100.0, SimpleNamespace(reading=lambda: SimpleNamespace(joules=joules[0])))
    assert measure() == 5
    joules[0] = None
    now[0] += LOST_S
    assert measure() == 5
    joules[0] = 7.0
    now[0] += LOST_S
    assert measure() == 7
    joules[0] = None
    now[0] += LOST_S + 1
    assert math.isnan(measure())


def test_time_of_stopped_sessions_counts(pictures, tmp_path, clock, monkeypatch):
    """Each session has its set-up; the progress neither falls nor jumps."""
    out = tmp_path / "run"
    monkeypatch.setattr(StopRequest, "requested", stopping_at([60, 70]))
    arguments = [*budgeted(pictures, out, "50s", gate="memory", warmup_epochs=0.5), "--resume"]
    for code in (138, 138, 0):
        clock()
        assert main(["train", *arguments]) == code
    assert_decayed(out)
    assert summary_of(out)["budget"]["spent"] == pytest.approx(50, rel=0.02)
    progress = [line["progress"] for line in steps_of(out)]
    assert max(b - a for a, b in itertools.pairwise(progress)) < 0.02
    batches = summary_of(out)["samples"]["steps"] / 10  # seconds
    assert 3 * 5 + batches < 50


def test_what_a_killed_session_spent_counts(pictures, tmp_path, clock):
    out = tmp_path / "run"
    arguments = [*budgeted(pictures, out, "40s", gate="dense"), "--resume"]
    clock()
    assert main(["train", *arguments, "--max-time", "0.001s"]) == 3
    RunFolder(out).spent.write_text('{"kind": "time", "spent": 17.500}\n')  # as a kill long after the checkpoint leaves
    clock()
    assert main(["train", *arguments, "--max-time", "1h"]) == 0
    summary = summary_of(out)
    assert summary["budget"]["spent"] == pytest.approx(40, rel=0.02)
    assert 17.5 + 5 + summary["samples"]["steps"] / 10 < 40


@pytest.mark.parametrize("budget", ["3s", "12s"])
def test_time_that_is_too_short_is_refused_early_with_what_would_do(pictures, tmp_path, clock, capsys, budget):
    """Whether set-up alone took all of it, or the pace tells."""
    clock(5.0, 0.1)
    assert main(["train", *budgeted(pictures, tmp_path / "run", budget, gate="dense")]) == 2
    error = capsys.readouterr().err
    assert f"--budget {budget}: does not pay for 100 optimizer steps and an evaluation" in error
    enough = error.split("use --budget ")[1].split()[0]
    assert len(steps_of(tmp_path / "run")) < 20
    clock(5.0, 0.1)
    assert main(["train", *budgeted(pictures, tmp_path / "other", enough, gate="dense")]) == 0
    steps = summary_of(tmp_path / "other")["samples"]["steps"]
    assert steps >= 0.9 * MIN_STEPS  # an estimate, until an evaluation was measured


def test_calibration_that_takes_all_of_the_time_is_refused(pictures, tmp_path, clock, capsys):
    clock()
    options = budgeted(pictures, tmp_path / "run", "30s", gate="memory", dense_calibration=500)
    assert main(["train", *options]) == 2
    assert "500 optimizer steps of --dense-calibration" in capsys.readouterr().err


def two_clocks(rank_s):
    """Clocks that go at another pace on each rank."""
    rank = int(os.environ["RANK"])
    clocked(4.0 + rank, rank_s[rank])


def test_two_ranks_agree_on_what_is_spent(pictures, tmp_path):
    """They end at the same batch, by the slower clock."""
    out = tmp_path / "run"
    arguments = budgeted(pictures, out, "40s", gate="forward", batch_size=BATCH // 2, warmup_epochs=0.5, threads=1)
    with RankProcesses(tmp_path, 2, command, arguments, two_clocks, (0.05, 0.1)) as ranks:
        assert ranks.codes() == [0, 0]
    assert_decayed(out)
    assert summary_of(out)["budget"]["spent"] == pytest.approx(40, rel=0.02)


def test_joules_without_nvml_are_refused_with_alternatives(pictures, tmp_path, capsys):
    assert main(["train", *budgeted(pictures, tmp_path / "run", "500kJ")]) == 2
    error = capsys.readouterr().err
    assert "--budget 500kJ: the energy of the GPU cannot be read" in error
    assert "--budget 40m or --budget 5ep" in error
    assert not (tmp_path / "run").exists()


# Training stays on the CPU; only the power is replayed.
SCRIPT = """
import json, sys
from fastast.cli import main
from fastast.energy.energy_meter import EnergyMeter
from fastast.train import budget_meter
from fastast.session import session
budget_meter.END_S = 0.5  # there is no report to write
session.metered_devices = lambda device: None
session.write_report = lambda folder: None
idle = EnergyMeter.measure_idle
EnergyMeter.measure_idle = lambda self: idle(self, 0.5)
print(json.dumps(main(sys.argv[1:])))
"""


@pytest.mark.slow
def test_joules_are_spent_to_the_end(driver, pictures, tmp_path):
    out = tmp_path / "run"
    environment = driver.environment("t4", curve="0:100", PYTHONPATH=str(ROOT))
    arguments = budgeted(pictures, out, "2kJ", gate="memory")
    assert driver.start(SCRIPT, environment, "train", *arguments)() == 0
    assert_decayed(out)
    budget = summary_of(out)["budget"]
    assert budget["kind"] == "joules"
    assert budget["given"] == 2000
    assert budget["spent"] == pytest.approx(2000, rel=0.05)
    assert summary_of(out)["energy"]["gpu_j"] == pytest.approx(budget["spent"], rel=0.05)


@pytest.mark.slow
def test_killed_run_spends_its_time_on_the_clock(pictures, tmp_path):
    """By a stopwatch, from the first command to the end of the last."""
    out = tmp_path / "run"
    arguments = [*map(str, budgeted(pictures, out, "60s", gate="memory")), "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.time()
    process = subprocess.Popen([sys.executable, "-m", "fastast", "train", *arguments], env=environment)
    while not (RunFolder(out).spent.exists() and read_record(RunFolder(out).spent, "time") > 25):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    finished = run_fastast("train", *arguments)
    assert finished.returncode == 0, finished.stderr
    # The summary is written for the last time at the verdict; the interpreter's exit comes after it.
    assert RunFolder(out).summary.stat().st_mtime - began == pytest.approx(60, rel=0.05)
    assert summary_of(out)["budget"]["spent"] == pytest.approx(60, rel=0.03)
    assert_decayed(out)


def test_record_survives_what_it_may_find(tmp_path):
    path = tmp_path / "spent.json"
    assert read_record(path, "time") == 0
    with recorded(path, "time", lambda: 123456.75):
        assert json.loads(path.read_text()) == {"kind": "time", "spent": 123456.75}
    with recorded(path, "time", lambda: 2.5):  # shorter
        assert read_record(path, "time") == 2.5
    assert read_record(path, "joules") == 0
    for damaged in (
        b"",
        b"\x00" * 64,
        b'{"kind": "time"',
        b"[]",
        b'{"kind": "time", "spent": null}',
        b'{"kind": "time", "spent": NaN}',
    ):
        path.write_bytes(damaged)
        assert read_record(path, "time") == 0
    with recorded(tmp_path / "absent" / "spent.json", "time", lambda: 1.0):  # cannot be written
        pass


def test_age_is_that_of_the_command_alone():
    assert process_age_s(["train"]) == 0  # this process is a test's
    code = "import sys, time; from fastast.process_age import process_age_s as age; print(age(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code, "x"], env=environment, capture_output=True).stdout)
    assert 0.01 < age < time.monotonic() - began + 0.05


def test_progress_stands_still_while_something_else_spends():
    budget = MeteredBudget(Amount("time", 100.0), 1000)
    budget.take([10.0])
    assert budget.progress == 0
    budget.keep_back(end=5.0)
    budget.resume()
    budget.take([52.5])
    assert budget.progress == pytest.approx(0.5)
    budget.pause()
    budget.take([70.0])
    assert budget.progress == pytest.approx(0.5)
    budget.keep_back(end=5.0, evaluation=15.0)
    budget.resume()
    budget.take([75.0])
    assert budget.progress == pytest.approx(0.75)
    state = budget.state_dict()
    resumed = MeteredBudget(Amount("time", 100.0), 1000)
    resumed.load_state_dict(state)
    assert (resumed.progress, resumed.spent, resumed.earlier) == (budget.progress, 75, 75)
    resumed.resume()
    resumed.take([20.0])
    assert resumed.progress == 1
    assert math.isclose(resumed.left, -15)


def test_pace_is_that_of_the_last_batches():
    budget = MeteredBudget(Amount("joules", 1e6), 1000)
    budget.resume()
    spent = units = 0.0
    for batch in range(300):
        pace = 2.0 if batch < 100 else 0.5
        spent, units = spent + pace * 30, units + 30
        budget.count(units)
        budget.take([spent / 3, spent * 2 / 3])
    assert budget.unit_cost == pytest.approx(0.5, rel=0.06)
