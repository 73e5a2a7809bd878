"""Gates: speed and joules at two targets, and accuracy in the time that is left; dense training on several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.gpu.items import NotMeasured, Report, Settings
from benchmarks.gpu.pictures import drawn_pictures, linked, picture_sets, sizes
from benchmarks.gpu.timing import largest_fitting
from fastast.code_version import code_version
from fastast.device import open_runtime
from fastast.run_folder import read_json

COPIES = 70  # of the drawn pictures in an epoch, so that the fastest gate's takes longer than 2 s on an H100
BENCH_SHARE = 0.9  # of the time left is the bench's budget; the rest is its start and end
# Of the bench: the default gate and small pictures first, each alone and both; the last is the rule as published.
ARMS = (
    "dense;random:target=0.3;memory:target=auto;dense:train-size=auto;memory:target=auto,train-size=auto;"
    "forward:selection=hard,target=0.1"
)
STOP_S = 20.0  # for a bench to stop with a checkpoint
LONG_S = 1800.0  # in less time, one seed and one budget have to do: every run starts anew
SPARE_S = 15.0  # for the start of the item's own process, and for its report
DONE, ALL_FAILED = 0, 1  # exit codes of a bench


def gates_at(target: float, settings: Settings, report: Report) -> None:
    """`benchmarks.gate_speed` with the gates at one target, from the drawn JPEGs."""
    from benchmarks.gate_speed import __main__ as gate_speed

    pictures = drawn_pictures(settings)
    report.add(pictures=sizes(pictures / "train"))
    with tempfile.TemporaryDirectory() as scratch:
        copies = 1 if settings.tiny else COPIES
        for split in ("train", "val"):
            linked(pictures / split, Path(scratch) / split, copies)
        count = (64, 96)[target > 0.2] if settings.tiny else len(list(Path(scratch).glob("train/*/*")))
        rounds, gates = (1, "memory") if settings.tiny else (2, "memory forward")
        compile = "off" if settings.device == "cpu" else "auto"
        words = f"--arch {settings.arch} --image-size {settings.image_size} --count {count} --targets {target}"
        words += f" --rounds {rounds} --device {settings.device} --compile {compile} --seed {settings.seed}"

        def measure(batch_size: int) -> None:
            more = f"--batch-size {batch_size} --only {gates}"
            gate_speed.main(
                ["--data", scratch, *words.split(), *more.split()],
                tell=lambda found: report.add(**found, count=count, batch_size=batch_size),  # after every round
            )

        largest_fitting(measure, settings.batch_size, open_runtime(settings.device).device)


gates_at_10 = partial(gates_at, 0.1)
gates_at_30 = partial(gates_at, 0.3)


def accuracy(settings: Settings, report: Report) -> None:
    """`fastast bench` within the item's time: gates and growing pictures beside dense and random at equal budgets.

    Three seeds and three budgets if they fit. NVML reads the joules of every run.

    ResNet-50 at 128 px, on the pictures of --data (Imagenette, say), else on the drawn ones.

    Raises:
        RuntimeError: the bench did not finish; the runs so far are reported, and another call resumes it.
    """
    end = time.monotonic() + settings.seconds - STOP_S - SPARE_S
    name, pictures = next(iter(picture_sets(settings).items()))
    image_size = 32 if settings.tiny else 128
    long = settings.seconds > LONG_S
    arms, budgets = ("dense;random", "9ep") if settings.tiny else (ARMS, "4,8,16ep" if long else "8ep")
    out = settings.work / f"bench-{name}-{'tiny' if settings.tiny else 'full'}-{code_version()[1]}"
    command = [sys.executable, "-m", "fastast", "bench", "--data", os.fspath(pictures), "--out", os.fspath(out)]
    options = f"--arch {settings.arch} --image-size {image_size} --batch-size {settings.batch_size} --arms {arms}"
    command += f"{options} --budgets {budgets} --device {settings.device} --seed {settings.seed}".split()
    limit = "" if settings.tiny else f"--time {max(1.0, BENCH_SHARE * (end - time.monotonic())):.0f}s"
    code = run_until(end, [*command, *f"--seeds {3 if long else 1} {limit}".split()])
    late = time.monotonic() >= end
    points = []
    if (late or code in (DONE, ALL_FAILED)) and (out / "bench.json").exists():
        found = read_json(out / "bench.json")  # written after every run
        if points := found["points"]:
            kept = ("argv", "seeds", "points", "paired", "cost_at_equal_accuracy", "verdict", "notes", "failures")
            report.add(pictures=name, finished=code == DONE, batch_size=settings.batch_size)
            report.add(n=max(point["n"] for point in points), **{key: found[key] for key in kept})
    if code != DONE:
        how = "was stopped when its time was up" if late else f"ended with {code}; its last lines are in the log"
        raise RuntimeError(f"fastast bench {how}" + ("; unfinished, its runs so far are reported" if points else ""))


def run_until(end: float, command: list[str]) -> int:
    """Runs a bench, which gets SIGTERM when its time is up, and SIGKILL if it does not stop; returns its exit code."""
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:
        for wait_s, then in ((max(1.0, end - time.monotonic()), process.terminate), (STOP_S, process.kill)):
            try:
                return process.wait(wait_s)
            except subprocess.TimeoutExpired:
                then()
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
