"""Builds an engine, compiled where that works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastast.config import TrainConfig
from fastast.device import Runtime, is_out_of_memory
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.train.engine import Engine


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
        engine.warm_up()
    except Exception as error:  # the compiler stack raises its own kinds, none of them a common base
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if config.compile != "auto":
            message = f"--compile {config.compile}: {config.arch} does not compile ({reason}); use off"
            raise InputError(message) from error
        return reason
    return None
