"""`fastast bench` from the command line: what it writes, continues, refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastast.bench import experiment
from fastast.bench import runner as runner_module
from fastast.bench.runner import failure_reason
from fastast.cli import main
from fastast.config.options import command_words
from tests.bench.fake_runs import FakeRunner
from tests.conftest import ROOT, run_fastast

RUN = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "16", "--lr", "0.05", "--device", "cpu"]


@pytest.fixture
def runner(monkeypatch):
    chosen = FakeRunner.fresh()
    for module in (experiment, runner_module):
        monkeypatch.setattr(module, "Runner", chosen)
    monkeypatch.setattr(experiment, "write_bench_report", lambda folder: None)  # it has tests of its own
    return chosen


ARMS = "dense;random:target=0.3;memory:target=0.3"


def bench(out, *more, arms=ARMS, budgets="1,2ep"):
    return main(["bench", "--arms", arms, "--budgets", budgets, "--out", str(out), "--data", "absent", *RUN, *more])


def result_of(out):
    return json.loads((out / "bench.json").read_text())


def test_bench_json_has_runs_results_and_verdict(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--seed", "5", "--warmup-epochs", "0.1") == 0
    result = result_of(tmp_path / "b")
    assert (result["schema"], result["finished"], result["seeds"]) == (2, True, [5, 6, 7])
    assert [arm["name"] for arm in result["arms"]] == ARMS.split(";")
    assert result["arms"][2]["options"] == {"gate": "memory", "target": 0.3}
    assert result["budgets"] == [{"name": f"{n:g}ep", "kind": "ep", "amount": n} for n in (1.0, 2.0)]
    assert result["options"]["arch"] == "tests.nets:tiny"
    assert result["hardware"]["names"] == ["AMD EPYC"]
    assert [(run["seed"], run["budget"], run["arm"]) for run in result["runs"]] == [
        (seed, budget, arm) for seed in (5, 6, 7) for budget in ("1ep", "2ep") for arm in ARMS.split(";")
    ]
    assert result["runs"][0]["folder"] == "runs/seed5-1ep-dense"
    assert result["runs"][0]["summary"]["seed"] == 5
    assert [(point["arm"], point["budget"], point["n"]) for point in result["points"]] == [
        (arm, budget, 3) for arm in ARMS.split(";") for budget in ("1ep", "2ep")
    ]
    assert result["verdict"]["winners"] == ["memory:target=0.3"]
    assert result["failures"] == []
    assert result["notes"] == ["joules were not measured: GPU not read: x"]
    printed = capsys.readouterr().out
    assert "[1/18] seed 5, 1ep, dense: top-1 45." in printed
    assert "s left" in printed
    for words in (
        "Top-1, mean +- standard error over the seeds",
        "Against random:target=0.3 for the same budget",
        "Units at the accuracy that dense has with this budget, dense being 1",
        *result["verdict"]["sentences"],
    ):
        assert words in printed


def test_bench_continues_with_more_seeds_budgets_and_arms(runner, tmp_path, capsys):
    out = tmp_path / "b"
    assert bench(out, "--seeds", "1", arms="dense;random") == 0
    first = list(runner.ran)
    assert bench(out, "--seeds", "1", arms="dense;random") == 0
    assert runner.ran == first
    assert bench(out, "--seeds", "2", arms=ARMS.replace("random:target=0.3", "random"), budgets="1,2,4ep") == 0
    assert not set(runner.ran[len(first) :]) & set(first)
    assert len(runner.ran) == len(result_of(out)["runs"]) == 18
    capsys.readouterr()
    assert bench(out, "--lr", "0.1") == 2
    assert "--lr 0.1: the bench in" in capsys.readouterr().err


def test_bench_continues_where_options_were_added_since(runner, tmp_path, capsys):
    out, weights = tmp_path / "b", ["--weights", str(tmp_path / "a.pt")]
    assert bench(out, "--seeds", "1", "--start", "random", *weights) == 0
    plan = json.loads((out / "plan.json").read_text())
    for name in ("start", "optimizer", "weight_decay", "freeze_bn"):
        del plan["options"][name]
    (out / "plan.json").write_text(json.dumps(plan))
    assert bench(out, "--seeds", "2", "--start", "random", *weights) == 0
    assert len(result_of(out)["runs"]) == 12
    capsys.readouterr()
    for more, words in (
        (["--start", "random", "--optimizer", "adamw"], f"the bench in {out} has sgd; give --optimizer sgd, or"),
        (["--start", "probe"], f"--start probe: the bench in {out} has random; give --start random, or"),
        ([], f"--start: the bench in {out} has random; give --start random"),  # today's default would probe
    ):
        assert bench(out, *more, *weights) == 2
        assert words in capsys.readouterr().err
    (out / "plan.json").write_text(json.dumps({**plan, "options": {**plan["options"], "read": "pread"}}))
    assert bench(out, "--start", "random", *weights) == 2
    assert "--read was removed" in capsys.readouterr().err


def test_next_command_names_its_seeds_once():
    for seeds in (["--seeds", "3"], ["--seeds=3"], []):
        assert experiment.with_seeds(["bench", *seeds, "--out", "R"], 5) == ["bench", "--out", "R", "--seeds", "5"]


def test_bench_of_another_version_is_refused(runner, tmp_path, capsys):
    (tmp_path / "plan.json").write_text('{"schema": 1, "options": {}, "epochs": 4}')
    assert bench(tmp_path) == 2
    assert "of another version of fastast; name another folder with --out" in capsys.readouterr().err


def test_failed_run_does_not_stop_the_others(runner, tmp_path, capsys):
    runner.failing = {"seed1-1ep-memory-target=0.3": "killed"}
    assert bench(tmp_path / "b") == 0
    result = result_of(tmp_path / "b")
    assert result["failures"] == [
        {
            **{"arm": "memory:target=0.3", "budget": "1ep", "seed": 1},
            **{"folder": "runs/seed1-1ep-memory-target=0.3", "reason": "killed"},
        }
    ]
    assert {(p["arm"], p["budget"]): p["n"] for p in result["points"]}["memory:target=0.3", "1ep"] == 2
    assert "FAILED: killed" in capsys.readouterr().out
    runner.failing = {}
    ran = len(runner.ran)
    assert bench(tmp_path / "b") == 0
    assert runner.ran[ran:] == ["seed1-1ep-memory-target=0.3"]
    assert result_of(tmp_path / "b")["failures"] == []


def test_results_are_written_after_every_run(runner, tmp_path, monkeypatch):
    out, seen, pages = tmp_path / "b", [], []
    run = runner.run

    def look_first(self, job):
        seen.append(result_of(out) if (out / "bench.json").exists() else None)
        return run(self, job)

    monkeypatch.setattr(runner, "run", look_first)
    monkeypatch.setattr(experiment, "write_bench_report", pages.append)
    assert bench(out, "--seeds", "2", arms="dense;random") == 0
    assert seen[0] is None
    assert [len(result["runs"]) for result in seen[1:]] == list(range(1, 8))
    assert not any(result["finished"] for result in seen[1:])
    last = result_of(out)
    assert last["finished"] is True
    assert {point["n"] for point in last["points"]} == {2}
    assert pages == [out] * 9  # one for each run, and at the end


def test_finished_runs_stay_when_an_arm_is_added(runner, tmp_path, monkeypatch):
    out, seen = tmp_path / "b", []
    assert bench(out, "--seeds", "2", arms="dense;random", budgets="1ep") == 0
    monkeypatch.setattr(experiment, "write_bench_report", lambda out: seen.append(result_of(out)))
    assert bench(out, "--seeds", "2", arms="dense;random;memory", budgets="1ep") == 0
    assert {point["arm"]: point["n"] for point in seen[0]["points"]} == {"dense": 2, "random": 2, "memory": 1}


def test_only_failures_exit_1(runner, tmp_path):
    runner.failing = {f"seed0-1ep-{gate}": "killed" for gate in ("dense", "random")}
    assert bench(tmp_path / "b", "--seeds", "1", arms="dense;random", budgets="1ep") == 1
    assert result_of(tmp_path / "b")["points"] == []


def test_bad_input_of_first_run_ends_the_bench(runner, tmp_path, capsys):
    runner.refuse = "absent: no such folder"
    assert bench(tmp_path / "b") == 2
    assert capsys.readouterr().err == "fastast bench: error: absent: no such folder\n"
    assert runner.ran == ["seed0-1ep-dense"]
    runner.refuse = None
    assert bench(tmp_path / "b", "--lr", "0.2", "--seeds", "1") == 0  # nothing of the first try is in the way


def test_dry_run_writes_nothing(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--seeds", "2", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert runner.ran == ["pace"]
    assert not (tmp_path / "b").exists()
    assert "12 runs, about" in printed
    assert "an estimate" in printed
    assert "seed 1, 2ep, memory:target=0.3: about" in printed
    assert bench(tmp_path / "b", "--seeds", "1") == 0
    capsys.readouterr()
    assert bench(tmp_path / "b", "--seeds", "2", "--dry-run") == 0
    assert runner.ran.count("pace") == 1  # finished runs tell it
    assert "seed 0, 1ep, dense: finished" in capsys.readouterr().out


def test_time_scales_the_budgets_once(runner, tmp_path, capsys):
    more = ["--seeds", "1", "--time", "30s"]
    assert bench(tmp_path / "b", *more) == 0
    one, two = (budget["amount"] for budget in result_of(tmp_path / "b")["budgets"])
    assert one < 1
    assert two == pytest.approx(2 * one, rel=0.01)
    assert f"--time 30s: budgets {one:g}ep, {two:g}ep, {one:g} times those asked for" in capsys.readouterr().out
    ran = len(runner.ran)
    assert bench(tmp_path / "b", *more) == 0
    assert len(runner.ran) == ran
    assert bench(tmp_path / "b", "--seeds", "1") == 2
    assert "was started with --time; give it too" in capsys.readouterr().err
    assert bench(tmp_path / "c", "--time", "5s") == 2
    assert "allow more" in capsys.readouterr().err


def test_time_with_few_pictures(runner, tmp_path, capsys):
    runner.num_train = 96
    assert bench(tmp_path / "b", "--seeds", "1", "--time", "1m") == 0
    assert runner.ran[:2] == ["pace", "pace"]
    runner.num_train = 8
    assert bench(tmp_path / "c", "--seeds", "1", "--time", "1m") == 2
    assert "not one batch was trained" in capsys.readouterr().err


def test_bench_without_random_arm_says_so(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--warmup-epochs", "0.1", arms="dense;memory") == 0
    assert capsys.readouterr().out.startswith("no random arm: ")
    assert result_of(tmp_path / "b")["notes"][0].startswith("no random arm: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arms", "dense;magic"], ["--arms magic", "infobatch"]),
        (["--arms", "random"], ["--arms random", "no dense arm"]),
        (["--budgets", "1ep,5m"], ["--budgets 1ep,5m"]),
        (["--seeds", "0"], ["--seeds 0"]),
        (["--time", "soon"], ["--time soon", "45m"]),
        (["--target", "3"], ["--target 3"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--out", "."], ["--out ."]),
    ],
)
def test_bad_options_exit_2_with_one_line(runner, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # a run lives here
    assert bench(tmp_path / "b", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error
    assert not (tmp_path / "b").exists()
    assert not runner.ran


def test_options_from_toml_file(runner, tmp_path):
    (tmp_path / "a.toml").write_text('gate = "forward"\nmax-time = "1s"\nout = "x"\nepochs = 9\nwarmup-epochs = 0.5\n')
    assert bench(tmp_path / "b", "--config", str(tmp_path / "a.toml"), "--seeds", "1") == 0
    options = result_of(tmp_path / "b")["options"]
    assert options["warmup_epochs"] == 0.5
    assert not {"gate", "max_time", "out", "epochs", "budget"} & set(options)


def test_flags_and_failure_reasons():
    options = {"image_size": 32, "unbiased": True, "deterministic": False, "lr": 0.1, "threads": None, "explore": 0.0}
    assert command_words(options) == ["--image-size", "32", "--unbiased", "--lr", "0.1", "--explore", "0.0"]
    assert failure_reason(2, "a\nfastast train: error: no data\nb\n") == "no data"
    assert failure_reason(-9, "a\n") == "ended by SIGKILL"
    assert failure_reason(1, "Traceback\nValueError: x\n\n") == "exit code 1: ValueError: x"


def real(pictures, out, arms, budgets, *more):
    words = ["--arms", arms, "--budgets", budgets, "--seeds", "1", "--out", str(out), "--data", str(pictures)]
    return ["bench", *words, *RUN, *more]


def files_of(out):
    return {path.name: (path / "summary.json").stat().st_mtime_ns for path in (out / "runs").iterdir()}


def test_real_run_is_not_repeated(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = real(pictures, tmp_path / "b", "dense", "2ep", "--batch-size", "4")
    assert main(arguments) == 0
    before = files_of(tmp_path / "b")
    assert list(before) == ["seed0-2ep-dense"]
    (tmp_path / "b" / "bench.json").unlink()
    assert main(arguments) == 0
    assert files_of(tmp_path / "b") == before
    (point,) = result_of(tmp_path / "b")["points"]
    assert point["units"] == 3 * 2 * 240
    assert point["seconds"] > point["train_seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_arms_spend_the_same(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arms = "dense;random:target=0.3;memory:target=0.3,warmup-epochs=0.5;forward:target=0.3"
    assert main(real(pictures, tmp_path / "b", arms, "2,4ep", "--batch-size", "4")) == 0
    result = result_of(tmp_path / "b")
    assert result["failures"] == []
    assert len(result["runs"]) == 8
    for point in result["points"]:
        amount = float(point["budget"].removesuffix("ep"))
        assert point["units"] == pytest.approx(3 * 240 * amount, rel=0.02)


@pytest.mark.slow
def test_bench_runs_have_nproc_ranks(pictures, tmp_path):
    more = ["--nproc", "2", "--threads", "1", "--batch-size", "4"]
    words = real(pictures, tmp_path / "b", "dense", "4ep", *more)
    done = run_fastast(*words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = result_of(tmp_path / "b")["runs"]
    assert run["summary"]["hardware"]["world_size"] == 2
    assert run["summary"]["samples"]["offered"] == 960
    assert run_fastast(*words, cwd=ROOT).returncode == 0  # finished runs are not repeated
    assert len(list((tmp_path / "b" / "runs").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_signal_stops_and_bench_continues(pictures, tmp_path, signum):
    out = tmp_path / "b"
    words = [
        sys.executable,
        "-m",
        "fastast",
        *real(pictures, out, "dense", "60ep", "--checkpoint-every", "0"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "runs" / "seed0-60ep-dense" / "checkpoints" / "last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        printed, _ = process.communicate(timeout=60)
        if signum == signal.SIGKILL:  # which the bench cannot hand on, and the run ends all the same
            while not (out / "runs" / "seed0-60ep-dense" / "summary.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            while (out / "runs" / "seed0-60ep-dense" / ".lock").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.kill()
    if signum == signal.SIGINT:
        assert process.returncode == 130, printed
        assert "the same command continues the bench" in printed
    assert json.loads((out / "runs" / "seed0-60ep-dense" / "summary.json").read_text())["stopped"] == "signal"
    assert subprocess.run(words, cwd=ROOT, env=environment).returncode == 0
    summary = json.loads((out / "runs" / "seed0-60ep-dense" / "summary.json").read_text())
    assert summary["stopped"] is None
    assert len(summary["resumes"]) == 1
