"""A training run from options to verdict: opens what it needs, keeps the run folder, survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastast.config import TrainConfig, read_toml
from fastast.console import Reporter, verdict
from fastast.data import Dataset, draw_dataset, open_dataset
from fastast.energy.meter import EnergyMeter
from fastast.energy.nvml import open_machine as open_nvml
from fastast.errors import InputError
from fastast.files import cache_root
from fastast.report.page import write_report
from fastast.run import RunFolder
from fastast.train.checkpoint import save_checkpoint
from fastast.train.distributed import require_single_process
from fastast.train.energy_book import EnergyBook
from fastast.train.model import check_names
from fastast.train.opening import Opening, open_run
from fastast.train.results import build_summary, write_best, write_classes, write_samples
from fastast.train.setup import Machine, complete_config, open_machine
from fastast.train.trainer import Stopped, Trainer

DEMO_SET = {"num_classes": 12, "train_per_class": 150, "val_per_class": 30}


def train(
    given: dict[str, Any], *, toml_path: str | None, resume: str | None, argv: list[str], reporter: Reporter
) -> int:
    """Runs `fastast train`.

    Args:
        given: options that the user typed, by field name of `TrainConfig`.
        toml_path: a TOML file of further options, or None.
        resume: None, "auto" (start, continue, or show a finished run), or a checkpoint file.
        argv: the command line, for the summary.
        reporter: shows progress.

    Returns:
        The exit code: 0, or 128 + the signal that stopped the run.

    Raises:
        InputError: something that the user can fix.
    """
    require_single_process()
    opening = open_run({**(read_toml(toml_path) if toml_path else {}), **given}, resume)
    if opening.finished is not None:
        try:
            reporter.console.print(verdict(opening.finished))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{opening.folder.summary}: written by another version, or damaged") from error
        reporter.note(f"finished already: {opening.folder.path}")
        return 0
    return _run(opening, argv, reporter)


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


def _run(opening: Opening, argv: list[str], reporter: Reporter) -> int:
    config, folder, state = opening.config, opening.folder, opening.state
    check_names(config.arch, config.weights if state is None else "none")
    _refuse_data_folder(config, folder)
    dataset = open_data(config, reporter)
    if state is not None and state["fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"{opening.checkpoint}: the data has changed since (pictures added, removed or rewritten); "
            "restore it to continue, or start anew with another --out"
        )
    machine = open_machine(config.device, config.precision, config.compile, deterministic=config.deterministic)
    complete_config(config, machine, dataset.train.num_samples)
    _introduce(config, dataset, machine, reporter)
    with contextlib.ExitStack() as stack:
        nvml = open_nvml()
        meter = EnergyMeter(metered_devices(machine.device), machine=nvml)
        if state is not None and opening.checkpoint is not None:
            meter.continue_csv(opening.checkpoint.resolve().parent.parent / folder.power.name)
        energy = EnergyBook(stack.enter_context(meter))
        trainer = Trainer(config, machine, dataset, folder, energy, reporter, continued=state is not None)
        stack.callback(trainer.close)
        folder.create()  # not before everything that can be refused has been accepted
        if state is not None:
            _resume(trainer, opening, reporter)
        else:
            _start(trainer, folder, dataset)
        if meter.devices:
            energy.idle = meter.measure_idle()
        stopped = None
        try:
            with _signals_stop(trainer):
                trainer.fit(lambda line: _keep(trainer, folder, line))
        except Stopped as stop:
            stopped = stop
        meter.stop()
        _write_power(meter, folder)
        summary = build_summary(trainer, nvml.driver, argv, stopped="signal" if stopped else None)
        folder.write_json(folder.summary, summary)
        write_samples(folder, trainer)
    try:
        write_report(folder.path)
    except (InputError, OSError) as error:  # the run itself is done and safe
        reporter.note(f"report.html was not written: {error}")
    if stopped is not None:
        reporter.note(
            f"{stopped}; continue from the last finished epoch with: fastast train --out {folder.path} --resume"
        )
        return 128 + stopped.signum
    reporter.console.print(verdict(summary))
    reporter.note(f"run folder: {folder.path} (report.html shows it)")
    return 0


def _refuse_data_folder(config: TrainConfig, folder: RunFolder) -> None:
    """Nothing is ever written beside the data."""
    places = [path for path in (config.data, config.val_dir, *(config.train_dir or "").split(",")) if path]
    if any(folder.path.resolve() == Path(place).resolve() for place in places):
        raise InputError(f"--out {folder.path}: is the data folder; name another, for example runs/first")


def metered_devices(device: torch.device) -> list[int | str]:
    """The GPU that this process trains on, by UUID; none when it trains on the CPU."""
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []


def _write_power(meter: EnergyMeter, folder: RunFolder) -> None:
    if meter.trace_rows():
        meter.write_csv(folder.power)


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


def _start(trainer: Trainer, folder: RunFolder, dataset: Dataset) -> None:
    """Writes what a run folder holds from its first moment; nothing of an earlier attempt stays."""
    for path in (folder.metrics, folder.quarantine, folder.summary, folder.power):
        path.unlink(missing_ok=True)
    folder.write_json(folder.config, dataclasses.asdict(trainer.config))
    write_classes(folder, dataset.classes)
    for entry in dataset.quarantined:
        folder.append_quarantine({"id": entry.id, "path": entry.path, "reason": entry.reason})
    trainer.account.quarantined = len(dataset.quarantined)


def _resume(trainer: Trainer, opening: Opening, reporter: Reporter) -> None:
    state, checkpoint = opening.state, opening.checkpoint
    assert state is not None
    assert checkpoint is not None
    try:
        trainer.load_state_dict(state["trainer"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint}: does not fit this run ({str(error).splitlines()[0]})") from error
    opening.folder.continue_from(RunFolder(checkpoint.resolve().parent.parent), state["sizes"])
    whole = trainer.account.whole
    trainer.account.resumes.append({"epoch": len(trainer.epochs) + 1, "offered": whole.offered})
    reporter.note(f"continuing after epoch {len(trainer.epochs)} ({whole.offered:,} samples offered so far)")


def _keep(trainer: Trainer, folder: RunFolder, line: dict[str, Any]) -> None:
    """Saves an epoch's end: the weights if they are the best so far, then the checkpoint."""
    if all(line["val_top1"] > earlier["val_top1"] for earlier in trainer.epochs[:-1]):
        write_best(folder, trainer.engine.model, line)
    _write_power(trainer.energy.meter, folder)
    save_checkpoint(
        folder.last,
        {
            "trainer": trainer.state_dict(),
            "config": dataclasses.asdict(trainer.config),
            "fingerprint": trainer.dataset.fingerprint,
            "sizes": folder.log_sizes(),
        },
    )


@contextlib.contextmanager
def _signals_stop(trainer: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the current batch; a second SIGINT ends it at once."""

    def stop(signum: int, frame: Any) -> None:
        if trainer.stop_signal is not None:
            raise KeyboardInterrupt
        trainer.stop_signal = signum

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
