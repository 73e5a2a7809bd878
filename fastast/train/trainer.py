"""A run as a whole: its parts, its segments and evaluations one after the other, and its state."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastast.checkpoint.file_format import snapshot
from fastast.config import TrainConfig
from fastast.data import Dataset
from fastast.device import Runtime
from fastast.distributed.ranks import Ranks
from fastast.engine.compiled_engine import build_engine
from fastast.engine.engine import Engine
from fastast.engine.evaluation import Accuracy
from fastast.loggers.console import Reporter, probe_detail
from fastast.phases import EVAL, PROBE
from fastast.plan.epoch_plan import EpochPlanner
from fastast.plan.run_position import RunPosition
from fastast.plan.schedule import Segment
from fastast.run_folder import RunFolder
from fastast.signals import stop_if_requested
from fastast.train.budget_meter import BudgetMeter
from fastast.train.due_steps import DueSteps
from fastast.train.host_agreement import HostAgreement
from fastast.train.loaders import Loaders
from fastast.train.pace import RunPace
from fastast.train.probe import RunProbe
from fastast.train.quarantine import Quarantine
from fastast.train.run_energy import RunEnergy
from fastast.train.run_log import RunLog
from fastast.train.segment_loop import Saver, SegmentLoop
from fastast.train.validation import Validation


class StateMismatch(Exception):
    """A state that does not fit this run."""


class Trainer:
    """One run on one device, or one rank's part of a run on several.

    Args:
        config: the options, completed by `complete_config`.
        runtime: device, number format and compiler of the run.
        dataset: catalogs of both splits.
        folder: where the run is written.
        energy: meters the run.
        reporter: shows progress.
        ranks: who trains together. They call every method alike.
        state: of `state_dict`, from which the run resumes; None starts it.

    Raises:
        InputError: the network does not fit the data, or does not compile though that was asked for.
        StateMismatch: the state is of another run.

    Attributes:
        runtime: as given, or without the compiler if the network turned out not to compile.
        log: counts and logs what the run has done.
        validation: evaluates, and holds what the network said last.
        budget: what the run may spend; None with `--epochs`.
        hosts: exchanges what the ranks tell each other once a batch.
        quarantine: takes pictures that do not decode.
        pace: sets the learning rate and the size of the pictures.
        steps: trains the batches that wait.
        position: where it is in the schedule.
        probe: fits the head before training, with `--start probe`.
        between: called between two batches, of training as of evaluation; may raise to end the run there.
        waiting: called every second while pictures do not come; may raise as well.
        requested: called between two batches; what `stop_if_requested` takes. All ranks then stop at the same batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        dataset: Dataset,
        folder: RunFolder,
        energy: RunEnergy,
        reporter: Reporter,
        *,
        ranks: Ranks | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        self.config, self.dataset, self.folder = config, dataset, folder
        self.energy, self.reporter = energy, reporter
        self.batch_size = config.batch_size
        self.ranks = ranks = ranks or Ranks()
        self.between: Callable[[], None] = lambda: None
        self.waiting: Callable[[], None] = lambda: None
        self.requested: Callable[[], int] = lambda: 0
        num_train = dataset.train.num_samples
        num_waiting = 0
        if state is not None:
            with _mismatches():
                num_waiting = Engine.num_waiting(_part(state, "engine"), ranks.size)
        self.engine, self.runtime = build_engine(
            config,
            runtime,
            reporter,
            weights=config.weights if state is None else "none",
            num_classes=len(dataset.classes),
            classes=dataset.classes,
            num_train=num_train,
            class_counts=np.bincount(dataset.train.labels, minlength=len(dataset.classes)),
            ranks=ranks,
            num_waiting=num_waiting,
        )
        self.planner = EpochPlanner(
            config,
            num_train,
            dataset.val.num_samples,
            len(dataset.classes),
            num_ranks=ranks.size,
            units=self.engine.units,
            train_cost=self.engine.train_cost,
        )
        self.gate, self.schedule, self.budget = self.planner.gate, self.planner.schedule, self.planner.budget
        self.log = RunLog(config, self.planner, folder, energy.meter, reporter, num_train=num_train, ranks=ranks)
        self.budget_meter = BudgetMeter(self.budget, self.log, ranks, config)
        self.hosts = HostAgreement(ranks, self.log, self.budget_meter)
        self.quarantine = Quarantine(folder, self.log.counters, reporter, ranks)
        self.loaders = Loaders(
            config,
            runtime,
            dataset,
            num_local=ranks.local_size,
            on_quarantine=self.quarantine.add,
            on_wait=lambda: self.waiting(),
            on_note=self._note_loader,
        )
        self.validation = Validation(
            self.engine,
            self.loaders,
            self.log.counters,
            energy,
            self.budget_meter,
            ranks,
            num_pictures=dataset.val.num_samples,
            batch_size=config.batch_size,
        )
        self.pace = RunPace(config, self.planner, self.engine, self.log, self.budget_meter)
        self.steps = DueSteps(self.engine, self.log, self.pace)
        self.position = RunPosition(self.planner)
        self.probe = RunProbe(self)
        self._began_s = time.monotonic()
        if state is not None:
            with _mismatches():
                self._load(state)

    def _note_loader(self, line: str) -> None:
        if self.ranks.is_first:
            self.reporter.note(line)
        else:  # its reporter is silent
            print(f"rank {self.ranks.rank}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Frees the data pipelines, and the features of a probe."""
        self.loaders.close()
        self.probe.close()

    def fit(self, saver: Saver) -> None:
        """Runs every segment that is left, evaluating at the end of each epoch.

        Args:
            saver: called between two batches and at the end of each epoch, where `state_dict` may be called.

        Raises:
            Stopped: it was asked for; `state_dict` continues from there.
            InputError: the training diverged (10 non-finite steps in a row).
        """
        self.budget_meter.write_s = lambda: saver.write_s
        loop = SegmentLoop(self, saver)
        self._began_s = time.monotonic() - self.log.counters.total_s
        try:
            if self.config.start == PROBE and not self.log.evaluated:
                self._probe(saver)
                saver.finish_epoch(0)
                self.probe.remove_saved()
            self.reporter.begin("training", 1.0)
            while (segment := self.position.segment) is not None:
                if not self.position.trained:
                    segment = loop.run(segment)
                if segment.ends_epoch:
                    self._finish_epoch(segment)
                self.position.finish(segment)
                if segment.ends_epoch:
                    saver.finish_epoch(segment.epoch + 1)
        finally:
            self._read_clock()
            self.reporter.end()

    def _read_clock(self) -> None:
        self.log.counters.total_s = time.monotonic() - self._began_s

    def _probe(self, saver: Saver) -> None:
        if self.log.probe is None:  # else the run was stopped in its evaluation
            self.energy.meter.set_phase(PROBE)
            self.log.probe = self.probe.run(lambda: self._check(saver))
            self.hosts.flush()
            self.quarantine.share(self.loaders)
            self.pace.count_spent()
            if self.budget is not None and self.budget.kind == "ep":
                self.budget.before = self.budget.spent
            saver.save()  # on the disk before `fit` saves again and lets go of the features
        self.log.finish_probe(self._evaluate(PROBE))
        self.quarantine.end_epoch()
        assert self.log.probe is not None
        self.reporter.note(probe_detail(self.log.probe))

    def _check(self, saver: Saver | None = None) -> None:
        """Between two batches of an evaluation or a probe, which may be saved there, and two iterations of it."""
        request, due = self.hosts.push(self.requested(), due=saver is not None and saver.due())
        self.between()
        stop_if_requested(request)
        if due and saver is not None:
            saver.save()

    def _finish_epoch(self, segment: Segment) -> None:
        accuracy = self._evaluate(is_last=self.position.is_last(segment)) if segment.evaluates else None
        self.quarantine.end_epoch()
        self.log.finish_epoch(
            self.engine.read_status(),
            segment,
            accuracy=accuracy,
            ema=self.validation.average,
            hist=self.engine.read_hist() if self.planner.scores(segment) else None,
            gpu_j=self.energy.epoch_j(self.ranks),
        )

    def _evaluate(self, phase: str = EVAL, *, is_last: bool = False) -> Accuracy:
        def finish() -> None:
            self.hosts.flush()
            self.quarantine.share(self.loaders)

        return self.validation.run(self._check, finish, phase, is_last=is_last)

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 1; the last one once all is done."""
        segment = self.position.segment
        return self.log.epochs[-1]["epoch"] if segment is None else segment.epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """A copy on the CPU of everything that the rest of the run depends on, at any place between two batches.

        "shared" is what the ranks have in common, "ranks" is what each has of its own. The first rank gets all of it;
        the others take part, and get nothing.
        """
        self._read_clock()
        self.hosts.flush()
        self.quarantine.share(self.loaders)
        self.engine.merge_memory()
        self.log.merge_offered()
        own = {
            "engine": self.engine.rank_state(),
            "energy": self.energy.state_dict(),
            "probe": self.probe.state_dict(),
        }
        if not self.ranks.is_first:
            self.ranks.gather_object(snapshot(own))
            return {}
        shared = {
            "engine": self.engine.shared_state(),
            "log": self.log.state_dict(),
            "report": self.steps.state_dict(),
            "loaders": self.loaders.state_dict(),
            "schedule": self.schedule.state_dict(),
            "run_progress": self.pace.progress,
            **self.position.state_dict(),
        }
        shared, own = snapshot((shared, own))  # together, since both hold BatchNorm's buffers
        return {"shared": shared, "ranks": self.ranks.gather_object(own)}

    def _load(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called, on as many ranks or on another number of them."""
        shared, ranks = state["shared"], self.ranks
        parts = self.engine.reshard(_part(state, "engine"))
        self.engine.load_states(shared["engine"], parts[ranks.rank])
        self.engine.set_target(self.config.target)  # which --force may have changed
        self.energy.load_state_dict(RunEnergy.reshard(_part(state, "energy"), ranks.size)[ranks.rank])
        self.probe.load_state_dict(_part(state, "probe"))
        self.log.load_state_dict(shared["log"])
        self.steps.load_state_dict(shared["report"], self.engine.queue_states(parts))
        self.loaders.load_state_dict(shared["loaders"])
        self.schedule.load_state_dict(shared["schedule"])
        self.pace.progress = shared["run_progress"]
        self.position.load_state_dict(shared, self.runtime.device, batch_size=self.batch_size, ranks=ranks)


@contextlib.contextmanager
def _mismatches() -> Iterator[None]:
    """Takes what a state of another run or version may raise for a `StateMismatch`."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StateMismatch(": ".join([type(error).__name__, *str(error).splitlines()[:1]])) from error


def _part(state: dict[str, Any], name: str) -> list[Any]:
    """One owner's part of every rank's own state."""
    return [own[name] for own in state["ranks"]]
