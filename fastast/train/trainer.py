"""The loop: plan, batch, score, queue, step, record.

Nothing in it waits for the device but for one small vector, read one step late, from which the host learns how many
samples stand ready: a full batch is then trained. Every shape is constant.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.console import Reporter
from fastast.data import Dataset, rank_slices
from fastast.errors import InputError
from fastast.feed import Batch
from fastast.run import RunFolder
from fastast.train.account import PhaseCounts
from fastast.train.averaging import average_statistics
from fastast.train.building import build_engine
from fastast.train.checkpoint import snapshot
from fastast.train.distributed import Ranks
from fastast.train.energy_book import EnergyBook
from fastast.train.evaluate import evaluate
from fastast.train.feeds import Feeds
from fastast.train.journal import Journal
from fastast.train.metrics import read_hist
from fastast.train.optimizer import lr_at
from fastast.train.passage import Moment, Passage
from fastast.train.planner import Planner
from fastast.train.quarantine import Quarantine
from fastast.train.schedule import GATED, Stretch
from fastast.train.setup import Machine
from fastast.train.shards import num_waiting, own_part, part_of


class Saves(Protocol):
    """Saves a run while it trains."""

    def due(self) -> bool:
        """Whether `save` is to be called before the next batch."""

    def save(self) -> None:
        """Takes the trainer's `state_dict`."""

    def finish_epoch(self, line: dict[str, Any]) -> None:
        """Takes an epoch's line of `metrics.jsonl`, and the state that the next epoch starts from."""


class Trainer:
    """One run on one device, or one rank's part of a run on several.

    Args:
        config: the options, completed by `complete_config`.
        machine: device, number format and compiler of the run.
        dataset: catalogs of both splits.
        folder: where the run is written.
        energy: meters the run.
        reporter: shows progress.
        ranks: who trains together. They call every method alike.
        continued: the state that will be loaded, if there is one: initial weights then are not.

    Raises:
        InputError: the network does not fit the data, or does not compile though that was asked for.

    Attributes:
        machine: as given, or without the compiler if the network turned out not to compile.
        journal: what the run has done.
        between: called between two batches, of training as of evaluation; may raise to end the run there.
        waiting: called every second while pictures do not come; may raise as well.
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
        ranks: Ranks | None = None,
        continued: dict[str, Any] | None = None,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        assert config.lr is not None, "complete_config was not called"
        self.config, self.dataset, self.folder = config, dataset, folder
        self.energy, self.reporter = energy, reporter
        self.batch_size, self.peak_lr = config.batch_size, config.lr
        self.ranks = ranks = ranks or Ranks()
        self.between: Callable[[], None] = lambda: None
        self.waiting: Callable[[], None] = lambda: None
        num_train = dataset.train.num_samples
        self.engine, self.machine = build_engine(
            config,
            machine,
            reporter,
            weights=config.weights if continued is None else "none",
            num_classes=len(dataset.classes),
            num_train=num_train,
            ranks=ranks,
            num_waiting=0 if continued is None else num_waiting(continued),
        )
        self.planner = Planner(config, num_train, num_ranks=ranks.size)
        self.policy, self.schedule = self.planner.policy, self.planner.schedule
        self.journal = Journal(
            config,
            self.planner,
            folder,
            energy.meter,
            reporter,
            num_train=num_train,
            device=machine.device,
            ranks=ranks,
        )
        self._quarantine = Quarantine(folder, self.journal, reporter, ranks)
        self.feeds = Feeds(
            config,
            machine,
            dataset,
            on_quarantine=self._quarantine.add,
            on_wait=lambda: self.waiting(),
            on_note=self._note_feed,
        )
        self._next_stretch = 0
        self._passage: Passage | None = None
        self._trained = False  # all but the evaluation of the next stretch is done
        self._lap_s = self._began_s = time.monotonic()

    def _note_feed(self, line: str) -> None:
        if self.ranks.is_first:
            self.reporter.note(line)
        else:  # whose reporter is silent
            print(f"rank {self.ranks.rank}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Frees the data pipelines."""
        self.feeds.close()

    def fit(self, saves: Saves) -> None:
        """Runs every stretch that is left, evaluating at the end of each epoch.

        Args:
            saves: called between two batches and at the end of each epoch, where `state_dict` may be taken.

        Raises:
            Stopped: it was asked for; `state_dict` continues from there.
            InputError: the training diverged (10 non-finite steps in a row).
        """
        self._began_s = time.monotonic() - self.journal.account.total_s
        self.reporter.begin("training", 1.0)
        try:
            for stretch in self.schedule.stretches[self._next_stretch :]:
                if not self._trained:
                    self._run_stretch(stretch, saves)
                line = self._finish_epoch(stretch) if stretch.ends_epoch else None
                self._next_stretch, self._trained = self._next_stretch + 1, False
                if line is not None:
                    saves.finish_epoch(line)
        finally:
            self._read_clock()
            self.reporter.end()

    def _read_clock(self) -> None:
        self.journal.account.total_s = time.monotonic() - self._began_s

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        lap, self._lap_s = now - self._lap_s, now
        return lap

    def _run_stretch(self, stretch: Stretch, saves: Saves) -> None:
        scoring = stretch.phase == GATED and self.policy.scores
        if self._passage is None:
            bad_ids = self.feeds.train.bad_ids
            plan = self.planner.plan(stretch, bad_ids, self.engine.memory)
            self._passage = Passage(stretch, plan, bad_ids, batch_size=self.batch_size, ranks=self.ranks)
        passage = self._passage
        self.engine.begin_epoch(stretch.epoch)
        self.energy.meter.set_phase(stretch.phase)
        part = self.energy.part_meter(stretch.phase)
        part.start()
        self._lap()
        waited, decoded = self.feeds.wait_s, self.feeds.train.num_decoded
        batches = self.feeds.train.stream(stretch.epoch, passage.slices())
        try:
            for batch in batches:
                moment = self._offer(batch, passage, scoring)
                # The middle of the batch, so that neither the first step nor the last has a learning rate of zero.
                progress = self.schedule.progress(stretch.offered_before + (moment.first + moment.last) / 2)
                self.engine.set_lr(lr_at(progress, peak=self.peak_lr, warmup=self.config.lr_warmup))
                part.step(moment.counts.offered)
                moment.counts.decoded, decoded = self.feeds.train.num_decoded - decoded, self.feeds.train.num_decoded
                moment.counts.data_wait, waited = self.feeds.wait_s - waited, self.feeds.wait_s
                moment.counts.seconds = self._lap()
                self._learn(self.journal.send(self.engine.status(), moment), stretch)
                self.between()
                if self.ranks.largest(saves.due()):
                    self.engine.settle()
                    part.stop()
                    self.journal.account.phases[stretch.phase].seconds += self._lap()
                    saves.save()
                    part.start()
                    self._lap()  # saving is no part of training
            self._learn(self.journal.flush(), stretch)
            self.engine.settle()  # the last steps are still under way
        finally:
            part.stop()
            self.journal.account.phases[stretch.phase].seconds += self._lap()
            batches.close()
        self._quarantine.share(self.feeds)
        self.engine.merge_memory()
        if self.feeds.train.bad_ids.all():
            raise InputError("no training picture could be decoded; quarantine.jsonl says why")
        if stretch.ends_epoch:
            self.engine.memory.tick(passage.plan.keep)
        self._passage, self._trained = None, True

    def _offer(self, batch: Batch, passage: Passage, scoring: bool) -> Moment:
        """Hands a batch to the engine; returns what is known of it at once."""
        counts = PhaseCounts()
        if scoring:
            self.engine.score(batch)
            counts.scored = batch.num_valid
        else:
            self.engine.enqueue(batch, passage.plan.weights)
        first, last, ids = passage.advance()
        ids = ids[~self.feeds.train.bad_ids[ids]]
        counts.offered = len(ids)
        return Moment(first, last, counts, ids)

    def _learn(self, report: np.ndarray | None, stretch: Stretch) -> None:
        """Takes in what the device reported, and trains every full batch it tells of."""
        ready = self.journal.learn(report, stretch, self.engine.guard.lr)
        self.engine.move_rows(ready.moves)
        for _ in range(ready.num_steps):
            self.engine.train()
            self.journal.trained(stretch.phase)

    def _finish_epoch(self, stretch: Stretch) -> dict[str, Any]:
        self.energy.meter.set_phase("eval")
        began = time.monotonic()
        ids, ranks = np.arange(self.dataset.val.num_samples), self.ranks
        try:
            average_statistics(self.engine.model, ranks)
            accuracy = evaluate(
                self.engine.eval_step,
                self.feeds.val.over(rank_slices(ids, self.batch_size, ranks.rank, ranks.size)),
                run=self.engine.evaluate,
                on_logits=lambda *_: self.between(),
                ranks=ranks,
            )
            self._quarantine.share(self.feeds)
        finally:
            self.journal.account.eval_s += time.monotonic() - began
        self._quarantine.end_epoch()
        engine, scored = self.engine, stretch.phase == GATED and self.policy.scores
        return self.journal.finish_epoch(
            engine.read_status(),
            stretch,
            accuracy=accuracy,
            hist=read_hist(engine.score_step, ranks) if scored else None,
            gpu_j=self.energy.epoch_j(ranks),
        )

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1; the last one once all is done."""
        left = self.schedule.stretches[self._next_stretch :]
        return left[0].epoch + 1 if left else self.schedule.num_epochs

    def _place(self) -> list[Any] | None:
        """The stretch under way, or None once all is done."""
        left = self.schedule.stretches[self._next_stretch :]
        return [left[0].epoch, left[0].phase, left[0].start, left[0].stop] if left else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values, at any place between batches.

        Of several ranks the first has it; the others take part in making it, and have nothing that can be loaded.
        """
        self._read_clock()
        self._quarantine.share(self.feeds)
        self.engine.merge_memory()
        self.journal.merge_offered()
        state = {
            "engine": self.engine.state_dict(),
            "lr": self.engine.guard.lr,
            "journal": self.journal.state_dict(),
            "energy": self.energy.state_dict(),
            "next_stretch": self._next_stretch,
            "stretch": self._place(),
            "trained": self._trained,
            "passage": None if self._passage is None else self._passage.state_dict(),
            "bad_ids": torch.from_numpy(self.feeds.train.bad_ids),
            "bad_val_ids": torch.from_numpy(self.feeds.val.bad_ids),
        }
        own = own_part(state, [name for name, _ in self.engine.model.named_buffers()])
        return {**state, "ranks": self.ranks.collect(snapshot(own))[1:] if self.ranks.size > 1 else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where `state_dict` was called.

        Args:
            state: of `state_dict` with as many ranks (`for_ranks`).

        Raises:
            RuntimeError: the state is of another network, batch size or schedule.
        """
        state = part_of(state, self.ranks.rank)
        self.engine.load_state_dict(state["engine"])
        self.engine.set_lr(state["lr"])
        self.journal.load_state_dict(state["journal"])
        if state["energy"] is not None:
            self.energy.load_state_dict(state["energy"])
        self._next_stretch, self._trained = state["next_stretch"], state["trained"]
        # Within a stretch nothing of it may be another; between two, what lies ahead may be.
        known = slice(None) if state["passage"] is not None or self._trained else slice(3)
        here, there = self._place(), state["stretch"]
        if there is not None and (here is None or here[known] != there[known]):
            raise RuntimeError("its schedule is another one where the run stands")
        if state["passage"] is not None:
            stretch = self.schedule.stretches[self._next_stretch]
            self._passage = Passage.from_state(
                state["passage"],
                stretch,
                self.planner,
                self.machine.device,
                batch_size=self.batch_size,
                ranks=self.ranks,
            )
        self.feeds.train.bad_ids[:] = state["bad_ids"].numpy()
        self.feeds.val.bad_ids[:] = state["bad_val_ids"].numpy()
