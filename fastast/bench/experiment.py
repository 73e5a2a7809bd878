"""One bench in its folder: plans the matrix, runs it, writes `bench.json` and `bench.html` after every run."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from fastast.atomic_files import write_whole
from fastast.bench.estimate import Estimate, Outcome, Pace, estimate, fit_epochs, pace_of
from fastast.bench.matrix import DENSE, Entry, Job, Work, order_gates, walk
from fastast.bench.runner import BadInput, Runner, measure_pace
from fastast.bench.statistics import caveats, make_rows
from fastast.bench.tables import plan_lines, rows_table, run_line, speed_table
from fastast.bench.verdict import judge
from fastast.checkpoint.resume import FREE_OPTIONS, absolute_paths
from fastast.config import GATES
from fastast.config_file import resolve
from fastast.data import require_outside
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.options import parse_duration, require
from fastast.report.bench_page import write_bench_report
from fastast.run_folder import RunFolder, code_version, finite, read_json
from fastast.signals import Stopped

# Options of a run that the matrix sets.
SET_BY_MATRIX = ("gate", "out", "max_time")


class Bench:
    """One bench in its folder.

    Args:
        options: of `fastast train`, from the command line, by field name of `TrainConfig`; `seed` is the first.
        gates: names, comma-separated; dense always runs.
        num_seeds: seeds, from `seed` on.
        out: the bench's folder. A bench in it continues; a finished run is not repeated.
        budget: a duration that the epochs are fitted to, or None.
        argv: the command line, for `bench.json`.
        reporter: shows progress.

    Raises:
        InputError: something that the user can fix.
    """

    def __init__(
        self,
        options: dict[str, Any],
        *,
        gates: str,
        num_seeds: int,
        out: str,
        budget: str | None,
        argv: list[str],
        reporter: Reporter,
    ) -> None:
        self._options = {name: value for name, value in absolute_paths(options).items() if name not in SET_BY_MATRIX}
        names = [name.strip() for name in gates.split(",") if name.strip()]
        require(bool(names), f"--gates: name at least one of {', '.join(GATES)}")
        self._gates = order_gates(names)
        require(num_seeds >= 1, f"--seeds {num_seeds}: must be at least 1, for example 3")
        self._config = resolve({**self._options, "gate": "dense"})
        assert self._config.epochs is not None, "a bench has no --budget for its runs"
        self._epochs = self._config.epochs
        dense = self._config.warmup_epochs + self._config.anneal
        require(
            not self._gates or dense < self._epochs,
            f"--epochs {self._epochs:g}: --warmup-epochs and --anneal leave the gates nothing; allow more epochs",
        )
        self._seeds = range(self._config.seed, self._config.seed + num_seeds)
        self._budget, self._budget_s = budget, None if budget is None else parse_duration(budget, "--budget")
        self._out = Path(out)
        self._plan_path = self._out / "plan.json"
        self._argv, self._reporter = argv, reporter
        self._outcomes: dict[str, Outcome] = {}
        self._parts: dict[str, dict[str, float]] | None = None
        self._parts_note: str | None = None
        self._pace: Pace | None = None
        self._is_new = False
        self._runner = Runner(self._out, self._options)

    def run(self, *, dry_run: bool) -> int:
        """Runs the matrix, or with `dry_run` prints the plan and an estimate of its time, and writes nothing.

        Returns:
            The exit code: 0 done, though single runs may have failed (`bench.json` names them); 1 if all failed;
            128 + n if signal n stopped the bench, which the same command then continues.

        Raises:
            InputError: the folder holds a bench of other options, or cannot be written to; the budget is too short; the
                first dense run refused its options or data.
        """
        try:
            if dry_run:
                self._show_plan()
                return 0
            self._start()
            with self._runner.forwarding_signals():
                walk(self._gates, self._seeds, self._epochs, self._run_job)
        except Stopped as stopped:
            self._reporter.note(f"{stopped}; the same command continues the bench in {self._out}")
            return stopped.exit_code
        return self._finish()

    def _start(self) -> None:
        """Continues the bench in the folder, or chooses the epochs and starts one."""
        if self._continue():
            if self._time_parts():
                self._write_plan()
            return
        self._refuse_folder()
        start_s = time.monotonic()
        calibration_s = 0.0 if self._budget is None else self._measure_pace()
        self._out.mkdir(parents=True, exist_ok=True)
        self._time_parts()
        self._fit(max(calibration_s, time.monotonic() - start_s))
        self._write_plan()
        self._is_new = True

    def _time_parts(self) -> bool:
        """Times the parts of training unless those of every gate are known; returns whether it did."""
        names = {gate for gate in (*self._gates, "random") if self._gates}
        if names <= set(self._parts or {}):
            return False
        self._reporter.note("timing the parts of training, for the machine's ceiling")
        with self._runner.forwarding_signals():
            self._parts, self._parts_note = self._runner.probe(sorted(names))
        if self._parts_note is not None:
            self._reporter.note(f"the machine's ceiling is not measured: {self._parts_note}")
        return True

    def _write_plan(self) -> None:
        plan = {"schema": 1, "options": self._fixed_options(), "epochs": self._epochs}
        write_whole(self._plan_path, _json({**plan, "parts": self._parts, "parts_note": self._parts_note}))

    def _show_plan(self) -> None:
        """Prints the plan and an estimate, from finished runs or from a short dense run."""
        continues = self._continue()
        entries, known = self._finished()
        for entry in entries:
            if entry.job.name in known:
                self._learn(entry.job, known[entry.job.name])
        if self._pace is None:
            seconds = self._measure_pace()
            if not continues:
                self._fit(seconds)
        for line in plan_lines(self._estimate(known), known):
            self._reporter.note(line)

    def _finish(self) -> int:
        """Writes `bench.json` and `bench.html`, prints the tables and the verdict; returns the exit code."""
        result = self._write(finished=True)
        tables = [*rows_table(result["rows"]), *speed_table(result["rows"])]
        for line in [*tables, *result["notes"], *result["verdict"]["text"].splitlines()]:
            self._reporter.note(line)
        if result["failures"]:
            self._reporter.note(f"failed runs: {len(result['failures'])}; the same command tries them again")
        self._reporter.note(f"written: {self._out / 'bench.json'} (bench.html beside it shows it)")
        return 0 if result["runs"] else 1

    def _write(self, *, finished: bool) -> dict[str, Any]:
        """Writes `bench.json` and `bench.html` of all runs so far; returns the content of the former."""
        entries, known = self._finished()
        runs, failures = [], []
        for entry in entries:
            job, outcome = entry.job, known.get(entry.job.name)
            if outcome is None:
                continue
            folder = os.path.relpath(self._runner.folder(job), self._out)
            place = {"role": entry.role, "for": entry.of, "seed": job.seed, "folder": folder}
            if outcome.summary is None:
                failures.append({**place, "gate": job.gate, "reason": outcome.reason})
            else:
                runs.append({**place, "epochs": job.epochs, "summary": outcome.summary})
        version, commit = code_version()
        rows = make_rows(runs, self._parts)
        result = {
            **{"schema": 1, "finished": finished, "version": version, "commit": commit, "argv": self._argv},
            **{"options": self._options, "epochs": self._epochs, "seeds": list(self._seeds)},
            **{"parts": self._parts, "parts_note": self._parts_note},
            **{"runs": runs, "failures": failures, "rows": rows, "verdict": judge(rows), "notes": caveats(runs)},
        }
        write_whole(self._out / "bench.json", _json(result))
        try:
            write_bench_report(self._out)
        except InputError as error:  # bench.json has the figures
            self._reporter.note(f"bench.html was not written: {error}")
        return result

    def _finished(self) -> tuple[list[Entry], dict[str, Outcome]]:
        """The places so far, and the outcomes of finished runs by name."""
        known: dict[str, Outcome] = {}

        def look(job: Job) -> Work | None:
            outcome = self._outcomes.get(job.name) or self._runner.finished(job)  # of a seed that is not due yet
            if outcome is not None:
                known[job.name] = outcome
            return None if outcome is None else outcome.work

        return walk(self._gates, self._seeds, self._epochs, look), known

    def _run_job(self, job: Job) -> Work | None:
        outcome = self._runner.finished(job)
        if outcome is None:
            try:
                outcome = self._runner.run(job)
            except BadInput as error:
                if not any(known.summary for known in self._outcomes.values()):
                    if self._is_new:  # the next try may have other options
                        self._plan_path.unlink(missing_ok=True)
                    raise InputError(str(error)) from error  # all runs would fail alike
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
        """Updates the pace from a dense run."""
        if job.role == DENSE:
            self._pace = pace_of(outcome, job.epochs) or self._pace

    def _estimate(self, known: dict[str, Outcome]) -> Estimate:
        assert self._pace is not None
        return estimate(self._config, self._gates, self._seeds, self._epochs, self._pace, known)

    def _continue(self) -> bool:
        """Loads the plan of the bench in the folder; False if there is none."""
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
        if self._budget is None and "epochs" in self._options and self._epochs != plan["epochs"]:
            raise InputError(f"--epochs {self._epochs:g}: the bench in {self._out} has {plan['epochs']:g}; {remedy}")
        self._epochs = plan["epochs"]
        self._parts, self._parts_note = plan.get("parts"), plan.get("parts_note")
        self._reporter.note(f"continuing the bench in {self._out}, {self._epochs:g} epochs for each gate")
        return True

    def _fixed_options(self) -> dict[str, Any]:
        """Options that all runs of a bench share; finished runs are kept only while these stay the same."""
        changing = {*FREE_OPTIONS, "gate", "seed", "epochs"}
        return {name: value for name, value in dataclasses.asdict(self._config).items() if name not in changing}

    def _measure_pace(self) -> float:
        """Measures the pace with a short dense run; returns its seconds."""
        self._pace, seconds = measure_pace(self._options, self._budget_s, self._reporter)
        return seconds

    def _refuse_folder(self) -> None:
        """Refuses a folder that holds the data or a run."""
        config = self._config
        require_outside(self._out, config.data, (config.train_dir or "").split(","), config.val_dir)
        if (self._out.exists() and not self._out.is_dir()) or RunFolder(self._out).holds_run():
            raise InputError(f"--out {self._out}: holds something else than a bench; name another folder")

    def _fit(self, spent_s: float) -> None:
        """Sets the epochs with which the matrix is expected to fit the budget, if there is one."""
        if self._budget_s is None or self._pace is None:
            return
        flag, left_s = f"--budget {self._budget}", self._budget_s - spent_s
        self._epochs = fit_epochs(self._config, self._gates, self._seeds, self._pace, left_s, flag)
        most = ", as many as --epochs allows" if self._epochs == self._config.epochs else ""
        self._reporter.note(f"{flag}: {self._epochs:g} epochs for each gate{most} (an estimate)")


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
