"""Times the parts of training on this runtime, for the largest speed-up that it allows.

    python -m fastast.bench.probe OPTIONS.json RESULT.json

The bench runs this as a process before its first run. For dense, and for each gate that scores, it builds a trainer as
a run does, and times its parts alone, in turns, in seconds a sample:

    train_s             forward, backward and step on a trained sample, t
    decode_s            decode, d
    score_s             scoring and selection by the gate, f_score
    decode_all_s        decode of every offered sample, d_all; 0 for gates that choose before decode
    decode_selected_s   decode of a selected sample only, d_sel

`fastast.bench.statistics.machine_ceiling` adds them up; where decoding overlaps training, a run may pass that ceiling.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastast.atomic_files import write_whole
from fastast.bench.matrix import DENSE
from fastast.config_file import resolve
from fastast.data import Dataset
from fastast.device import open_runtime
from fastast.energy.meter import EnergyMeter
from fastast.errors import InputError
from fastast.gates.registry import make_gate
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder
from fastast.train.defaults import complete_config
from fastast.train.run_energy import RunEnergy
from fastast.train.session import open_data
from fastast.train.trainer import Trainer

# Timed in each round. The first rounds warm up caches and the gate's threshold, and are not counted.
TRAIN_BATCHES, SCORE_BATCHES, DECODE_BATCHES = 2, 4, 8
WARMUP_ROUNDS, ROUNDS = 2, 5
# Seconds for each trainer, after which no further round starts.
LIMIT_S = 60.0

Parts = dict[str, float]


def measure_parts(options: Mapping[str, Any], gates: Sequence[str]) -> dict[str, Parts]:
    """Parts of dense and of every gate (any but dense), by name.

    Raises:
        InputError: the options or the data are at fault.
    """
    reporter = Reporter(Console(file=StringIO()))
    dataset = open_data(resolve({**options, "gate": "dense"}), reporter)
    scoring = [gate for gate in gates if make_gate(gate, dict(options)).scores]
    found = {gate: _measure({**options, "gate": gate}, dataset, reporter) for gate in (DENSE, *scoring)}
    for gate in set(gates) - set(scoring):  # these share the parts of dense
        all_s = 0.0 if make_gate(gate, dict(options)).plans else found[DENSE]["decode_s"]
        found[gate] = {**found[DENSE], "decode_all_s": all_s, "decode_selected_s": found[DENSE]["decode_s"] - all_s}
    return found


def _measure(options: dict[str, Any], dataset: Dataset, reporter: Reporter) -> Parts:
    config = resolve(options)
    runtime = open_runtime(config.device, config.precision, config.compile, deterministic=config.deterministic)
    complete_config(config, runtime, dataset.train.num_samples)
    with tempfile.TemporaryDirectory() as scratch, EnergyMeter([]) as meter:
        folder = RunFolder(scratch)
        folder.create()
        with closing(Trainer(config, runtime, dataset, folder, RunEnergy(meter), reporter)) as trainer:
            rounds: list[Parts] = []
            start_s = time.monotonic()
            for number in range(WARMUP_ROUNDS + ROUNDS):
                if len(rounds) > WARMUP_ROUNDS and time.monotonic() - start_s > LIMIT_S:
                    break
                rounds.append(_round(trainer, number))
    return {name: statistics.median(one[name] for one in rounds[WARMUP_ROUNDS:]) for name in rounds[0]}


def _round(trainer: Trainer, epoch: int) -> Parts:
    engine, loaders = trainer.engine, trainer.loaders
    ids = np.arange(trainer.dataset.train.num_samples)[: DECODE_BATCHES * trainer.batch_size]
    start_s = _now(trainer)
    batch, *_ = loaders.train.epoch(epoch, ids)
    decode_s = (_now(trainer) - start_s) / len(ids)
    train_s = 0.0
    for _ in range(TRAIN_BATCHES):
        engine.enqueue(batch)
        start_s = _now(trainer)
        engine.train()
        train_s += _now(trainer) - start_s
    rows = len(batch.valid)
    score_s = 0.0
    if trainer.gate.scores:
        waiting = engine.queue.get_extra_state()
        start_s = _now(trainer)
        for _ in range(SCORE_BATCHES):
            engine.score(batch)
        score_s = (_now(trainer) - start_s) / SCORE_BATCHES / rows
        engine.queue.set_extra_state(waiting)  # the selected samples are not trained
    parts = {"train_s": train_s / TRAIN_BATCHES / rows, "decode_s": decode_s, "score_s": score_s}
    return parts | {"decode_all_s": decode_s, "decode_selected_s": 0.0}


def _now(trainer: Trainer) -> float:
    if trainer.runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(source: str, result: str) -> int:
    """Reads the options from a file, writes the parts to another; returns the exit code."""
    asked = json.loads(Path(source).read_text(encoding="utf-8"))
    try:
        parts = measure_parts(asked["options"], asked["gates"])
    except InputError as error:
        print(f"fastast train: error: {error}", file=sys.stderr)
        return 2
    write_whole(result, json.dumps(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
