"""A training run from options to verdict: opens what it needs, keeps the run folder, survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastast.config import TrainConfig
from fastast.console import Reporter, verdict
from fastast.data import Dataset, draw_dataset, open_dataset
from fastast.energy.meter import EnergyMeter
from fastast.energy.nvml import open_machine as open_nvml
from fastast.errors import InputError
from fastast.files import cache_root
from fastast.given import read_toml
from fastast.options import parse_duration
from fastast.report.page import write_report
from fastast.run import RunFolder
from fastast.train.distributed import require_single_process
from fastast.train.energy_book import EnergyBook
from fastast.train.keeper import Keeper, write_power
from fastast.train.memory_fit import describe_out_of_memory, fitting_batch, is_out_of_memory
from fastast.train.model import check_names
from fastast.train.opening import Opening, open_run
from fastast.train.proxy_net import check_proxy_arch
from fastast.train.results import build_summary, write_classes, write_samples
from fastast.train.setup import Machine, complete_config, open_machine
from fastast.train.stopping import Stopped, StopRequest
from fastast.train.trainer import Trainer
from fastast.train.watchdog import STALL_FILE, Watchdog, end_stalled_run

# How long a run that has ended waits for reads that hang.
CLOSE_TIMEOUT_S = 10.0

PICTURES_CHANGED = "the data has changed since (pictures added, removed or rewritten)"
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
    require_single_process()
    opening = open_run({**(read_toml(toml_path) if toml_path else {}), **given}, resume, force=force)
    if opening.finished is not None:
        try:
            reporter.console.print(verdict(opening.finished))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{opening.folder.summary}: written by another version, or damaged") from error
        reporter.note(f"finished already: {opening.folder.path}")
        return 0
    request = StopRequest(parse_duration(opening.config.max_time, "--max-time") if opening.config.max_time else None)
    return _run(opening, request, argv, reporter, force=force)


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


def _run(opening: Opening, request: StopRequest, argv: list[str], reporter: Reporter, *, force: bool) -> int:
    config, folder, state = opening.config, opening.folder, opening.state
    check_names(config.arch, config.weights if state is None else "none")
    if config.gate == "proxy" and config.proxy_arch:
        check_proxy_arch(config.proxy_arch)
    _refuse_data_folder(config, folder)
    dataset = open_data(config, reporter)
    machine = open_machine(config.device, config.precision, config.compile, deterministic=config.deterministic)
    if state is not None:
        changed = _changed(state, dataset, machine)
        if changed and not force:
            raise InputError(
                f"{opening.checkpoint}: {changed[0]}; add --force to go on, or start anew with another --out"
            )
        opening = dataclasses.replace(opening, changed=opening.changed + changed)
    complete_config(config, machine, dataset.train.num_samples)
    _introduce(config, dataset, machine, reporter)
    try:
        return _fit(opening, dataset, machine, request, argv, reporter)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the trainer, whose memory the trial needs
    advice = describe_out_of_memory(config, fitting_batch(config, machine, len(dataset.classes)))
    raise InputError(advice if state is None else f"{advice}; that takes a new run, with another --out")


def _changed(state: dict[str, Any], dataset: Dataset, machine: Machine) -> tuple[str, ...]:
    """What is not as it was when a checkpoint was written, beside the options."""
    changed = []
    if state["fingerprint"] != dataset.fingerprint:
        changed.append(PICTURES_CHANGED)
    if state["dtype"] != str(machine.dtype):
        names = (str(dtype).removeprefix("torch.") for dtype in (state["dtype"], machine.dtype))
        changed.append("the number format has changed since ({} -> {})".format(*names))
    return tuple(changed)


def _fit(
    opening: Opening,
    dataset: Dataset,
    machine: Machine,
    request: StopRequest,
    argv: list[str],
    reporter: Reporter,
) -> int:
    config, folder, state = opening.config, opening.folder, opening.state
    with contextlib.ExitStack() as stack:
        nvml = open_nvml()
        meter = EnergyMeter(metered_devices(machine.device), machine=nvml)
        if state is not None and opening.checkpoint is not None:
            meter.continue_csv(opening.checkpoint.resolve().parent.parent / folder.power.name)
        energy = EnergyBook(stack.enter_context(meter))
        trainer = Trainer(config, machine, dataset, folder, energy, reporter, continued=state is not None)
        exit_code = 1  # for as long as nothing better can be said
        stack.callback(lambda: _close(trainer, request, exit_code))
        folder.create()  # not before everything that can be refused has been accepted
        stack.enter_context(folder.lock())
        opening.require_untouched()
        if state is not None:
            _resume(trainer, opening, reporter)
        else:
            _start(trainer, folder)
        if meter.devices:
            energy.idle = meter.measure_idle()
        keeper = Keeper(trainer, folder, config.checkpoint_every, reporter)
        stopped = None
        with request.listening():  # until all is saved: another signal must not end that
            try:
                with _watched(trainer, request, folder):
                    trainer.fit(keeper)
            except Stopped as stop:
                stopped = stop
                keeper.save()
            finally:
                failure = keeper.close()
            if failure is not None:
                raise InputError(f"{failure}; free some space or make the folder writable, then continue with --resume")
            meter.stop()
            write_power(meter, folder)
            summary = build_summary(trainer, nvml.driver, argv, stopped=stopped.reason if stopped else None)
            write_samples(folder, trainer)
            folder.write_json(folder.summary, summary)  # last, since it says that all is done
        exit_code = stopped.exit_code if stopped else 0
    try:
        write_report(folder.path)
    except (InputError, OSError) as error:  # the run itself is done and safe
        reporter.note(f"report.html was not written: {error}")
    if stopped is not None:
        reporter.note(f"{stopped}; continue from there with: fastast train --out {folder.path} --resume")
        return exit_code
    reporter.console.print(verdict(summary))
    reporter.note(f"run folder: {folder.path} (report.html shows it)")
    return exit_code


@contextlib.contextmanager
def _watched(trainer: Trainer, request: StopRequest, folder: RunFolder) -> Iterator[None]:
    """Between two batches the trainer looks for requests to stop, and shows that it is alive."""
    timeout_s = trainer.config.stall_timeout
    trainer.waiting = request.check
    if timeout_s == 0:
        trainer.between = request.check
        yield
        return
    with Watchdog(timeout_s, lambda: end_stalled_run(folder, timeout_s)) as watchdog:

        def between() -> None:
            watchdog.beat()
            request.check()

        trainer.between = between
        yield


def _close(trainer: Trainer, request: StopRequest, exit_code: int) -> None:
    """Frees the data pipelines; where one of their threads hangs, ends the process without it."""

    def leave() -> None:
        os.write(2, b"fastast: a read of the data hangs; ended without it\n")
        os._exit(exit_code)

    with request.listening(), Watchdog(CLOSE_TIMEOUT_S, leave):
        trainer.close()


def _refuse_data_folder(config: TrainConfig, folder: RunFolder) -> None:
    """Nothing is ever written beside the data."""
    places = [path for path in (config.data, config.val_dir, *(config.train_dir or "").split(",")) if path]
    if any(folder.path.resolve() == Path(place).resolve() for place in places):
        raise InputError(f"--out {folder.path}: is the data folder; name another, for example runs/first")


def metered_devices(device: torch.device) -> list[int | str]:
    """The GPU that this process trains on, by UUID; none when it trains on the CPU."""
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []


def _introduce(config: TrainConfig, dataset: Dataset, machine: Machine, reporter: Reporter) -> None:
    reporter.note(
        f"{dataset.train.num_samples:,} training and {dataset.val.num_samples:,} validation pictures, "
        f"{len(dataset.classes)} classes; {config.arch} at {config.image_size} px, batch {config.batch_size}"
    )
    if dataset.quarantined:
        first = dataset.quarantined[0]
        reporter.note(
            f"quarantined {len(dataset.quarantined):,} unreadable pictures (quarantine.jsonl), "
            f"such as {first.path}: {first.reason}"
        )
    reporter.note(f"precision {machine.precision_note}; compile {machine.compile_note}")


def _start(trainer: Trainer, folder: RunFolder) -> None:
    """Writes what a run folder holds from its first moment; nothing of an earlier attempt stays."""
    logs = (folder.metrics, folder.summary, folder.power, folder.samples, folder.path / STALL_FILE)
    for path in (*logs, folder.previous, folder.best, folder.weights):
        path.unlink(missing_ok=True)
    _describe(trainer, folder)
    _list_quarantined(trainer, folder)


def _list_quarantined(trainer: Trainer, folder: RunFolder) -> None:
    """Begins `quarantine.jsonl` with what the scan found."""
    folder.quarantine.unlink(missing_ok=True)
    for entry in trainer.dataset.quarantined:
        folder.append_quarantine({"id": entry.id, "path": entry.path, "reason": entry.reason})
    trainer.journal.account.quarantined = len(trainer.dataset.quarantined)


def _describe(trainer: Trainer, folder: RunFolder) -> None:
    folder.write_json(folder.config, dataclasses.asdict(trainer.config))
    write_classes(folder, trainer.dataset.classes)


def _resume(trainer: Trainer, opening: Opening, reporter: Reporter) -> None:
    state, checkpoint, folder = opening.state, opening.checkpoint, opening.folder
    assert state is not None
    assert checkpoint is not None
    for note in (opening.note, *opening.changed):
        if note is not None:
            reporter.note(note)
    other_pictures = PICTURES_CHANGED in opening.changed
    try:
        trainer.load_state_dict(state["trainer"], other_pictures=other_pictures)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{checkpoint}: does not fit this run ({reason})") from error
    if state["dtype"] != str(trainer.machine.dtype):
        trainer.engine.reset_loss_scale()
    folder.continue_from(checkpoint, state["sizes"])
    _describe(trainer, folder)
    if other_pictures:
        _list_quarantined(trainer, folder)
    offered = trainer.journal.account.whole.offered
    resumed: dict[str, Any] = {"epoch": trainer.epoch, "offered": offered}
    if opening.changed:
        resumed["changed"] = list(opening.changed)
    trainer.journal.account.resumes.append(resumed)
    reporter.note(f"continuing in epoch {trainer.epoch} ({offered:,} samples offered so far)")
