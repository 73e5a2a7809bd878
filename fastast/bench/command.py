"""`fastast bench`: plans the matrix, runs it, writes `bench.json` and `bench.html` after every run."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from fastast.atomic_files import write_whole
from fastast.bench.estimate import Estimate, Outcome, Pace, estimate, fit_epochs, pace_of
from fastast.bench.plan import DENSE, Job, Work, order_gates, walk
from fastast.bench.result import make_result
from fastast.bench.runs import BadInput, Runner
from fastast.bench.show import goals_table, plan_lines, rows_table, run_line, speed_table
from fastast.checkpoint.resume import FREE_OPTIONS, absolute_paths
from fastast.config import GATES
from fastast.config_file import read_toml, resolve
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.options import parse_duration, require
from fastast.report.bench import write_bench_report
from fastast.run_folder import RunFolder, code_version, finite, read_json
from fastast.signals import Stopped

# Options of a run that the matrix decides.
DECIDED = ("gate", "out", "max_time")
CALIBRATION_EPOCHS = (0.1, 1.0)  # the second where a tenth of the pictures makes no batch
CALIBRATION_S = 300.0  # at most, a first scan of the pictures included
CALIBRATION_SHARE = 0.1  # of the budget, at most
NOTHING_CAME_OUT = 1


def run_bench(
    given: dict[str, Any],
    *,
    toml_path: str | None,
    gates: str,
    num_seeds: int,
    out: str,
    budget: str | None,
    dry_run: bool,
    argv: list[str],
    reporter: Reporter,
) -> int:
    """Runs `fastast bench`.

    Args:
        given: options of `fastast train` that the user typed, by field name of `TrainConfig`; `seed` is the first.
        toml_path: a TOML file of further ones, or None.
        gates: names, comma-separated; dense always runs.
        num_seeds: seeds, from `seed` on.
        out: the bench's folder. A bench that was stopped there goes on; a finished run is not repeated.
        budget: a duration that the epochs are fitted to, or None.
        dry_run: print the plan and an estimate, write nothing.
        argv: the command line, for `bench.json`.
        reporter: shows progress.

    Returns:
        The exit code: 0 done, though single runs may have failed (`bench.json` names them); 1 if not one came out;
        128 + n where signal n stopped the bench, which then continues with the same command.

    Raises:
        InputError: something that the user can fix.
    """
    bench = Bench(given, toml_path=toml_path, gates=gates, num_seeds=num_seeds, out=out, argv=argv, reporter=reporter)
    try:
        if dry_run:
            bench.show_plan(budget)
            return 0
        bench.start(budget)
        bench.run()
    except Stopped as stopped:
        reporter.note(f"{stopped}; the same command continues the bench in {out}")
        return stopped.exit_code
    return bench.finish()


class Bench:
    """One bench in its folder.

    Args:
        given, toml_path, gates, num_seeds, out, argv, reporter: as of `run_bench`.
    """

    def __init__(
        self,
        given: dict[str, Any],
        *,
        toml_path: str | None,
        gates: str,
        num_seeds: int,
        out: str,
        argv: list[str],
        reporter: Reporter,
    ) -> None:
        options = absolute_paths({**(read_toml(toml_path) if toml_path else {}), **given})
        self._options = {name: value for name, value in options.items() if name not in DECIDED}
        names = _parse_gates(gates)
        self._gates = order_gates(names)
        require(num_seeds >= 1, f"--seeds {num_seeds}: must be at least 1, for example 3")
        for gate in names:
            resolve({**self._options, "gate": gate})
        self._config = resolve({**self._options, "gate": "dense"})
        self._epochs = self._config.epochs
        dense = self._config.warmup_epochs + self._config.anneal
        require(
            not self._gates or dense < self._epochs,
            f"--epochs {self._epochs:g}: --warmup-epochs and --anneal leave the gates nothing; allow more epochs",
        )
        self._seeds = range(self._config.seed, self._config.seed + num_seeds)
        self._out = Path(out)
        self._plan_path = self._out / "plan.json"
        self._argv, self._reporter = argv, reporter
        self._outcomes: dict[str, Outcome] = {}
        self._parts: dict[str, dict[str, float]] | None = None
        self._parts_note: str | None = None
        self._pace: Pace | None = None
        self._is_new = False
        self._runner = Runner(self._out, self._options)

    def start(self, budget: str | None) -> None:
        """Continues the bench that the folder holds, or chooses the epochs and begins one.

        Raises:
            InputError: the folder holds a bench of other options, or cannot be written to; the budget is too short.
            Stopped: a signal came meanwhile.
        """
        if self._continue(budget):
            if self._time_parts():
                self._write_plan()
            return
        self._refuse_folder()
        budget_s = None if budget is None else parse_duration(budget, "--budget")
        began = time.monotonic()
        calibration_s = None if budget_s is None else self._calibrate(budget_s)
        self._out.mkdir(parents=True, exist_ok=True)
        self._time_parts()
        if budget is not None and budget_s is not None and calibration_s is not None:
            self._fit(budget, budget_s, max(calibration_s, time.monotonic() - began))
        self._write_plan()
        self._is_new = True

    def _time_parts(self) -> bool:
        """Times the parts of training, unless those of every gate are known; returns whether it did."""
        names = {gate for gate in (*self._gates, "random") if self._gates}
        if names <= set(self._parts or {}):
            return False
        self._reporter.note("timing the parts of training, for the machine's ceiling")
        with self._runner.listening():
            self._parts, self._parts_note = self._runner.probe(sorted(names))
        if self._parts_note is not None:
            self._reporter.note(f"the machine's ceiling is not measured: {self._parts_note}")
        return True

    def _write_plan(self) -> None:
        plan = {"schema": 1, "options": self._fixed_options(), "epochs": self._epochs}
        write_whole(self._plan_path, _json({**plan, "parts": self._parts, "parts_note": self._parts_note}))

    def show_plan(self, budget: str | None) -> None:
        """Prints the plan and an estimate of it, from finished runs or from a short dense run."""
        continues = self._continue(budget)
        known: dict[str, Outcome] = {}

        def look(job: Job) -> Work | None:
            outcome = self._runner.finished(job)
            if outcome is None:
                return None
            known[job.name] = outcome
            self._learn(job, outcome)
            return outcome.work

        walk(self._gates, self._seeds, self._epochs, look)
        budget_s = None if budget is None else parse_duration(budget, "--budget")
        if self._pace is None:
            seconds = self._calibrate(budget_s)
            if budget is not None and budget_s is not None and not continues:
                self._fit(budget, budget_s, seconds)
        assert self._pace is not None
        for line in plan_lines(self._estimate(known), known):
            self._reporter.note(line)

    def run(self) -> None:
        """Runs the matrix.

        Raises:
            InputError: the first dense run refused its options or data.
            Stopped: a signal came.
        """
        with self._runner.listening():
            walk(self._gates, self._seeds, self._epochs, self._run_job)

    def finish(self) -> int:
        """Writes `bench.json` and `bench.html`, prints the tables and the verdict; returns the exit code."""
        result = self._write(finished=True)
        rows, goals, verdict = result["rows"], result["goals"], result["verdict"]
        told = [*rows_table(rows), *speed_table(rows), *goals_table(goals), *result["notes"]]
        for line in [*told, *verdict["text"].splitlines()]:
            self._reporter.note(line)
        if result["failures"]:
            self._reporter.note(f"failed runs: {len(result['failures'])}; the same command tries them again")
        self._reporter.note(f"written: {self._out / 'bench.json'} (bench.html beside it shows it)")
        return 0 if result["runs"] else NOTHING_CAME_OUT

    def _write(self, *, finished: bool) -> dict[str, Any]:
        """Writes `bench.json` and `bench.html` of all runs so far; returns the content of the former."""
        result = self._result(finished=finished)
        write_whole(self._out / "bench.json", _json(result))
        try:
            write_bench_report(self._out)
        except InputError as error:  # the figures are safe
            self._reporter.note(f"bench.html was not written: {error}")
        return result

    def _result(self, *, finished: bool) -> dict[str, Any]:
        known: dict[str, Outcome] = {}

        def look(job: Job) -> Work | None:
            outcome = self._outcomes.get(job.name) or self._runner.finished(job)  # of a seed that is not due yet
            if outcome is None:
                return None
            known[job.name] = outcome
            return outcome.work

        def folder_of(job: Job) -> str:
            return os.path.relpath(self._runner.folder(job), self._out)

        entries = walk(self._gates, self._seeds, self._epochs, look)
        version, commit = code_version()
        return {
            "schema": 1,
            "finished": finished,
            "version": version,
            "commit": commit,
            "argv": self._argv,
            "options": self._options,
            "epochs": self._epochs,
            "seeds": list(self._seeds),
            "parts": self._parts,
            "parts_note": self._parts_note,
            **make_result(entries, known, folder_of, self._parts),
        }

    def _run_job(self, job: Job) -> Work | None:
        outcome = self._runner.finished(job)
        if outcome is None:
            try:
                outcome = self._runner.run(job)
            except BadInput as error:
                if not any(known.summary for known in self._outcomes.values()):
                    if self._is_new:  # the next try may name other options
                        self._plan_path.unlink(missing_ok=True)
                    raise InputError(str(error)) from error  # no run would do better
                outcome = Outcome(None, str(error))
        self._outcomes[job.name] = outcome
        self._learn(job, outcome)
        expected = None if self._pace is None else self._estimate(self._outcomes)
        total, left_s = (None, None) if expected is None else (expected.num_runs, expected.left_s)
        self._reporter.note(run_line(len(self._outcomes), total, job, outcome, left_s))
        if not outcome.before:
            self._write(finished=False)
        return outcome.work

    def _learn(self, job: Job, outcome: Outcome) -> None:
        """Takes the pace of a dense run."""
        if job.role == DENSE:
            self._pace = pace_of(outcome, job.epochs) or self._pace

    def _estimate(self, known: dict[str, Outcome]) -> Estimate:
        assert self._pace is not None
        return estimate(self._config, self._gates, self._seeds, self._epochs, self._pace, known)

    def _continue(self, budget: str | None) -> bool:
        """Takes the epochs of the bench that the folder holds; False if it holds none."""
        if not self._plan_path.exists():
            return False
        plan, remedy = read_json(self._plan_path), "name another folder with --out, or leave the option as it was"
        stored = plan.get("options")
        if not isinstance(stored, dict) or not isinstance(plan.get("epochs"), int | float):
            raise InputError(f"{self._plan_path}: damaged; name another folder with --out")
        for name, value in self._fixed_options().items():
            if stored.get(name) != value:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {value}: the bench in {self._out} has {stored.get(name)}; {remedy}")
        if budget is None and "epochs" in self._options and self._epochs != plan["epochs"]:
            raise InputError(f"--epochs {self._epochs:g}: the bench in {self._out} has {plan['epochs']:g}; {remedy}")
        self._epochs = plan["epochs"]
        self._parts, self._parts_note = plan.get("parts"), plan.get("parts_note")
        self._reporter.note(f"continuing the bench in {self._out}, {self._epochs:g} epochs for each gate")
        return True

    def _fixed_options(self) -> dict[str, Any]:
        """What runs of one bench have in common, so that what is finished can stay."""
        changing = {*FREE_OPTIONS, "gate", "seed", "epochs"}
        return {name: value for name, value in dataclasses.asdict(self._config).items() if name not in changing}

    def _calibrate(self, budget_s: float | None) -> float:
        """Learns the pace from a short dense run that is not kept; returns its seconds."""
        limit_s = CALIBRATION_S if budget_s is None else min(CALIBRATION_S, max(5.0, CALIBRATION_SHARE * budget_s))
        seconds = 0.0
        for epochs in CALIBRATION_EPOCHS:
            self._reporter.note(f"calibrating: {epochs:g} dense epochs, {limit_s:.0f} s at most")
            outcome = self._run_calibration(epochs, limit_s)
            seconds += outcome.seconds
            self._pace = pace_of(outcome, epochs)
            if self._pace is not None:
                return seconds
            if outcome.summary is None or outcome.summary["stopped"] is not None:
                break
        reason = outcome.reason or f"not one batch was trained in {limit_s:.0f} s"
        raise InputError(f"the calibration run failed: {reason}; allow a longer --budget, or give --epochs alone")

    def _run_calibration(self, epochs: float, limit_s: float) -> Outcome:
        changes = {"gate": "dense", "epochs": epochs, "max_time": f"{limit_s:.0f}s"}
        with tempfile.TemporaryDirectory(prefix="fastast-bench-") as folder:
            runner = Runner(Path(folder), self._options)
            try:
                with runner.listening():
                    return runner.train(Path(folder, "calibration"), {**self._options, **changes})
            except BadInput as error:
                raise InputError(str(error)) from error

    def _refuse_folder(self) -> None:
        """Nothing is written beside the data, or into a run."""
        config = self._config
        folders = [config.data, config.val_dir, *(config.train_dir or "").split(",")]
        if any(self._out.resolve() == Path(folder).resolve() for folder in folders if folder):
            raise InputError(f"--out {self._out}: is the data folder; name another, for example runs/bench")
        if (self._out.exists() and not self._out.is_dir()) or RunFolder(self._out).holds_run():
            raise InputError(f"--out {self._out}: holds something else than a bench; name another folder")

    def _fit(self, budget: str, budget_s: float, spent_s: float) -> None:
        """Chooses the epochs with which the matrix is expected to fit the budget."""
        assert self._pace is not None
        flag = f"--budget {budget}"
        left_s = budget_s - spent_s
        self._epochs = fit_epochs(self._config, self._gates, self._seeds, self._pace, left_s, flag)
        most = ", as many as --epochs allows" if self._epochs == self._config.epochs else ""
        self._reporter.note(f"{flag}: {self._epochs:g} epochs for each gate{most} (an estimate)")


def _parse_gates(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        require(name in GATES, f"--gates {name}: choose from {', '.join(GATES)}")
    require(bool(names), f"--gates: name at least one of {', '.join(GATES)}")
    return names


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
