"""Builds an engine, compiled where that works."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastast.config import TrainConfig
from fastast.device import Runtime, is_out_of_memory
from fastast.engine.engine import Engine
from fastast.errors import InputError
from fastast.feed import Batch
from fastast.loggers.console import Reporter


def build_engine(config: TrainConfig, runtime: Runtime, reporter: Reporter, **options: Any) -> tuple[Engine, Runtime]:
    """Builds an engine and compiles its steps.

    Args:
        config: completed options.
        runtime: device, number format and compiler.
        reporter: shows what the user should know.
        options: the other arguments of `Engine`.

    Returns:
        The engine, and the runtime: as given, or without the compiler if the network turned out not to compile.

    Raises:
        InputError: the network does not fit the data, or does not compile though that was asked for.
    """
    engine = Engine(config, runtime, **options)
    if runtime.compiled:
        reporter.note("compiling (once; not counted in the run's times)")
        reason = _compile(engine, config)
        failed = engine.ranks.all_max(reason is not None)
        if failed and reason is None:
            reason = "it did on another rank"
        if reason is not None:
            del engine  # before the next one takes as much memory
            runtime = replace(runtime, compiled=False, compile_note=f"off: failed to compile ({reason})")
            reporter.note(f"compile {runtime.compile_note}")
            engine = Engine(config, runtime, **options)
    for note in engine.notes:
        reporter.note(note)
    return engine, runtime


def _compile(engine: Engine, config: TrainConfig) -> str | None:
    """Returns why the steps do not compile, or None if they do."""
    try:
        warm_up(engine)
    except Exception as error:  # the compiler stack raises its own kinds, none of them a common base
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if config.compile != "auto":
            message = f"--compile {config.compile}: {config.arch} does not compile ({reason}); use off"
            raise InputError(message) from error
        return reason
    return None


def warm_up(engine: Engine) -> None:
    """Runs every step at every size and restores the state, so that compiling is not part of what is timed.

    No rank waits for another in here: if one fails, the others learn of it afterwards.
    """
    state = copy.deepcopy((engine.shared_state(), engine.rank_state()))
    rows = engine.queue.batch_size
    labels = torch.zeros(rows, dtype=torch.int64, device=engine.device)
    ids, valid = torch.arange(rows, device=engine.device), labels == 0

    def pictures(size: int) -> Tensor:
        images = torch.randn((size, size, 3), device=engine.device).to(engine.queue.images.dtype)
        return images.expand(rows, -1, -1, -1).contiguous().permute(0, 3, 1, 2)

    evaluated = pictures(engine.image_size)
    objective = engine.train_step.objective
    local = objective.no_sync() if isinstance(objective, DistributedDataParallel) else contextlib.nullcontext()
    with local:
        for size in engine.train_sizes:
            batch = Batch(pictures(size), labels, ids, valid, rows)
            for _ in range(3):  # compiles, records CUDA graphs, replays them
                engine.score(batch)
                engine.enqueue(batch)
                engine.train()
                engine.evaluate(evaluated, labels, valid)
    engine.load_states(*state)
