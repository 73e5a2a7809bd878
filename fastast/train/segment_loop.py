"""The loop over the batches of a segment: read, score, queue, step, record.

Nothing in it waits for the device except for one small vector, read one step late, from which the host learns how many
samples wait in the queue: full batches are then trained. Every shape is constant.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastast.errors import InputError
from fastast.feed import Batch
from fastast.loggers.counters import BatchRecord, PhaseCounts
from fastast.plan.progress import EpochProgress
from fastast.plan.schedule import Segment
from fastast.signals import stop_if_requested

if TYPE_CHECKING:
    from fastast.energy.parts import PartMeter
    from fastast.train.trainer import Trainer


class Saver(Protocol):
    """Saves a run while it trains."""

    @property
    def write_s(self) -> float:
        """Seconds that writing the last checkpoint took."""

    def due(self) -> bool:
        """Whether `save` is to be called before the next batch."""

    def save(self) -> None:
        """Saves the trainer's `state_dict`."""

    def finish_epoch(self, epoch: int) -> None:
        """Saves what an epoch, counted from 1, or the probe (0) has come to: the state that the next starts from."""


class SegmentLoop:
    """Trains the segments of a run, one after the other.

    Args:
        trainer: whose run it is.
        saver: saves it between two batches.
    """

    def __init__(self, trainer: Trainer, saver: Saver) -> None:
        self.trainer = trainer
        self._saver = saver
        self._lap_s = time.monotonic()

    def run(self, segment: Segment) -> Segment:
        """Trains a segment, or what is left of it, and returns it as it ended."""
        trainer = self.trainer
        engine, log, pace, budget_meter = trainer.engine, trainer.log, trainer.pace, trainer.budget_meter
        budget_meter.resume()
        progress, loader = self._begun(segment), trainer.loaders.train
        engine.begin_epoch(segment.epoch)
        trainer.energy.meter.set_phase(segment.phase)
        part = trainer.energy.part_meter(segment.phase)
        if part.energy() is None:  # each part is metered under one share
            loader.find_share_on_cpu()
        part.start()
        self._lap()
        waited, decoded = loader.wait_s, loader.num_decoded
        batches = loader.stream(segment.epoch, progress.slices(lambda first: pace.train_size(segment, first)))
        try:
            while not self._is_due(segment, progress) and (batch := next(batches, None)) is not None:
                record = self._offer(batch, progress)
                pace.follow_position(segment, record.first, record.last)
                record.counts.decoded, decoded = loader.num_decoded - decoded, loader.num_decoded
                record.counts.data_wait, waited = loader.wait_s - waited, loader.wait_s
                part.step(record.counts.offered, wait_s=record.counts.data_wait, on_cpu=loader.share_on_cpu)
                record.counts.seconds = self._lap()
                log.add(record)
                request, due = trainer.hosts.push(trainer.requested(), record.host_counts(), due=self._saver.due())
                trainer.steps.follow(segment)
                trainer.between()
                stop_if_requested(request)
                if due:
                    with self._paused(segment, part):
                        self._saver.save()
                if budget_meter.wants_evaluation:
                    with self._paused(segment, part):
                        trainer.validation.time_part()
                    budget_meter.require_steps()
            trainer.hosts.flush()
            trainer.steps.finish(segment)
            engine.synchronize()  # the last steps are still running
        finally:
            part.stop()
            self._count_time(segment)
            batches.close()
        trainer.quarantine.share(trainer.loaders)
        engine.merge_memory()
        if loader.bad_ids.all():
            raise InputError("no training picture could be decoded; quarantine.jsonl says why")
        pace.count_spent()
        budget_meter.synchronize()
        budget_meter.pause()
        segment = trainer.schedule.end(segment, progress.position(trainer.planner), log.forward_units)
        trainer.position.progress, trainer.position.trained = None, True
        return segment

    @contextlib.contextmanager
    def _paused(self, segment: Segment, part: PartMeter) -> Iterator[None]:
        """What is done within the block is no part of training: neither its time nor its energy, nor its budget."""
        trainer = self.trainer
        trainer.engine.synchronize()
        part.stop()
        self._count_time(segment)
        trainer.budget_meter.pause()
        yield
        trainer.budget_meter.resume()
        trainer.energy.meter.set_phase(segment.phase)
        part.start()
        self._lap()

    def _begun(self, segment: Segment) -> EpochProgress:
        """The progress of the segment, which is planned now unless the run was stopped within it."""
        trainer, position = self.trainer, self.trainer.position
        if position.progress is None:
            bad_ids = trainer.loaders.train.bad_ids
            plan = trainer.planner.plan(segment, bad_ids, trainer.engine.memory)
            position.progress = EpochProgress(
                segment, plan, bad_ids, batch_size=trainer.batch_size, ranks=trainer.ranks
            )
            trainer.log.begin_segment(segment, plan)
        return position.progress

    def _is_due(self, segment: Segment, progress: EpochProgress) -> bool:
        """Whether the segment ends here because of the budget, with a batch at least so that each moves the run on."""
        return progress.delivered > 0 and self.trainer.pace.is_due(segment)

    def _offer(self, batch: Batch, progress: EpochProgress) -> BatchRecord:
        """Hands a batch to the engine; returns what is known of it at once."""
        engine, planner = self.trainer.engine, self.trainer.planner
        counts, before = PhaseCounts(), progress.delivered
        first, last, ids = progress.advance()
        rows, units = progress.delivered - before, 0.0
        if planner.scores(progress.segment):
            engine.score(batch)
            counts.scored = batch.num_valid
            units = planner.gate.score_units * rows * engine.units[engine.train_size]
        else:
            engine.enqueue(batch, progress.plan.weights)
        ids = ids[~np.isin(ids, batch.lost_ids)]
        counts.offered = len(ids)
        return BatchRecord(first, last, engine.train_size, counts, ids, rows=rows, units=units)

    def _count_time(self, segment: Segment) -> None:
        self.trainer.log.counters.of(segment.phase, self.trainer.engine.train_size).seconds += self._lap()

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        lap, self._lap_s = now - self._lap_s, now
        return lap
