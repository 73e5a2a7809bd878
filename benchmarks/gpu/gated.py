"""What gates make of it: speed and joules at two targets, accuracy in the time that is left, and several GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.dense import NUM_CLASSES, largest_fitting
from benchmarks.gpu.loops import Ours, Pictures, fed
from benchmarks.gpu.pictures import drawn_pictures, given_pictures, linked, sizes
from benchmarks.gpu.settings import NotMeasured, Report, Settings
from benchmarks.gpu.timing import wait_for
from fastast.device import open_machine
from fastast.run_folder import code_version, read_json

GATES = ("random", "memory", "forward", "proxy")
COPIES = 50  # of the drawn pictures in an epoch, so that the fastest gate's takes longer than 2 s
ROOT = Path(__file__).resolve().parent.parent.parent
BENCH_SHARE = 0.9  # of the time left is the bench's budget; the rest is its start and end
STOP_S = 20.0  # in which a bench stops, with a checkpoint
SPARE_S = 15.0  # for the start of the item's own process, and for its report
DONE, NOTHING_CAME_OUT, BAD_INPUT = 0, 1, 2  # exit codes of a bench


def gates_at(target: float, settings: Settings, report: Report) -> None:
    """`benchmarks.gates` with the gates at one target, dense beside them, from the drawn JPEGs."""
    from benchmarks import gates

    pictures = drawn_pictures(settings)
    report.add(pictures=sizes(pictures / "train"))
    with tempfile.TemporaryDirectory() as scratch:
        copies = 1 if settings.tiny else COPIES
        for split in ("train", "val"):
            linked(pictures / split, Path(scratch) / split, copies)
        count = (64, 96)[target > 0.2] if settings.tiny else len(list(Path(scratch).glob("train/*/*")))
        options: dict[str, Any] = {
            "--data": scratch,
            "--arch": settings.arch,
            "--image-size": settings.image_size,
            "--count": count,
            "--targets": target,
            "--rounds": 1 if settings.tiny else 2,
            "--device": settings.device,
            "--compile": "off" if settings.device == "cpu" else "auto",
            "--seed": settings.seed,
        }
        words = [str(word) for pair in options.items() for word in pair]
        names = GATES[:1] if settings.tiny else GATES

        def measure(batch_size: int) -> None:
            # Cut off, the rounds so far count.
            gates.main(
                [*words, "--batch-size", str(batch_size), "--only", *names],
                tell=lambda found: report.add(**found, count=count, batch_size=batch_size),
            )

        largest_fitting(measure, settings.batch_size, open_machine(settings.device).device)


gates_at_10 = partial(gates_at, 0.1)
gates_at_30 = partial(gates_at, 0.3)


def accuracy(settings: Settings, report: Report) -> None:
    """`fastast bench` within the item's time: gates beside dense and random at equal work, as many seeds as fit.

    ResNet-50 at 128 px, on the pictures that were given (Imagenette, say), else on the drawn ones.

    Raises:
        RuntimeError: the bench did not come to its end; the runs so far are reported, and another call goes on.
    """
    end = time.monotonic() + settings.seconds - STOP_S - SPARE_S
    name, pictures = next(iter(given_pictures(settings).items()))
    image_size = 32 if settings.tiny else 128
    batch_size = _fitting_batch(settings, image_size)
    _, commit = code_version()
    out = settings.work / f"bench-{name}-{'tiny' if settings.tiny else 'full'}-{batch_size}-{commit}"
    options: dict[str, Any] = {
        "--data": pictures,
        "--out": out,
        "--arch": settings.arch,
        "--image-size": image_size,
        "--batch-size": batch_size,
        "--gates": "random" if settings.tiny else "forward,memory,proxy",
        "--epochs": 2 if settings.tiny else 18,
        "--device": settings.device,
        "--seed": settings.seed,
    }
    command = [sys.executable, "-m", "fastast", "bench", *(str(word) for pair in options.items() for word in pair)]
    tries = (1,) if settings.tiny else (3, 2, 1)
    for num_seeds in tries:
        budget = [] if settings.tiny else ["--budget", f"{max(1.0, BENCH_SHARE * (end - time.monotonic())):.0f}s"]
        code = _run_until(end, [*command, "--seeds", str(num_seeds), *budget])
        if code != BAD_INPUT or num_seeds == tries[-1] or (out / "plan.json").exists():
            break
        shutil.rmtree(out, ignore_errors=True)  # so many seeds do not fit
    late = time.monotonic() >= end
    rows = []
    if (late or code in (DONE, NOTHING_CAME_OUT)) and (out / "bench.json").exists():
        found = read_json(out / "bench.json")  # written after every run
        rows = found["rows"]
    if rows:
        kept = ("argv", "epochs", "seeds", "rows", "verdict", "goals", "notes", "failures")
        counts = {"n": max(row["n"] for row in rows), "batch_size": batch_size}
        report.add(pictures=name, finished=code == DONE, **counts, **{key: found[key] for key in kept})
    if code != DONE:
        how = "was stopped when its time was up" if late else f"ended with {code}; its last lines are in the log"
        raise RuntimeError(f"fastast bench {how}" + ("; unfinished, its runs so far are reported" if rows else ""))


def _fitting_batch(settings: Settings, image_size: int) -> int:
    """The usual batch, or the largest of its halves with which the device can train."""
    machine = open_machine(settings.device)
    device = machine.device

    def measure(batch_size: int) -> int:
        sized: dict[str, Any] = {
            "batch_size": batch_size,
            "image_size": image_size,
            "num_classes": NUM_CLASSES,
            "seed": settings.seed,
        }
        step = fed(Ours(settings.arch, device, machine.dtype, False, **sized), Pictures(device, **sized))
        for _ in range(2):
            step()
        wait_for(device)
        return batch_size

    return largest_fitting(measure, settings.batch_size, device)


def _run_until(end: float, command: list[str]) -> int:
    """Runs a bench, which is asked to stop when its time is up; returns its exit code."""
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def scaling(settings: Settings, report: Report) -> None:
    """Dense `fastast train` on one GPU and on 2, 4, ... of them: offered pictures a second."""
    if settings.num_gpus < 2:
        raise NotMeasured("needs at least two GPUs, and --all")
    rates: dict[str, float] = {}
    numbers = [number for number in (1, 2, 4, 8) if number < settings.num_gpus] + [settings.num_gpus]
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        for split, times in (("train", COPIES), ("val", 1)):
            linked(drawn_pictures(settings) / split, pictures / split, times)
        for number in numbers:
            out = Path(scratch) / f"on-{number}"
            options = f"--gate dense --epochs 1 --arch {settings.arch} --nproc {number} --seed {settings.seed}"
            command = [sys.executable, "-m", "fastast", "train", *options.split()]
            command += ["--data", os.fspath(pictures), "--out", os.fspath(out)]
            subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
            rates[str(number)] = read_json(out / "summary.json")["throughput"]["offered_per_s"]
            efficiency = {key: rate / (int(key) * rates["1"]) for key, rate in rates.items()}
            report.add(offered_per_s=rates, efficiency=efficiency)
