"""A training run from options to verdict: opens what it needs, keeps the run folder, survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastast.config import STALL_TIMEOUT_S, TrainConfig
from fastast.console import Reporter, verdict
from fastast.data import Dataset, draw_dataset, open_dataset
from fastast.energy.meter import EnergyMeter, merge_idle
from fastast.energy.nvml import open_nvml
from fastast.errors import InputError, ToldElsewhere
from fastast.files import cache_root
from fastast.given import read_toml
from fastast.options import parse_duration
from fastast.report.run_page import write_report
from fastast.run import OtherRanksFolder, RunFolder
from fastast.train.beginning import other_ranks, resume_run, start_run, what_changed
from fastast.train.distributed import RankLost, Ranks, open_ranks
from fastast.train.energy_book import EnergyBook
from fastast.train.keeper import Keeper, write_power
from fastast.train.launch import count_processes, launch
from fastast.train.memory_fit import describe_out_of_memory, fitting_batch, is_out_of_memory
from fastast.train.model import check_names
from fastast.train.opening import Opening, open_run
from fastast.train.placement import find_placement, is_elastic, is_restart, launched_by_torchrun
from fastast.train.proxy_net import check_proxy_arch
from fastast.train.reshape import for_ranks
from fastast.train.results import build_summary, write_samples
from fastast.train.setup import Machine, complete_config, open_machine
from fastast.train.stopping import Stopped, StopRequest
from fastast.train.tensorboard import events_written, require_tensorboard
from fastast.train.trainer import Trainer
from fastast.train.watched import close_or_leave, watched

DEMO_SET = {"num_classes": 12, "train_per_class": 150, "val_per_class": 30}


def train(
    given: dict[str, Any],
    *,
    toml_path: str | None,
    resume: str | None,
    argv: list[str],
    reporter: Reporter,
    force: bool = False,
) -> int:
    """Runs `fastast train`.

    Args:
        given: options that the user typed, by field name of `TrainConfig`.
        toml_path: a TOML file of further options, or None.
        resume: None, "auto" (start, continue, or show a finished run), or a checkpoint file.
        argv: the command line, for the summary.
        reporter: shows progress.
        force: continue although options or pictures have changed.

    Returns:
        The exit code: 0, 3 where `--max-time` stopped the run, 128 + n where signal n did.

    Raises:
        InputError: something that the user can fix.
    """
    given = {**(read_toml(toml_path) if toml_path else {}), **given}
    num_processes = count_processes(given.get("nproc"), given.get("device", "auto"))
    if num_processes > 1 and not launched_by_torchrun() and find_placement().size == 1:
        return launch(num_processes, argv)
    if is_restart():
        if "out" not in given:
            raise InputError("a restarted run is found by its folder: start with --out")
        resume = "auto"
    try:
        with open_ranks(given.get("device", "auto"), float(given.get("stall_timeout", STALL_TIMEOUT_S))) as ranks:
            return _train(given, resume, argv, reporter, ranks, force=force)
    except RankLost as lost:
        print(
            f"fastast train: error: {lost}; continue from the last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # threads that wait for the others cannot be stopped


def _train(
    given: dict[str, Any], resume: str | None, argv: list[str], reporter: Reporter, ranks: Ranks, *, force: bool
) -> int:
    if not ranks.is_first:
        reporter = Reporter(Console(quiet=True))
    opening = ranks.decide(lambda: open_run(given, resume, force=force))
    if not ranks.is_first:
        opening = dataclasses.replace(opening, folder=OtherRanksFolder(opening.folder.path))
    if opening.finished is not None:
        try:
            reporter.console.print(verdict(opening.finished))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{opening.folder.summary}: written by another version, or damaged") from error
        reporter.note(f"finished already: {opening.folder.path}")
        return 0
    max_time_s = parse_duration(opening.config.max_time, "--max-time") if opening.config.max_time else None
    return _run(opening, StopRequest(max_time_s, ranks.largest), argv, reporter, ranks, force=force)


def open_data(config: TrainConfig, reporter: Reporter) -> Dataset:
    """Opens the run's data set, drawing the demo set where none is named.

    Raises:
        InputError: the folders do not hold what a run needs.
    """
    data = config.data
    if not (config.data or config.train_dir):
        root = cache_root() / "demo"
        reporter.note(f"no --data given: training on a drawn demo set in {root}")
        draw_dataset(root, **DEMO_SET, progress=reporter.counter("drawing"))
        data = str(root)
    return open_dataset(
        data,
        train_dirs=config.train_dir.split(",") if config.train_dir else None,
        val_dir=config.val_dir,
        val_split=config.val_split,
        seed=config.seed,
        read=config.read,
        progress=reporter.counter("scanning"),
    )


def _run(
    opening: Opening, request: StopRequest, argv: list[str], reporter: Reporter, ranks: Ranks, *, force: bool
) -> int:
    config, folder, state = opening.config, opening.folder, opening.state
    check_names(config.arch, config.weights if state is None else "none")
    if config.tensorboard:
        require_tensorboard()
    if config.gate == "proxy" and config.proxy_arch:
        check_proxy_arch(config.proxy_arch)
    _refuse_data_folder(config, folder)
    dataset = ranks.in_turn(lambda: open_data(config, reporter))
    _require_one_data_set(dataset, ranks)
    machine = open_machine(config.device, config.precision, config.compile, deterministic=config.deterministic)
    if state is not None:
        changed = what_changed(state, dataset, machine)
        others = other_ranks(state, ranks)
        if (changed or (others and not is_elastic())) and not force:
            raise InputError(
                f"{opening.checkpoint}: {(changed + others)[0]}; add --force to go on, or start anew with another --out"
            )
        state = {**state, "trainer": for_ranks(state["trainer"], ranks.size)}
        opening = dataclasses.replace(opening, state=state, changed=opening.changed + changed + others)
    complete_config(config, machine, dataset.train.num_samples, num_ranks=ranks.size, num_local=ranks.local_size)
    _introduce(config, dataset, machine, reporter, ranks)
    try:
        return _fit(opening, dataset, machine, request, argv, reporter, ranks)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the trainer, whose memory the trial needs
    advice = describe_out_of_memory(config, fitting_batch(config, machine, len(dataset.classes)))
    raise InputError(advice if state is None else f"{advice}; that takes a new run, with another --out")


def _require_one_data_set(dataset: Dataset, ranks: Ranks) -> None:
    """Refuses machines that see different pictures."""
    fingerprints = ranks.share(dataset.fingerprint)
    if len(set(fingerprints)) == 1:
        return
    message = "the machines see different pictures under the same path: copy or mount the same data on all of them"
    raise InputError(message) if ranks.is_first else ToldElsewhere(message)


def _fit(
    opening: Opening,
    dataset: Dataset,
    machine: Machine,
    request: StopRequest,
    argv: list[str],
    reporter: Reporter,
    ranks: Ranks,
) -> int:
    config, folder, state = opening.config, opening.folder, opening.state
    with contextlib.ExitStack() as stack:
        nvml = open_nvml()
        meter = EnergyMeter(metered_devices(machine.device), nvml=nvml)
        if state is not None and opening.checkpoint is not None:
            meter.continue_csv(opening.checkpoint.resolve().parent.parent / folder.power.name)
        energy = EnergyBook(stack.enter_context(meter))
        trainer = Trainer(
            config,
            machine,
            dataset,
            folder,
            energy,
            reporter,
            ranks=ranks,
            continued=None if state is None else state["trainer"],
        )
        exit_code = 1  # for as long as nothing better can be said
        stack.callback(lambda: close_or_leave(trainer, request, exit_code))

        def take_folder() -> None:  # not before everything that can be refused has been accepted
            folder.create()
            stack.enter_context(folder.lock())
            opening.require_untouched()

        ranks.decide(take_folder)
        if state is not None:
            resume_run(trainer, opening, reporter)
        else:
            ranks.decide(lambda: start_run(trainer, folder))
            trainer.journal.account.quarantined = len(dataset.quarantined)
        if config.tensorboard and ranks.is_first:
            stack.enter_context(events_written(folder, reporter))
        if meter.devices:
            energy.idle = merge_idle(ranks.share(meter.measure_idle()))
        keeper = Keeper(trainer, folder, config.checkpoint_every, reporter)
        stopped = None
        with request.listening():  # until all is saved: another signal must not end that
            try:
                with watched(trainer, request, folder, ranks):
                    trainer.fit(keeper)
            except Stopped as stop:
                stopped = stop
                keeper.save()
            finally:
                failure = keeper.close()
            if (failure := ranks.share(failure)[0]) is not None:
                raise InputError(f"{failure}; free some space or make the folder writable, then continue with --resume")
            meter.stop()
            summary = build_summary(trainer, nvml.driver, argv, stopped=stopped.reason if stopped else None)
            trainer.journal.merge_offered()
            # A set, since what stood in the file before a resume comes from every rank.
            rows = sorted({row for theirs in ranks.collect(meter.power_rows()) for row in theirs})
            if ranks.is_first:
                write_power(rows, folder)
                write_samples(folder, trainer)
                folder.write_json(folder.summary, summary)  # last, since it says that all is done
        exit_code = stopped.exit_code if stopped else 0
    if not ranks.is_first:
        return exit_code
    try:
        write_report(folder.path)
    except (InputError, OSError) as error:  # the run itself is done and safe
        reporter.note(f"report.html was not written: {error}")
    if stopped is not None:
        processes = f" --nproc {ranks.size}" if 1 < ranks.size == ranks.local_size else ""
        reporter.note(f"{stopped}; continue from there with: fastast train --out {folder.path} --resume{processes}")
        return exit_code
    reporter.console.print(verdict(summary))
    reporter.note(f"run folder: {folder.path} (report.html shows it)")
    return exit_code


def _refuse_data_folder(config: TrainConfig, folder: RunFolder) -> None:
    """Nothing is ever written beside the data."""
    places = [path for path in (config.data, config.val_dir, *(config.train_dir or "").split(",")) if path]
    if any(folder.path.resolve() == Path(place).resolve() for place in places):
        raise InputError(f"--out {folder.path}: is the data folder; name another, for example runs/first")


def metered_devices(device: torch.device) -> list[int | str]:
    """The GPU that this process trains on, by UUID; none when it trains on the CPU."""
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []


def _introduce(config: TrainConfig, dataset: Dataset, machine: Machine, reporter: Reporter, ranks: Ranks) -> None:
    times = f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
    reporter.note(
        f"{dataset.train.num_samples:,} training and {dataset.val.num_samples:,} validation pictures, "
        f"{len(dataset.classes)} classes; {config.arch} at {config.image_size} px, batch {config.batch_size}{times}"
    )
    if dataset.quarantined:
        first = dataset.quarantined[0]
        reporter.note(
            f"quarantined {len(dataset.quarantined):,} unreadable pictures (quarantine.jsonl), "
            f"such as {first.path}: {first.reason}"
        )
    reporter.note(f"precision {machine.precision_note}; compile {machine.compile_note}")
