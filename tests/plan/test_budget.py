"""`--budget`: a run spends what it may, ends fully decayed, and resumes to the same bits."""

import signal

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.cli import main
from fastast.config import TrainConfig
from fastast.config.config_checks import idle_gate
from fastast.config.options import Amount, parse_budget
from fastast.errors import InputError
from fastast.gates.registry import GATES
from fastast.phases import ANNEAL, DENSE, GATED, WARMUP
from fastast.plan.budget import Budget
from fastast.plan.open_schedule import OpenSchedule
from fastast.run_folder import RunFolder
from fastast.signals import StopRequest
from fastast.train.pace import RunPace
from tests.stops import stopping_at
from tests.train.test_run import lines_of, options, summary_of

NUM_TRAIN, BATCH = 240, 4


def budgeted(data, out, budget, **changes):
    """A run on a budget as words of the command line."""
    words = options(data, out, **{"batch_size": BATCH, "eval_every": "auto", "epochs": None, **changes})
    place = words.index("--epochs")
    return [*words[:place], "--budget", budget, *words[place + 2 :]]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5ep", ("ep", 5)),
        (" .5EP ", ("ep", 0.5)),
        ("8h50m", ("time", 31800)),
        ("40m", ("time", 2400)),
        ("500kJ", ("joules", 5e5)),
        ("0.15kWh", ("joules", 5.4e5)),
        ("90J", ("joules", 90)),
    ],
)
def test_budgets_are_read(text, amount):
    assert parse_budget(text, "--budget") == pytest.approx(Amount(*amount))


@pytest.mark.parametrize("text", ["5", "0ep", "-1ep", "ep", "5 epochs", "0m", "1e3ep", "2.50eur"])
def test_other_amounts_are_refused(text):
    with pytest.raises(InputError, match=r"--budget .*: expected .* 5ep, 8h50m or 500kJ"):
        parse_budget(text, "--budget")


def test_epochs_and_budget_exclude_each_other(capsys):
    assert main(["train", "--budget", "5ep", "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert "--budget 5ep" in error
    assert "--epochs 3" in error
    assert TrainConfig(budget="5ep").epochs is None


def test_budget_too_small_for_the_gate_says_so():
    assert "--budget 1ep" in idle_gate(TrainConfig(budget="1ep"))
    assert idle_gate(TrainConfig(budget="1.5ep")) is None
    assert idle_gate(TrainConfig(budget="1m")) is None


# The others differ in nothing that a budget knows of.
SOME_GATES = [gate if gate in ("forward", "memory") else pytest.param(gate, marks=pytest.mark.slow) for gate in GATES]


@pytest.mark.parametrize("gate", GATES)
def test_run_spends_its_budget_and_ends_decayed(pictures, tmp_path, gate):
    out = tmp_path / "run"
    assert main(["train", *budgeted(pictures, out, "2.5ep", gate=gate)]) == 0
    summary, lines = summary_of(out), lines_of(out)
    total, step = 2.5 * 3 * NUM_TRAIN, 3 * BATCH
    assert abs(summary["compute"]["forward_units"] - total) <= step
    budget = summary["budget"]
    assert budget["kind"] == "ep"
    assert budget["given"] == 2.5
    assert budget["spent"] == pytest.approx(summary["compute"]["forward_units"] / 3 / NUM_TRAIN)
    steps = [line for line in lines if line["kind"] == "step"]
    progress = [line["progress"] for line in steps]
    assert progress == sorted(progress)
    assert 0 < progress[0] < 0.02
    assert 0.98 < progress[-1] <= 1
    assert steps[-1]["lr"] < 0.002 * max(line["lr"] for line in steps)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert epochs[-1]["val_top1"] is not None
    assert sum(line["val_top1"] is not None for line in epochs) == min(3, len(epochs))
    assert len(epochs) > 3 or gate in ("dense", "forward", "infobatch")


@pytest.mark.parametrize("gate", SOME_GATES)
def test_resumed_run_equals_undisturbed_run(pictures, tmp_path, monkeypatch, gate):
    """Stops in warm-up, gated part, anneal and evaluation, wherever the count of batches happens to fall.

    Pictures grow by what is spent when they are read ahead, which a resumed run reads again.
    """
    changes = {"gate": gate, "warmup_epochs": 0.7, "anneal": 0.3, "prune": 0.6, "log_every": 2, "train_size": "16:32"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *budgeted(pictures, whole, "1.8ep", **changes)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", stopping_at([20, 29, 17, 30, 13]))
        arguments = [*budgeted(pictures, parts, "1.8ep", **changes), "--resume"]
        codes = [main(["train", *arguments]) for _ in range(6)]
    assert codes == [128 + signal.SIGUSR1] * 5 + [0]
    assert differences(RunFolder(parts), RunFolder(whole)) == []
    steps = [line for line in lines_of(whole) if line["kind"] == "step"]
    assert {line["train_size"] for line in steps} == {16, 24, 32}
    phases = {line["phase"] for line in steps}
    assert phases == ({DENSE} if gate == "dense" else {WARMUP, GATED, ANNEAL})


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["dense", "forward"])
def test_stop_before_any_batch_around_the_end_changes_nothing(pictures, tmp_path, monkeypatch, gate):
    """The decision to end is taken between two batches, and must be the same on both sides of a resume."""
    changes = {"gate": gate, "warmup_epochs": 0.2}
    whole = tmp_path / "whole"
    assert main(["train", *budgeted(pictures, whole, "1.7ep", **changes)]) == 0
    requested, checks = StopRequest.requested, []

    def counted(self):
        checks.append(0)
        return requested(self)

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", counted)
        assert main(["train", *budgeted(pictures, tmp_path / "counted", "1.7ep", **changes)]) == 0
    num_eval = 60 // BATCH
    for back in range(num_eval - 1, num_eval + 3):
        parts, left = tmp_path / f"parts{back}", [len(checks) - back]

        def stopped(self, left=left):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGUSR1)
            return requested(self)

        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "requested", stopped)
            arguments = [*budgeted(pictures, parts, "1.7ep", **changes), "--resume"]
            assert [main(["train", *arguments]) for _ in range(2)] == [128 + signal.SIGUSR1, 0]
        assert differences(RunFolder(parts), RunFolder(whole)) == []


def test_budget_of_too_few_steps_is_refused_with_what_would_do(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *budgeted(pictures, out, "1ep", batch_size=16)]) == 2
    error = capsys.readouterr().err
    assert "pays for 15 optimizer steps, and a run needs 100; use --budget 6.67ep, or --batch-size 2" in error
    assert not out.exists()
    assert main(["train", *budgeted(pictures, out, "6.67ep", batch_size=16, gate="dense", eval_every=100)]) == 0
    assert summary_of(out)["samples"]["steps"] == 100


def test_another_budget_needs_force_and_then_goes_on(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *budgeted(pictures, out, "1.7ep", gate="memory")]) == 0
    assert main(["train", "--out", str(out), "--resume", "--budget", "3ep"]) == 0  # finished: only shown
    assert main(["train", "--out", str(out), "--resume", "--budget", "90s", "--force"]) == 2
    assert "of another kind" in capsys.readouterr().err
    assert main(["train", "--out", str(out), "--resume", "--budget", "2ep", "--force"]) == 0
    summary = summary_of(out)
    assert summary["budget"]["spent"] == pytest.approx(2, abs=BATCH / NUM_TRAIN)
    assert summary["resumes"][0]["changed"] == ["--budget 1.7ep -> 2ep"]


def open_schedule(ep, **options):
    budget = Budget(Amount("ep", ep), 1000)
    return OpenSchedule(budget, 1000, **{"gated": True, "batch_size": 10, **options})


def test_open_schedule_anneals_when_just_that_is_left():
    schedule = open_schedule(3, warmup_epochs=0.5, anneal_epochs=1)
    segment = schedule.segment_at(0)
    assert (segment.phase, segment.stop, segment.ends_epoch) == (WARMUP, 500, False)
    schedule.budget.spent = 1500
    segment = schedule.end(segment, 500, 1500)
    segment = schedule.segment_at(500)
    assert (segment.phase, segment.start, segment.stop) == (GATED, 500, 1000)
    schedule.budget.spent = 5980
    assert not schedule.is_due(segment, 0.0)
    assert schedule.is_due(segment, 30.0)
    schedule.budget.spent = 6010
    segment = schedule.end(segment, 700, 6010)
    assert (segment.stop, segment.ends_epoch, segment.evaluates) == (700, False, False)
    assert schedule.segment_at(500) == segment
    anneal = schedule.segment_at(700)
    assert (anneal.phase, anneal.start, anneal.stop) == (ANNEAL, 700, 1000)
    schedule.budget.spent = 8990
    assert schedule.is_due(anneal, 0.0)
    anneal = schedule.end(anneal, 990, 8990)
    assert anneal.evaluates
    assert schedule.segment_at(990) is None


def test_last_steps_and_anneal_epochs_cost_what_the_last_size_does():
    """Half a step more than is left is too much, and as much is in vain; an anneal epoch costs 1500 units."""
    schedule = open_schedule(2, anneal_epochs=1, last_unit=0.5)
    schedule.budget.spent = 4500
    assert not schedule.is_due(schedule.segment_at(1000), 0.0)
    schedule.budget.spent = 4501
    assert schedule.is_due(schedule.segment_at(1000), 0.0)
    schedule = open_schedule(2, gated=False, last_unit=0.5)
    schedule.budget.spent = 5992
    assert not schedule.is_due(schedule.segment_at(1000), 0.0)
    schedule.budget.spent = 5992.5
    assert schedule.is_due(schedule.segment_at(1000), 0.0)


def test_every_counts_dense_work():
    schedule = open_schedule(10, gated=False, eval_every=2.0)
    evaluated = []
    for epoch in range(1, 11):
        schedule.budget.spent = 3000.0 * epoch
        if schedule.end(schedule.segment_at(1000 * (epoch - 1)), 1000, 3000.0 * epoch).evaluates:
            evaluated.append(epoch)
    assert evaluated == [2, 4, 6, 8, 10]


def test_fixed_epochs_report_the_progress_that_drives_the_learning_rate(pictures, tmp_path, monkeypatch):
    progress, set_progress = [], RunPace.set_progress
    monkeypatch.setattr(
        RunPace, "set_progress", lambda self, share: (progress.append(share), set_progress(self, share))
    )
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, epochs=2, gate="dense")]) == 0
    lines = [line["progress"] for line in lines_of(out) if line["kind"] == "step"]
    assert lines == [*progress[1:15], progress[14], *progress[16:], progress[-1]]
    assert summary_of(out)["budget"] is None
