"""One bench in its folder: plans the matrix, runs it, writes `bench.json` and `bench.html` after every run."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastast.atomic_files import write_whole
from fastast.bench.arms import SET_BY_MATRIX, Arm, Budget, check_runs
from fastast.bench.estimate import Outcome, Pace, estimate, fit_scale
from fastast.bench.matrix import Job, jobs_of
from fastast.bench.notes import NO_RANDOM, notes_of
from fastast.bench.runner import BadInput, Runner, measure_pace
from fastast.bench.statistics import summarise
from fastast.bench.tables import plan_lines, result_lines, run_line
from fastast.checkpoint.resume import FREE_OPTIONS, absolute_paths, stored_options
from fastast.code_version import code_version
from fastast.config.config_file import resolve
from fastast.config.options import command_words, flag_of, parse_duration, require
from fastast.data import require_outside
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.report.bench_page import write_bench_report
from fastast.run_folder import RunFolder, finite, read_json
from fastast.signals import Stopped

PLAN_SCHEMA = 2


def with_seeds(argv: Sequence[str], number: int) -> list[str]:
    """The words of a command with another number of seeds."""
    kept, words = [], iter(argv)
    for word in words:
        if word == "--seeds":
            next(words, None)
        elif not word.startswith("--seeds="):
            kept.append(word)
    return [*kept, "--seeds", str(number)]


class Bench:
    """One bench in its folder.

    Args:
        options: of all runs, from the command line, by field name of `TrainConfig`; `seed` is the first seed.
        arms: what is compared; dense is among them.
        budgets: that every arm is trained with, of one kind.
        num_seeds: seeds, from `seed` on.
        out: the bench's folder. A bench in it continues; a finished run is not repeated.
        time: a duration that the budgets are fitted to, or None.
        argv: the command line, for `bench.json`.
        reporter: shows progress.

    Raises:
        InputError: something that the user can fix.
    """

    def __init__(
        self,
        options: dict[str, Any],
        *,
        arms: list[Arm],
        budgets: list[Budget],
        num_seeds: int,
        out: str,
        time: str | None,
        argv: list[str],
        reporter: Reporter,
    ) -> None:
        self._options = {name: value for name, value in absolute_paths(options).items() if name not in SET_BY_MATRIX}
        self._config = resolve({**self._options, "gate": "dense"})
        require(num_seeds >= 1, f"--seeds {num_seeds}: must be at least 1, for example 3")
        self._seeds = range(self._config.seed, self._config.seed + num_seeds)
        self._arms, self._budgets = arms, budgets
        self._time, self._time_s = time, None if time is None else parse_duration(time, "--time")
        self._scale: float | None = None  # of the budgets, by --time
        self._out = Path(out)
        self._plan_path = self._out / "plan.json"
        self._argv, self._reporter = argv, reporter
        self._outcomes: dict[str, Outcome] = {}
        self._pace: Pace | None = None
        self._is_new = False
        self._runner = Runner(self._out, self._options)

    def run(self, *, dry_run: bool) -> int:
        """Runs the matrix, or with `dry_run` prints the plan and an estimate of its time, and writes nothing.

        Returns:
            The exit code: 0 done, though single runs may have failed (`bench.json` names them); 1 if all failed;
            128 + n if signal n stopped the bench, which the same command then continues.

        Raises:
            InputError: the folder holds a bench of other options, or cannot be written to; --time is too short; the
                first run refused its options or data.
        """
        if all(arm.gate != "random" for arm in self._arms):
            self._reporter.note(NO_RANDOM)
        for line in check_runs(self._options, self._arms, self._budgets):
            self._reporter.note(line)
        try:
            if dry_run:
                self._show_plan()
                self._reporter.next(shlex.join(["fastast", *(word for word in self._argv if word != "--dry-run")]))
                return 0
            self._start()
            with self._runner.forwarding_signals():
                for job in self._jobs():
                    self._run_job(job)
        except Stopped as stopped:
            self._reporter.note(f"{stopped}; the same command continues the bench in {self._out}")
            return stopped.exit_code
        return self._finish()

    def _jobs(self) -> list[Job]:
        return jobs_of(self._arms, self._budgets, self._seeds)

    def _start(self) -> None:
        """Continues the bench in the folder, or starts one."""
        if self._continue():
            return
        self._refuse_folder()
        if self._time_s is not None:
            self._fit()
        self._out.mkdir(parents=True, exist_ok=True)
        plan = {"schema": PLAN_SCHEMA, "options": self._fixed_options(), "scale": self._scale}
        write_whole(self._plan_path, _json(plan))
        self._is_new = True

    def _show_plan(self) -> None:
        """Prints the plan and an estimate, from finished runs or from a short dense run."""
        continues = self._continue()
        known = self._finished()
        if not continues and self._time_s is not None:
            self._fit()
        elif not known:
            self._pace, _ = measure_pace(self._options, None, self._reporter)
        for line in plan_lines(self._jobs(), known, estimate(self._jobs(), known, self._pace)):
            self._reporter.note(line)

    def _finish(self) -> int:
        """Writes `bench.json` and `bench.html`, prints the tables and the verdict; returns the exit code."""
        result = self._write(finished=True)
        for line in [*result_lines(result), *result["notes"], *result["verdict"]["sentences"]]:
            self._reporter.note(line)
        if result["failures"]:
            self._reporter.note(f"failed runs: {len(result['failures'])}; the same command tries them again")
        self._reporter.note(f"written: {self._out / 'bench.json'} (bench.html beside it shows it)")
        self._reporter.next(shlex.join(["fastast", *with_seeds(self._argv, len(self._seeds) + 2)]))
        return 0 if result["runs"] else 1

    def _write(self, *, finished: bool) -> dict[str, Any]:
        """Writes `bench.json` and `bench.html` of all runs so far; returns the content of the former."""
        runs, failures, known = [], [], self._finished()
        for job in self._jobs():
            outcome = known.get(job.name)
            if outcome is None:
                continue
            entry = job.entry(os.path.relpath(self._runner.folder(job), self._out))
            if outcome.summary is None:
                failures.append({**entry, "reason": outcome.reason})
            else:
                accuracy = {k: v for k, v in outcome.summary["accuracy"].items() if k != "per_class"}  # may be long
                runs.append({**entry, "summary": {**outcome.summary, "accuracy": accuracy}})
        version, commit = code_version()
        arms, budgets = [arm.to_json() for arm in self._arms], [budget.to_json() for budget in self._budgets]
        found = summarise(arms, budgets, runs)
        result = {
            **{"schema": 2, "finished": finished, "version": version, "commit": commit, "argv": self._argv},
            **{"options": self._options, "hardware": runs[0]["summary"]["hardware"] if runs else None},
            **{"arms": arms, "budgets": budgets, "seeds": list(self._seeds), "runs": runs, "failures": failures},
            **{**found, "notes": [*check_runs(self._options, self._arms, self._budgets), *notes_of(arms, found, runs)]},
        }
        write_whole(self._out / "bench.json", _json(result))
        try:
            write_bench_report(self._out)
        except InputError as error:  # bench.json has the figures
            self._reporter.note(f"bench.html was not written: {error}")
        return result

    def _finished(self) -> dict[str, Outcome]:
        """Outcomes of finished runs by name, of seeds that are not due yet too."""
        found = ((job.name, self._outcomes.get(job.name) or self._runner.finished(job)) for job in self._jobs())
        return {name: outcome for name, outcome in found if outcome is not None}

    def _run_job(self, job: Job) -> None:
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
        jobs = self._jobs()
        left_s = sum(estimate(jobs, self._finished(), self._pace).values())
        self._reporter.note(run_line(len(self._outcomes), len(jobs), job, outcome, left_s))
        if not outcome.before:
            self._write(finished=False)

    def _continue(self) -> bool:
        """Takes up the bench in the folder; False if there is none."""
        if not self._plan_path.exists():
            return False
        plan = read_json(self._plan_path)
        if plan.get("schema") != PLAN_SCHEMA:
            raise InputError(f"{self._plan_path}: of another version of fastast; name another folder with --out")
        stored, scale = plan.get("options"), plan.get("scale")
        if not isinstance(stored, dict) or not isinstance(scale, float | int | None):
            raise InputError(f"{self._plan_path}: damaged; name another folder with --out")
        stored = stored_options({**stored, "gate": self._config.gate}, self._plan_path)
        for name, value in self._fixed_options().items():
            if stored[name] != value:
                flag, words = flag_of(name), command_words({name: stored[name]})
                remedy = f"give {' '.join(words)}" if words else f"leave {flag} out"
                raise InputError(
                    f"{flag}{'' if value is None else f' {value}'}: the bench in {self._out} has {stored[name]}; "
                    f"{remedy}, or name another folder with --out"
                )
        if (self._time is None) != (scale is None):
            had = (
                "was started without --time; leave it out" if scale is None else "was started with --time; give it too"
            )
            raise InputError(f"--time: the bench in {self._out} {had}, or name another folder with --out")
        self._reporter.note(f"continuing the bench in {self._out}")
        if scale is not None:
            self._apply(scale)
        return True

    def _fixed_options(self) -> dict[str, Any]:
        """Options that all runs of a bench share; finished runs are kept only while these stay the same."""
        changing = {*FREE_OPTIONS, *SET_BY_MATRIX, "seed"}
        return {name: value for name, value in dataclasses.asdict(self._config).items() if name not in changing}

    def _refuse_folder(self) -> None:
        """Refuses a folder that holds the data or a run."""
        config = self._config
        require_outside(self._out, config.data, (config.train_dir or "").split(","), config.val_dir)
        if (self._out.exists() and not self._out.is_dir()) or RunFolder(self._out).holds_run():
            raise InputError(f"--out {self._out}: holds something else than a bench; name another folder")

    def _fit(self) -> None:
        """Scales the budgets so that the matrix is expected to take --time."""
        assert self._time_s is not None
        self._pace, spent_s = measure_pace(self._options, self._time_s, self._reporter)
        flag = f"--time {self._time}"
        scale = fit_scale(self._jobs(), self._pace, self._time_s - spent_s, flag)
        self._apply(scale)
        full = " (all of them fit)" if scale == 1 else f", {scale:g} times those asked for"
        self._reporter.note(f"{flag}: budgets {', '.join(b.name for b in self._budgets)}{full}; an estimate")

    def _apply(self, scale: float) -> None:
        self._scale, self._budgets = scale, [budget.scaled(scale) for budget in self._budgets]


def _json(value: Any) -> str:
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
