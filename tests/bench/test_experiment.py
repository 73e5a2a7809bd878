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
from fastast.bench.runner import failure_reason, flags
from fastast.cli import main
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


def bench(out, *more, gates="random,forward", epochs="4"):
    options = ["--gates", gates, "--target", "0.3", "--out", str(out), "--data", "absent", *RUN]
    return main(["bench", *options, *(["--epochs", epochs] if epochs else []), *more])


def test_bench_json_has_runs_rows_and_verdict(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--seeds", "2", "--seed", "5") == 0
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert result["schema"] == 1
    assert result["seeds"] == [5, 6]
    assert {(run["role"], run["for"], run["seed"]) for run in result["runs"]} == {
        (role, of, seed)
        for seed in (5, 6)
        for role, of in [
            ("dense", None),
            ("gate", None),
            *((f"dense_equal_{what}", of) for what in ("units", "time") for of in ("random", "forward")),
            ("random_equal_share", "forward"),
        ]
    }
    shared = [run["folder"] for run in result["runs"] if run["role"] == "random_equal_share"]
    assert shared == ["runs/seed5-random", "runs/seed6-random"]
    assert result["runs"][0]["summary"]["seed"] == 5
    rows = {(row["role"], row["for"], row["gate"]): row for row in result["rows"]}
    assert rows["gate", None, "forward"]["n"] == 2
    assert rows["gate", None, "forward"]["val_top1"] == {"mean": pytest.approx(0.7055), "se": pytest.approx(0.0005)}
    assert result["verdict"]["winners"] == ["forward"]
    assert result["failures"] == []
    assert "goals" not in result
    printed = capsys.readouterr().out
    assert "[1/" in printed
    assert "s left" in printed
    assert "forward beats dense at equal budget and random at equal share (joules not measured)." in printed


def test_bench_continues_with_more_seeds_and_gates(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--seeds", "1", gates="random") == 0
    first = list(runner.ran)
    assert bench(tmp_path / "b", "--seeds", "1", gates="random") == 0
    assert runner.ran == first
    assert bench(tmp_path / "b", "--seeds", "2", gates="random,memory", epochs=None) == 0
    assert set(runner.ran[len(first) :]) & set(first) == {"probe"}  # the parts of a gate that joined are not known
    capsys.readouterr()
    assert bench(tmp_path / "b", "--lr", "0.1", gates="random") == 2
    assert "--lr 0.1: the bench in" in capsys.readouterr().err
    assert bench(tmp_path / "b", gates="random", epochs="5") == 2
    assert "--epochs 5: the bench in" in capsys.readouterr().err


def test_failed_run_does_not_stop_the_others(runner, tmp_path, capsys):
    runner.failing = {"seed1-forward": "killed", "seed0-random-dense_equal_units": "no space"}
    assert bench(tmp_path / "b", "--seeds", "2") == 0
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert [(f["role"], f["for"], f["seed"], f["reason"]) for f in result["failures"]] == [
        ("dense_equal_units", "random", 0, "no space"),
        ("gate", None, 1, "killed"),
    ]
    n = {(row["role"], row["for"] or row["gate"]): row["n"] for row in result["rows"]}
    assert (n["gate", "forward"], n["gate", "random"], n["dense_equal_units", "random"]) == (1, 2, 1)
    assert "FAILED: killed" in capsys.readouterr().out


def test_results_are_written_after_every_run(runner, tmp_path, monkeypatch):
    out, seen, pages = tmp_path / "b", [], []
    run = runner.run

    def look_first(self, job):
        file = out / "bench.json"
        seen.append(json.loads(file.read_text()) if file.exists() else None)
        return run(self, job)

    monkeypatch.setattr(runner, "run", look_first)
    monkeypatch.setattr(experiment, "write_bench_report", pages.append)
    assert bench(out, "--seeds", "2", gates="random") == 0
    assert seen[0] is None
    assert [len({r["folder"] for r in result["runs"]}) for result in seen[1:]] == list(range(1, len(runner.ran) - 1))
    assert all(result["finished"] is False for result in seen[1:])
    assert [row["n"] for row in seen[-1]["rows"]] == [2, 2, 1, 1]  # a run that serves twice counts twice
    last = json.loads((out / "bench.json").read_text())
    assert last["finished"] is True
    assert {row["n"] for row in last["rows"]} == {2}
    assert pages == [out] * len(runner.ran)  # one for each run, and at the end; the probe has none


def test_finished_runs_stay_when_a_gate_is_added(runner, tmp_path, monkeypatch):
    out, seen = tmp_path / "b", []
    assert bench(out, "--seeds", "2", gates="random") == 0
    monkeypatch.setattr(experiment, "write_bench_report", lambda out: seen.append((out / "bench.json").read_text()))
    assert bench(out, "--seeds", "2", gates="random,memory") == 0
    first = json.loads(seen[0])
    assert {(run["gate"], run["n"]) for run in first["rows"] if run["for"] is None} == {
        ("dense", 2),
        ("random", 2),
        ("memory", 1),
    }


def test_machine_ceiling_from_timed_parts(runner, tmp_path, monkeypatch, capsys):
    assert bench(tmp_path / "b", "--seeds", "1") == 0
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    row = next(row for row in result["rows"] if row["role"] == "gate" and row["gate"] == "forward")
    ceiling = (0.002 + 0.004) / (0.002 + 0.002 + 0.3 * (0.002 + 0.004))
    assert row["machine_ceiling"]["mean"] == pytest.approx(ceiling)
    assert row["share_of_machine_ceiling"]["mean"] == pytest.approx(row["speedup"]["mean"] / ceiling)
    assert result["parts"]["forward"]["train_s"] == 0.004
    assert bench(tmp_path / "b", "--seeds", "1") == 0
    assert runner.ran.count("probe") == 1  # plan.json has them
    monkeypatch.setattr(runner, "probe", lambda self, gates: (None, "no such network"))
    assert bench(tmp_path / "c", "--seeds", "1") == 0
    assert "the machine's ceiling is not measured: no such network" in capsys.readouterr().out
    result = json.loads((tmp_path / "c" / "bench.json").read_text())
    assert result["parts"] is None
    assert result["parts_note"] == "no such network"
    assert {row["machine_ceiling"]["mean"] for row in result["rows"]} == {None}


def test_only_failures_exit_1(runner, tmp_path):
    runner.failing = {f"seed0-{gate}": "killed" for gate in ("dense", "random", "forward")}
    assert bench(tmp_path / "b", "--seeds", "1") == 1
    assert json.loads((tmp_path / "b" / "bench.json").read_text())["rows"] == []


def test_bad_input_of_first_run_ends_the_bench(runner, tmp_path, capsys):
    runner.refuse = "absent: no such folder"
    assert bench(tmp_path / "b") == 2
    assert capsys.readouterr().err == "fastast bench: error: absent: no such folder\n"
    assert runner.ran == ["probe", "seed0-dense"]
    runner.refuse = None
    assert bench(tmp_path / "b", "--lr", "0.2", "--seeds", "1") == 0  # nothing of the first try is in the way


def test_dry_run_writes_nothing(runner, tmp_path, capsys):
    assert bench(tmp_path / "b", "--seeds", "2", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert runner.ran == ["calibration"]
    assert not (tmp_path / "b").exists()
    assert "an estimate" in printed
    assert "seed 1 forward: random, equal share: shares the run of random" in printed
    assert bench(tmp_path / "b", "--seeds", "1") == 0
    capsys.readouterr()
    assert bench(tmp_path / "b", "--seeds", "2", "--dry-run") == 0
    assert runner.ran.count("calibration") == 1  # finished runs tell the pace
    assert "seed 0 forward: 4 epochs, finished" in capsys.readouterr().out


def test_budget_sets_the_epochs_once(runner, tmp_path, capsys):
    more = ["--seeds", "1", "--budget", "1m"]
    assert bench(tmp_path / "b", *more, epochs=None) == 0
    epochs = json.loads((tmp_path / "b" / "plan.json").read_text())["epochs"]
    assert 2 <= epochs < 40
    assert f"--budget 1m: {epochs:g} epochs for each gate (an estimate)" in capsys.readouterr().out
    assert bench(tmp_path / "b", *more, epochs=None) == 0
    assert runner.ran.count("calibration") == 1
    assert bench(tmp_path / "c", "--budget", "5s", epochs=None) == 2
    assert "allow more" in capsys.readouterr().err


def test_budget_with_few_pictures(runner, tmp_path, capsys):
    runner.num_train = 96
    assert bench(tmp_path / "b", "--seeds", "1", "--budget", "1m", epochs=None) == 0
    assert runner.ran[:2] == ["calibration", "calibration"]
    runner.num_train = 8
    assert bench(tmp_path / "c", "--seeds", "1", "--budget", "1m", epochs=None) == 2
    assert "not one batch was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gates", "forward,magic"], ["--gates magic", "infobatch"]),
        (["--gates", ","], ["--gates"]),
        (["--seeds", "0"], ["--seeds 0"]),
        (["--budget", "soon"], ["--budget soon", "45m"]),
        (["--epochs", "1"], ["--epochs 1", "--warmup-epochs"]),
        (["--explore", "0.5"], ["--explore 0.5"]),
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
    (tmp_path / "a.toml").write_text('gate = "forward"\nmax-time = "1s"\nout = "elsewhere"\nwarmup-epochs = 0.5\n')
    assert bench(tmp_path / "b", "--config", str(tmp_path / "a.toml"), "--seeds", "1") == 0
    options = json.loads((tmp_path / "b" / "bench.json").read_text())["options"]
    assert options["warmup_epochs"] == 0.5
    assert not {"gate", "max_time", "out"} & set(options)


def test_flags_and_failure_reasons():
    options = {"image_size": 32, "unbiased": True, "deterministic": False, "lr": 0.1, "threads": None, "explore": 0.0}
    assert flags(options) == ["--image-size", "32", "--unbiased", "--lr", "0.1", "--explore", "0.0"]
    assert failure_reason(2, "a\nfastast train: error: no data\nb\n") == "no data"
    assert failure_reason(-9, "a\n") == "ended by SIGKILL"
    assert failure_reason(1, "Traceback\nValueError: x\n\n") == "exit code 1: ValueError: x"


def real(pictures, out, gates, *more):
    return ["bench", "--gates", gates, "--seeds", "1", "--out", str(out), "--data", str(pictures), *RUN, *more]


def files_of(out):
    return {path.name: (path / "summary.json").stat().st_mtime_ns for path in (out / "runs").iterdir()}


def test_real_run_is_not_repeated(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = real(pictures, tmp_path / "b", "dense", "--epochs", "0.5")
    assert main(arguments) == 0
    before = files_of(tmp_path / "b")
    assert list(before) == ["seed0-dense"]
    (tmp_path / "b" / "bench.json").unlink()
    assert main(arguments) == 0
    assert files_of(tmp_path / "b") == before
    assert "No verdict" in (tmp_path / "b" / "bench.html").read_text()
    (row,) = json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]
    assert row["forward_units"]["mean"] == 3 * 112  # 7 batches of half an epoch; 8 pictures are left over


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_gates_match_their_baselines(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(real(pictures, tmp_path / "b", "forward,memory", "--epochs", "3", "--target", "0.3")) == 0
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert result["failures"] == []
    for row in result["rows"]:
        if row["role"] in ("random_equal_share", "dense_equal_units"):
            assert row["match"]["mean"] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_bench_runs_have_nproc_ranks(pictures, tmp_path):
    words = real(pictures, tmp_path / "b", "dense", "--epochs", "1", "--nproc", "2", "--threads", "1")
    done = run_fastast(*words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads((tmp_path / "b" / "bench.json").read_text())["runs"]
    assert run["summary"]["hardware"]["world_size"] == 2
    assert run["summary"]["samples"]["offered"] == 240
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
        *real(pictures, out, "dense", "--epochs", "60", "--checkpoint-every", "0"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "runs" / "seed0-dense" / "checkpoints" / "last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        printed, _ = process.communicate(timeout=60)
        if signum == signal.SIGKILL:  # which the bench cannot hand on, and the run ends all the same
            while not (out / "runs" / "seed0-dense" / "summary.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            while (out / "runs" / "seed0-dense" / ".lock").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.kill()
    if signum == signal.SIGINT:
        assert process.returncode == 130, printed
        assert "the same command continues the bench" in printed
    assert json.loads((out / "runs" / "seed0-dense" / "summary.json").read_text())["stopped"] == "signal"
    assert subprocess.run(words, cwd=ROOT, env=environment).returncode == 0
    summary = json.loads((out / "runs" / "seed0-dense" / "summary.json").read_text())
    assert summary["stopped"] is None
    assert len(summary["resumes"]) == 1
