"""A training run from options to verdict: opens what it needs, keeps the run folder, survives being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastast.config import TrainConfig, read_toml, resolve
from fastast.console import Reporter, verdict
from fastast.data import Dataset, draw_dataset, open_dataset
from fastast.energy.meter import EnergyMeter
from fastast.energy.nvml import open_machine as open_nvml
from fastast.errors import InputError
from fastast.files import cache_root
from fastast.run import RunFolder, read_json
from fastast.train.checkpoint import load_checkpoint, save_checkpoint
from fastast.train.distributed import require_single_process
from fastast.train.energy_book import EnergyBook
from fastast.train.results import build_summary, write_best, write_classes, write_samples
from fastast.train.setup import complete_config, open_machine
from fastast.train.trainer import Stopped, Trainer

# What a resumed run may change: where it stands and how it is shown, nothing that its figures depend on.
FREE_OPTIONS = ("out", "threads", "log_every")
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
    given = {**(read_toml(toml_path) if toml_path else {}), **given}
    checkpoint = Path(resume) if resume not in (None, "auto") else None
    if checkpoint is not None and "out" not in given:
        given["out"] = str(checkpoint.resolve().parent.parent)
    out = given.get("out")
    folder = RunFolder(out) if out else None
    stored = None
    if folder is not None and folder.holds_run():
        if resume is None:
            raise InputError(
                f"--out {out}: holds a run already; continue it with --resume, or name another folder with --out"
            )
        finished = folder.finished_summary()
        if finished is not None and checkpoint is None:
            reporter.console.print(verdict(finished))
            reporter.note(f"finished already: {folder.path}")
            return 0
        stored = read_json(folder.config)
    config = _continue_config(stored, given) if stored else resolve(given)
    if folder is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.arch.replace(':', '.')}-{config.gate}"
        folder = RunFolder(Path("runs") / name)
    return _run(config, folder, checkpoint=checkpoint, resuming=stored is not None, argv=argv, reporter=reporter)


def _continue_config(stored: dict[str, Any], given: dict[str, Any]) -> TrainConfig:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if stored.keys() - known:
        raise InputError(f"config.json: unknown option {min(stored.keys() - known)}; written by another version")
    changed = [name for name in given if name not in FREE_OPTIONS and given[name] != stored.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"--{name.replace('_', '-')} {given[name]}: the run was started with {stored.get(name)}; "
            "leave the option out to continue, or start anew with another --out"
        )
    return TrainConfig(**{**stored, **given})


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
        progress=reporter.counter("scanning"),
    )


def _run(
    config: TrainConfig,
    folder: RunFolder,
    *,
    checkpoint: Path | None,
    resuming: bool,
    argv: list[str],
    reporter: Reporter,
) -> int:
    dataset = open_data(config, reporter)
    machine = open_machine(config.device, config.precision, config.compile)
    complete_config(config, machine, dataset.train.num_samples)
    _introduce(config, dataset, machine.precision_note, machine.compile_note, reporter)
    with contextlib.ExitStack() as stack:
        nvml = open_nvml()
        meter = EnergyMeter(metered_devices(machine.device), machine=nvml)
        if resuming:
            meter.continue_csv(folder.power)
        energy = EnergyBook(stack.enter_context(meter))
        trainer = Trainer(config, machine, dataset, folder, energy, reporter)
        stack.callback(trainer.close)
        folder.create()  # not before everything that can be refused has been accepted
        if resuming and (checkpoint or folder.last.exists()):
            _resume(trainer, folder, checkpoint or folder.last, reporter)
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
    if stopped is not None:
        reporter.note(
            f"{stopped}; continue from the last finished epoch with: fastast train --out {folder.path} --resume"
        )
        return 128 + stopped.signum
    reporter.console.print(verdict(summary))
    reporter.note(f"run folder: {folder.path}")
    return 0


def metered_devices(device: torch.device) -> list[int | str]:
    """The GPU that this process trains on, by UUID; none when it trains on the CPU."""
    return [f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []


def _write_power(meter: EnergyMeter, folder: RunFolder) -> None:
    if meter.trace_rows():
        meter.write_csv(folder.power)


def _introduce(
    config: TrainConfig, dataset: Dataset, precision_note: str, compile_note: str, reporter: Reporter
) -> None:
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
    reporter.note(f"precision {precision_note}; compile {compile_note}")


def _start(trainer: Trainer, folder: RunFolder, dataset: Dataset) -> None:
    """Writes what a run folder holds from its first moment; nothing of an earlier attempt stays."""
    for path in (folder.metrics, folder.quarantine, folder.summary, folder.power):
        path.unlink(missing_ok=True)
    folder.write_json(folder.config, dataclasses.asdict(trainer.config))
    write_classes(folder, dataset.classes)
    for entry in dataset.quarantined:
        folder.append_quarantine({"id": entry.id, "path": entry.path, "reason": entry.reason})
    trainer.account.quarantined = len(dataset.quarantined)


def _resume(trainer: Trainer, folder: RunFolder, checkpoint: Path, reporter: Reporter) -> None:
    state = load_checkpoint(checkpoint)
    if state["fingerprint"] != trainer.dataset.fingerprint:
        raise InputError(
            f"{checkpoint}: the data has changed since (pictures added, removed or rewritten); "
            "restore it to continue, or start anew with another --out"
        )
    try:
        trainer.load_state_dict(state["trainer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{checkpoint}: does not fit this run ({str(error).splitlines()[0]})") from error
    folder.truncate_metrics(state["metrics_size"])
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
            "fingerprint": trainer.dataset.fingerprint,
            "metrics_size": folder.metrics_size(),
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
