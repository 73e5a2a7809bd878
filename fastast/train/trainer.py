"""The loop: plan, batch, score, queue, step, record.

Nothing in it waits for the device but for one small vector, read one step late, from which the host learns how many
samples stand ready: a full batch is then trained. Every shape is constant.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.console import Reporter, epoch_detail, step_detail
from fastast.data import Dataset, EvalLoader, TrainLoader
from fastast.errors import InputError
from fastast.gate import LaggedReader
from fastast.run import RunFolder
from fastast.train.account import Account
from fastast.train.energy_book import EnergyBook
from fastast.train.engine import Engine, Status
from fastast.train.evaluate import evaluate
from fastast.train.metrics import MetricsWriter, Moment, read_hist
from fastast.train.optimizer import lr_at
from fastast.train.planner import Planner
from fastast.train.schedule import GATED, Stretch
from fastast.train.setup import Machine

# A run whose steps are skipped this often in a row has diverged.
MAX_NONFINITE_RUN = 10


class Stopped(Exception):
    """The run was asked to stop by a signal; the last checkpoint stands."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Trainer:
    """One run on one device.

    Args:
        config: the options, completed by `complete_config`.
        machine: device, number format and compiler of the run.
        dataset: catalogs of both splits.
        folder: where the run is written.
        energy: meters the run.
        reporter: shows progress.
        continued: a state will be loaded, so initial weights are not.

    Raises:
        InputError: the network does not fit the data, or does not compile though that was asked for.

    Attributes:
        machine: as given, or without the compiler if the network turned out not to compile.
        account: counts and seconds by phase.
        epochs: epoch lines of `metrics.jsonl` so far.
        offered: int32[N], how often each training sample was offered.
        stop_signal: set to a signal's number to stop after the current batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        machine: Machine,
        dataset: Dataset,
        folder: RunFolder,
        energy: EnergyBook,
        reporter: Reporter,
        *,
        continued: bool = False,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        assert config.lr is not None, "complete_config was not called"
        self.config, self.machine, self.dataset, self.folder = config, machine, dataset, folder
        self.energy, self.reporter = energy, reporter
        self.batch_size, self.peak_lr = config.batch_size, config.lr
        self.account = Account()
        self.epochs: list[dict[str, Any]] = []
        self.stop_signal: int | None = None
        num_train = dataset.train.num_samples
        self.planner = Planner(config, num_train)
        self.policy, self.schedule = self.planner.policy, self.planner.schedule
        self.offered = np.zeros(num_train, np.int32)
        weights = "none" if continued else config.weights
        self.engine = self._build_engine(weights, num_train)
        for note in self.engine.notes:
            reporter.note(note)
        common: dict[str, Any] = {
            "batch_size": self.batch_size,
            "image_size": config.image_size,
            "device": machine.device,
            "dtype": machine.image_dtype,
            "num_threads": config.threads,
            "decode": config.decode,
            "deterministic": config.deterministic,
            "on_quarantine": self._quarantine,
        }
        self.loader = TrainLoader(dataset.train, seed=config.seed, min_area=config.min_crop, **common)
        self.eval_loader = EvalLoader(dataset.val, **common)
        self._metrics = MetricsWriter(log_every=config.log_every, batch_size=self.batch_size)
        self._reports = LaggedReader(len(Status._fields), machine.device, torch.float64)
        self._moments: list[Moment] = []
        self._status = self._epoch_status = Status()
        self._next_stretch = 0

    def _build_engine(self, weights: str, num_train: int) -> Engine:
        num_classes = len(self.dataset.classes)
        engine = Engine(self.config, self.machine, weights=weights, num_classes=num_classes, num_train=num_train)
        if not self.machine.compiled:
            return engine
        self.reporter.note("compiling (once; not counted in the run's times)")
        try:
            engine.warm_up()
        except Exception as error:  # the compiler stack raises its own kinds, none of them a common base
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if self.config.compile == "on":
                raise InputError(f"--compile on: {self.config.arch} does not compile ({reason}); use off") from error
            self.machine = replace(self.machine, compiled=False, compile_note=f"off: failed to compile ({reason})")
            self.reporter.note(f"compile {self.machine.compile_note}")
            return self._build_engine(weights, num_train)
        return engine

    def _quarantine(self, sample_id: int, path: str, reason: str) -> None:
        self.account.quarantined += 1
        self.folder.append_quarantine({"id": sample_id, "path": path, "reason": reason})
        self.reporter.note(f"quarantined {path}: {reason}")

    def close(self) -> None:
        """Frees the data pipelines."""
        self.loader.close()
        self.eval_loader.close()

    def fit(self, on_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Runs every stretch that is left, evaluating at the end of each epoch.

        Args:
            on_epoch: called with the epoch's line of `metrics.jsonl` once the epoch is complete.

        Raises:
            Stopped: a signal asked for it.
            InputError: the training diverged (10 non-finite steps in a row).
        """
        began, before = time.monotonic(), self.account.total_s
        self.reporter.begin("training", 1.0)
        try:
            for stretch in self.schedule.stretches[self._next_stretch :]:
                self._run_stretch(stretch)
                self._next_stretch += 1
                if stretch.ends_epoch:
                    line = self._finish_epoch(stretch)
                    self.account.total_s = before + time.monotonic() - began
                    on_epoch(line)
        finally:
            self.account.total_s = before + time.monotonic() - began
            self.reporter.end()

    def _run_stretch(self, stretch: Stretch) -> None:
        counts, before = self.account.phases[stretch.phase], self.account.whole
        first, waited, decoded = self._status, self.loader.wait_s, self.loader.num_decoded
        scoring = stretch.phase == GATED and self.policy.scores
        if scoring:
            self.engine.set_target(self.planner.target(stretch.epoch))
        plan = self.planner.plan(stretch, self.loader.bad_ids, self.engine.memory)
        order, places = plan.order, plan.places
        began = time.monotonic()
        self.engine.begin_epoch(stretch.epoch)
        self.energy.meter.set_phase(stretch.phase)
        part = self.energy.part_meter(stretch.phase)
        part.start()
        delivered = offered = 0
        for batch in self.loader.epoch(stretch.epoch, order[places]):
            if scoring:
                counts.extra_units += self.engine.score(batch)
                counts.scored += batch.num_valid
            else:
                self.engine.enqueue(batch, plan.weights)
            previous = offered
            delivered = min(delivered + self.batch_size, len(places))
            offered = len(order) if delivered == len(places) else int(places[delivered - 1]) + 1
            # The middle of the batch, so that neither the first step nor the last has a learning rate of zero.
            progress = self.schedule.progress(stretch.offered_before + (previous + offered) / 2)
            self.engine.guard.set_lr(lr_at(progress, peak=self.peak_lr, warmup=self.config.lr_warmup))
            part.step(offered - previous)
            self._moments.append(
                Moment(
                    offered=before.offered + offered,
                    data_wait=before.data_wait + self.loader.wait_s - waited,
                    seconds=before.seconds + time.monotonic() - began,
                )
            )
            self._learn(self._reports.push(self.engine.status()), stretch)
            if self.stop_signal is not None:
                break
        self._learn(self._reports.flush(), stretch)
        part.stop()
        done = order[:offered]
        done = done[~self.loader.bad_ids[done]]
        self.offered[done] += 1
        counts.offered += len(done)
        counts.selected += int(self._status.pushed - first.pushed)
        counts.decoded += self.loader.num_decoded - decoded
        counts.seconds += time.monotonic() - began
        counts.data_wait += self.loader.wait_s - waited
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)
        if not len(done):
            raise InputError("no training picture could be decoded; quarantine.jsonl says why")
        if stretch.ends_epoch:
            self.engine.memory.tick(plan.keep)

    def _learn(self, report: np.ndarray | None, stretch: Stretch) -> None:
        """Takes in what the device reported one batch late, and trains every full batch it tells of."""
        if report is None:
            return
        status, moment = Status(*report.tolist()), self._moments.pop(0)
        self._status = status
        if status.overflow:
            raise RuntimeError(f"the sample queue overflowed by {status.overflow:.0f} rows: this is a bug in fastast")
        if status.nonfinite_run >= MAX_NONFINITE_RUN:
            raise InputError(
                f"{MAX_NONFINITE_RUN} steps in a row had a non-finite loss or gradient (epoch {stretch.epoch + 1}); "
                f"lower --lr (now {self.peak_lr:g}) or use --precision fp32"
            )
        line = self._metrics.step_line(
            moment,
            status,
            stretch=stretch,
            scoring=self.policy.scores,
            lr=self.engine.guard.lr,
            gpu_w=self.energy.meter.watts,
        )
        if line is not None:
            self.folder.append_metrics(line)
            done = self.schedule.cost_share(moment.offered, self.policy.cost)
            self.reporter.advance(done, step_detail(line, moment.seconds * (1 / done - 1)))
        counts, popped = self.account.phases[stretch.phase], self.account.whole.backward
        while status.pushed - popped >= self.batch_size:
            self.engine.train()
            popped += self.batch_size
            counts.backward += self.batch_size
            counts.steps += 1

    def _finish_epoch(self, stretch: Stretch) -> dict[str, Any]:
        self.energy.meter.set_phase("eval")
        began = time.monotonic()
        accuracy = evaluate(self.engine.eval_step, self.eval_loader, run=self.engine.evaluate)
        self.account.eval_s += time.monotonic() - began
        before, self._status = self._epoch_status, self.engine.read_status()
        self._epoch_status = self._status
        self._warn(before, self._status)
        line = self._metrics.epoch_line(
            self.account.whole,
            self._status,
            stretch=stretch,
            scoring=self.policy.scores,
            accuracy=accuracy,
            hist=read_hist(self.engine.score_step) if stretch.phase == GATED and self.policy.scores else None,
            gpu_j=self.energy.epoch_j(),
        )
        self.epochs.append(line)
        self.folder.append_metrics(line)
        self.reporter.note(epoch_detail(line, self.schedule.num_epochs))
        if self.engine.proxy is not None:
            ranking = self.engine.proxy.read_correlation()
            self.folder.append_metrics({"kind": "proxy", "epoch": stretch.epoch + 1, **ranking})
            if ranking["num_batches"]:
                self.reporter.note(
                    f"proxy and full-size scores correlate by rank {ranking['rank_correlation']:.2f} "
                    f"(Spearman, {ranking['num_batches']} batches)"
                )
        return line

    def _warn(self, before: Status, now: Status) -> None:
        """Says what an epoch had that it should not have had."""
        for count, what in (
            (now.nan_scores - before.nan_scores, "scores were not a number; each such sample was trained once for it"),
            (now.nonfinite - before.nonfinite, "steps had a non-finite loss or gradient and were undone"),
            (now.clipped - before.clipped, "importance weights were cut to --clip-weights"),
            (now.scaler_skips - before.scaler_skips, "steps overflowed fp16 and were skipped by the loss scaler"),
        ):
            if count:
                self.reporter.note(f"{count:,.0f} {what}")

    @property
    def num_nonfinite(self) -> int:
        """Steps skipped for a non-finite loss or gradient."""
        return int(self._status.nonfinite)

    @property
    def num_leftover(self) -> int:
        """Selected samples that did not fill a batch."""
        return int(self._status.pushed) - self.account.whole.backward

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values (between two epochs)."""
        return {
            "engine": self.engine.state_dict(),
            "account": self.account.state_dict(),
            "energy": self.energy.state_dict(),
            "epochs": self.epochs,
            "next_stretch": self._next_stretch,
            "offered": torch.from_numpy(self.offered),
            "bad_ids": torch.from_numpy(self.loader.bad_ids),
            "bad_val_ids": torch.from_numpy(self.eval_loader.bad_ids),
            "num_batches": self._metrics.num_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where `state_dict` was called.

        Raises:
            RuntimeError: the state is of another network or batch size.
        """
        self.engine.load_state_dict(state["engine"])
        self.account = Account.from_state(state["account"])
        self.energy.load_state_dict(state["energy"])
        self.epochs = state["epochs"]
        self._next_stretch = state["next_stretch"]
        self.offered[:] = state["offered"].numpy()
        self.loader.bad_ids[:] = state["bad_ids"].numpy()
        self.eval_loader.bad_ids[:] = state["bad_val_ids"].numpy()
        self._metrics.num_batches = state["num_batches"]
        self._status = self._epoch_status = self.engine.read_status()
        self._metrics.restart(self.account.whole, self._status)
