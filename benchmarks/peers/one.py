"""One run in a process of its own: `python -m benchmarks.peers.one TASK.json SUMMARY.json BEGAN_S`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.ast_package import run_ast
from benchmarks.peers.loops import InfoBatch, Rule, SelectiveBackprop, run_loop
from benchmarks.peers.timm_train import run_timm
from benchmarks.peers.training import Task, Training
from fastast.atomic_files import write_whole
from fastast.device import limit_torch_threads
from fastast.energy.energy_meter import EnergyMeter
from fastast.errors import InputError
from fastast.run_folder import finite

PEERS: dict[str, Callable[[Training], None]] = {
    "torchvision": lambda training: run_loop(training, Rule),
    "timm": run_timm,
    "ast": run_ast,
    "infobatch": lambda training: run_loop(training, InfoBatch),
    "selective-backprop": lambda training: run_loop(training, SelectiveBackprop),
}


def run_task(task: Task, began_s: float) -> dict[str, Any]:
    """Trains and evaluates; returns the run's summary.

    Args:
        task: of the run.
        began_s: when its command started, by `time.monotonic`.
    """
    training = Training(task, began_s)
    device = training.device
    with EnergyMeter([device.index] if device.type == "cuda" else []) as meter:
        start_s = time.monotonic()
        with meter.measure("training") as measured:
            PEERS[task.peer](training)
            training.synchronize()
        trained_s = time.monotonic()
        top1, top5 = training.evaluate()
        end_s = time.monotonic()
    return training.summary(
        top1=top1,
        top5=top5,
        total_s=end_s - start_s,
        eval_s=end_s - trained_s,
        energy=meter.reading(),
        train_gpu_j=measured.joules,
    )


def main() -> int:
    written, out, began_s = sys.argv[1:]
    task = Task(**json.loads(Path(written).read_text()))
    limit_torch_threads(1)
    try:
        # Beside the folder of the run.
        summary = run_task(replace(task, data=str(Path(written).parent.parent / task.data)), float(began_s))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_whole(out, json.dumps(finite(summary), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
