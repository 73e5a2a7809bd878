"""A training run from options to verdict: opens what it needs, keeps the run folder, survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console

from fastast.checkpoint.resume import RunStart, find_start, removed_if_empty
from fastast.config import TrainConfig
from fastast.config.config_checks import idle_gate
from fastast.config.options import flag_of, parse_budget, parse_duration
from fastast.config.train_config import STALL_TIMEOUT_S
from fastast.data import Dataset, require_outside
from fastast.device import Runtime, is_out_of_memory, limit_torch_threads, open_runtime
from fastast.distributed.environment import find_world, is_elastic, is_restart, launched_by_torchrun
from fastast.distributed.launch import BEGAN, count_processes, launch
from fastast.distributed.process_group import RankLost, open_ranks
from fastast.distributed.ranks import Ranks
from fastast.energy.energy_meter import EnergyMeter, merge_idle
from fastast.energy.nvml import open_nvml
from fastast.errors import InputError
from fastast.gates.registry import unused_options
from fastast.loggers.available import logger_names, require_loggers
from fastast.loggers.console import Reporter, verdict
from fastast.loggers.extra_logs import ExtraLogs
from fastast.models.build import check_names
from fastast.models.head import head_is_new, takes_probe
from fastast.plan.budget import MeteredBudget
from fastast.process_age import process_age_s
from fastast.report.run_page import write_report
from fastast.run_folder import OtherRanksFolder, RunFolder
from fastast.session.checkpointer import Checkpointer, write_power
from fastast.session.gpu_limits import limits_set
from fastast.session.out_of_memory import describe_out_of_memory, fitting_batch
from fastast.session.run_data import open_data, require_one_data_set
from fastast.session.session_notes import introduce, resume_command, show_finished, suggest
from fastast.session.spent import meter_budget, require_energy
from fastast.session.start import (
    changed_dtype,
    changed_world_size,
    describe_mismatch,
    require_same_pictures,
    resume_run,
    start_run,
)
from fastast.session.summary import build_summary, write_samples
from fastast.session.watchdog import close_or_leave, supervised
from fastast.signals import Stopped, StopRequest
from fastast.train.defaults import check_plan, complete_config
from fastast.train.loaders import Loaders
from fastast.train.probe import require_probe
from fastast.train.run_energy import RunEnergy
from fastast.train.trainer import StateMismatch, Trainer


def train(
    options: dict[str, Any],
    *,
    resume: str | None,
    argv: list[str],
    reporter: Reporter,
    force: bool = False,
    callbacks: Sequence[Callable[[dict[str, Any]], object]] = (),
) -> int:
    """Runs `fastast train`.

    Args:
        options: those that the user chose, by field name of `TrainConfig`.
        resume: None, "auto" (start, continue, or show a finished run), or a checkpoint file.
        argv: the command line, for the summary.
        reporter: shows progress.
        force: continue although options have changed.
        callbacks: called with each line of an epoch, on the first rank; one that returns True stops the run.

    Returns:
        The exit code: 0 (a callback may have stopped the run), 3 where `--max-time` stopped it, 128 + n where signal n
        did.

    Raises:
        InputError: something that the user can fix.
    """
    began_s = time.monotonic() - process_age_s(argv)
    num_processes = count_processes(options.get("nproc"), options.get("device", "auto"))
    if num_processes > 1 and not launched_by_torchrun() and find_world().size == 1:
        return launch(num_processes, argv, began_s)
    if is_restart():
        if "out" not in options:
            raise InputError("a restarted run is found by its folder: start with --out")
        resume = "auto"
    elif BEGAN in os.environ:
        began_s = float(os.environ[BEGAN])
    try:
        with open_ranks(options.get("device", "auto"), float(options.get("stall_timeout", STALL_TIMEOUT_S))) as ranks:
            return _train(options, resume, argv, reporter, ranks, began_s, force=force, callbacks=callbacks)
    except RankLost as lost:
        print(
            f"fastast train: error: {lost}; continue from the last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # threads that wait for the others cannot be stopped


def _train(
    options: dict[str, Any],
    resume: str | None,
    argv: list[str],
    reporter: Reporter,
    ranks: Ranks,
    began_s: float,
    *,
    force: bool,
    callbacks: Sequence[Callable[[dict[str, Any]], object]],
) -> int:
    if not ranks.is_first:
        reporter = Reporter(Console(quiet=True))
    start = ranks.call_on_first(lambda: find_start(options, resume, force=force))
    if not ranks.is_first:
        start = dataclasses.replace(start, folder=OtherRanksFolder(start.folder.path))
    if start.finished is not None:
        show_finished(start.folder, start.finished, start.config.gate, reporter)
        return 0
    if unused := unused_options(options, start.config.gate):
        reporter.note(f"no effect with --gate {start.config.gate}: {', '.join(map(flag_of, unused))}")
    max_time_s = parse_duration(start.config.max_time, "--max-time") if start.config.max_time else None
    request = StopRequest(max_time_s, began_s)

    def call_back(line: dict[str, Any]) -> None:
        if line["kind"] == "epoch":
            request.by_callback |= True in [callback(dict(line)) is True for callback in callbacks]

    start.folder.listeners.append(call_back)
    is_named = "out" in options or not ranks.is_first
    with contextlib.nullcontext() if is_named else removed_if_empty(start.folder):
        return _run(start, request, argv, reporter, ranks, began_s, force=force)


def _run(
    start: RunStart,
    request: StopRequest,
    argv: list[str],
    reporter: Reporter,
    ranks: Ranks,
    began_s: float,
    *,
    force: bool,
) -> int:
    config, folder, state = start.config, start.folder, start.state
    check_names(config.arch, config.weights if state is None else "none")
    require_loggers(config.log)
    require_outside(folder.path, config.data, (config.train_dir or "").split(","), config.val_dir)
    dataset = ranks.call_in_turn(lambda: open_data(config, reporter))
    require_one_data_set(dataset, ranks)
    limit_torch_threads(ranks.local_size)
    runtime = open_runtime(config.device, config.precision, config.compile, deterministic=config.deterministic)
    if state is not None:
        require_same_pictures(state, dataset, start.checkpoint)
        dtype, size = changed_dtype(state, runtime), changed_world_size(state, ranks)
        if (dtype or (size and not is_elastic())) and not force:
            raise InputError(
                f"{start.checkpoint}: {(dtype + size)[0]}; add --force to go on, or start anew with another --out"
            )
        start = dataclasses.replace(start, changed=start.changed + dtype + size)
    num_train = dataset.train.num_samples
    new_head = state is None and config.start is None and head_is_new(config.arch, config.weights, dataset.classes)
    if new_head and not takes_probe(config.arch, len(dataset.classes), config.image_size):
        reporter.note(f"--start random: {config.arch} does not end in a linear layer, which a probe would set")
        new_head = False
    notes = complete_config(config, runtime, num_train, new_head=new_head, num_ranks=ranks.size)
    if state is not None and config.batch_size != (before := state["config"].get("batch_size")):
        raise InputError(
            f"--batch-size {config.batch_size}: the run was started with {before}; leave the option out to continue, "
            "or start anew with another --out"
        )
    for note in (*notes, idle_gate(config), *check_plan(config, num_train, num_ranks=ranks.size)):
        if note is not None:
            reporter.note(note)
    introduce(config, dataset, runtime, reporter, ranks)
    try:
        return _fit(start, dataset, runtime, request, argv, reporter, ranks, began_s)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the trainer, whose memory the trial needs

    def open_loaders(options: TrainConfig) -> Loaders:
        return Loaders(options, runtime, dataset, num_local=ranks.local_size, on_quarantine=lambda *_: None)

    fitting = fitting_batch(config, runtime, len(dataset.classes), open_loaders)
    advice = describe_out_of_memory(config, fitting)
    raise InputError(f"{advice}; that takes a new run, with another --out" if folder.holds_run() else advice)


def _fit(
    start: RunStart,
    dataset: Dataset,
    runtime: Runtime,
    request: StopRequest,
    argv: list[str],
    reporter: Reporter,
    ranks: Ranks,
    began_s: float,
) -> int:
    config, folder, state = start.config, start.folder, start.state
    with contextlib.ExitStack() as stack:
        nvml = open_nvml()
        meter = EnergyMeter(metered_devices(runtime.device), nvml=nvml)
        if start.checkpoint is not None:
            power = start.checkpoint.resolve().parent.parent / folder.power.name
            meter.origin_s = ranks.call_on_first(lambda: meter.continue_csv(power))
        energy = RunEnergy(stack.enter_context(meter))
        if config.budget is not None and parse_budget(config.budget, "--budget").kind == "joules":
            require_energy(config.budget, meter, ranks)
        try:
            trainer = Trainer(
                config,
                runtime,
                dataset,
                folder,
                energy,
                reporter,
                ranks=ranks,
                state=None if state is None else state["trainer"],
            )
        except StateMismatch as error:
            raise InputError(describe_mismatch(start, str(error))) from error
        exit_code = 1  # for as long as nothing better can be said
        stack.callback(lambda: close_or_leave(trainer, request, exit_code))
        require_probe(trainer)

        def take_folder() -> None:  # not before everything that can be refused has been accepted
            folder.create()
            stack.enter_context(folder.lock())
            start.require_untouched()

        ranks.call_on_first(take_folder)
        record = meter_budget(trainer, meter, folder, began_s)
        if record is not None and ranks.is_first:
            stack.enter_context(record)
        if state is not None:
            resume_run(trainer, start, reporter)
        else:
            ranks.call_on_first(lambda: start_run(trainer, folder))
            trainer.log.counters.quarantined = len(dataset.quarantined)
        logs = ExtraLogs(
            logger_names(config.log) if ranks.is_first else [], folder, dataclasses.asdict(config), reporter
        )
        stack.enter_context(logs)
        energy.idle = merge_idle(ranks.all_gather_object(meter.measure_idle()))
        stack.enter_context(limits_set(config, energy, ranks, reporter))
        checkpointer = Checkpointer(trainer, folder, config.checkpoint_every, reporter)
        stopped = None
        with request.listening():  # until all is saved: another signal must not end that
            try:
                with supervised(trainer, request, folder, ranks):
                    trainer.fit(checkpointer)
            except Stopped as stop:
                stopped = stop
                checkpointer.save()
            finally:
                failure = checkpointer.close()
            if (failure := ranks.all_gather_object(failure)[0]) is not None:
                raise InputError(f"{failure}; free some space or make the folder writable, then continue with --resume")
            trainer.budget_meter.synchronize()
            meter.stop()
            energy.restore_limits()
            summary = build_summary(trainer, nvml.driver, argv, stopped=stopped.reason if stopped else None)
            trainer.log.merge_offered()
            rows = sorted(itertools.chain(*ranks.gather_object(meter.power_rows())), key=lambda row: row[:2])
            if ranks.is_first:
                write_power(rows, folder)
                write_samples(folder, trainer)
                folder.write_json(folder.summary, summary)  # last, since it says that all is done
        logs.finish(summary)
        exit_code = stopped.exit_code if stopped else 0
        if ranks.is_first:
            _tell(trainer, folder, summary, stopped, reporter)
        return exit_code


def _tell(
    trainer: Trainer, folder: RunFolder, summary: dict[str, Any], stopped: Stopped | None, reporter: Reporter
) -> None:
    """Writes the report of a run that is done and safe, and says what came of it."""
    config = trainer.config
    try:
        write_report(folder.path)
    except (InputError, OSError) as error:
        reporter.note(f"report.html was not written: {error}")
    if stopped is not None:
        reporter.note(f"{stopped}; continue from there with: {resume_command(folder, config, trainer.ranks)}")
        return
    if isinstance(trainer.budget, MeteredBudget):
        trainer.budget.spent = trainer.budget_meter.read_alone()
        summary["budget"] = trainer.budget.summary()
        folder.write_json(folder.summary, summary)
    reporter.console.print(verdict(summary))
    reporter.note(f"run folder: {folder.path} (report.html shows it)")
    suggest(folder, config.gate, reporter)


def metered_devices(device: torch.device) -> list[int | str]:
    """The GPU that this process trains on, by UUID; none when it trains on the CPU."""
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []
