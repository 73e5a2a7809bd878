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

from benchmarks.gpu.dense import largest_fitting
from benchmarks.gpu.pictures import drawn_pictures, given_pictures, linked, sizes
from benchmarks.gpu.settings import NotMeasured, Report, Settings
from fastast.run import code_version, read_json
from fastast.train.setup import open_machine

GATES = ("random", "memory", "forward", "proxy")
COPIES = 50  # of the drawn pictures in an epoch, so that the fastest gate's takes longer than 2 s
ROOT = Path(__file__).resolve().parent.parent.parent
BENCH_SHARE = 0.85  # of the item's time is the bench's budget; the rest is its start and end
LAST_SHARE = 0.93  # of the item's time, after which it is stopped
STOP_S = 15.0  # in which it stops
BAD_INPUT = 2


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
                tell=lambda found: report.add(**found, count=count),
            )

        largest_fitting(measure, settings.batch_size, open_machine(settings.device).device)


gates_at_10 = partial(gates_at, 0.1)
gates_at_30 = partial(gates_at, 0.3)


def accuracy(settings: Settings, report: Report) -> None:
    """`fastast bench` within the item's time: gates beside dense and random at equal work, as many seeds as fit.

    ResNet-50 at 128 px, on the pictures that were given (Imagenette, say), else on the drawn ones.
    """
    name, pictures = next(iter(given_pictures(settings).items()))
    _, commit = code_version()
    out = settings.work / f"bench-{name}-{'tiny-' if settings.tiny else ''}{commit}"
    options: dict[str, Any] = {
        "--data": pictures,
        "--out": out,
        "--arch": settings.arch,
        "--image-size": 32 if settings.tiny else 128,
        "--batch-size": settings.batch_size,
        "--gates": "random" if settings.tiny else "forward,memory,proxy",
        "--epochs": 2 if settings.tiny else 18,
        "--device": settings.device,
        "--seed": settings.seed,
    }
    command = [sys.executable, "-m", "fastast", "bench", *(str(word) for pair in options.items() for word in pair)]
    tries = (1,) if settings.tiny else (3, 2, 1)
    end = time.monotonic() + LAST_SHARE * settings.seconds
    for num_seeds in tries:
        budget = [] if settings.tiny else ["--budget", f"{BENCH_SHARE * settings.seconds:.0f}s"]
        code = _run_until(end, [*command, "--seeds", str(num_seeds), *budget])
        if code != BAD_INPUT or num_seeds == tries[-1]:  # so many do not fit
            break
        shutil.rmtree(out, ignore_errors=True)
    if code == BAD_INPUT or not (out / "bench.json").exists():
        raise RuntimeError(f"fastast bench ended with {code}; its last lines are in the log")
    found = read_json(out / "bench.json")  # of a bench that was stopped, the runs so far
    kept = ("argv", "finished", "epochs", "seeds", "rows", "verdict", "goals", "notes", "failures")
    report.add(pictures=name, n=len(found["seeds"]), **{key: found[key] for key in kept})


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
