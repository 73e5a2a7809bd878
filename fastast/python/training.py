"""`fastast.train(...)`: the training of the command line, called from Python."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastast.checkpoint.resume import new_folder, removed_if_empty
from fastast.config.config_file import option_named, resolve
from fastast.config.options import checked_value, command_words
from fastast.distributed.environment import find_world
from fastast.distributed.launch import count_processes
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.loggers.notebook import NotebookReporter, in_notebook
from fastast.python.run import Run
from fastast.run_folder import RunFolder
from fastast.session.session import train as train_session
from fastast.signals import EXIT_MAX_TIME

Callback = Callable[[dict[str, Any]], object]


def train(
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool | str | os.PathLike[str] = False,
    force: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Trains as `fastast train` does: the same code, defaults and checks, and the same run folder.

    Args:
        callbacks: each is called with every epoch's line of `metrics.jsonl`, a dict, by the first rank alone. One
            that returns True stops the run with a checkpoint, from which `resume=True` goes on.
        resume: True: start, continue, or return a finished run, that of `out`; or a checkpoint file.
        force: with `resume`, continue although options have changed.
        quiet: print nothing.
        options: those of the command line, by name: `data="pictures", arch="resnet18", budget="40m"`.

    Returns:
        The run; `summary["stopped"]` says why it was stopped early, if it was.

    Raises:
        InputError: what the command line says in one line.
        KeyboardInterrupt: it was interrupted, with a checkpoint. SystemExit: another signal asked it to stop.
        RuntimeError: of several processes one failed; it has printed why.
    """
    chosen = _checked(options)
    source = None if resume is False else "auto" if resume is True else os.fspath(resume)
    if callbacks and count_processes(chosen.get("nproc"), chosen.get("device", "auto")) > 1:
        raise InputError("callbacks are not called in other processes: leave nproc out, or start with torchrun")
    unused = contextlib.ExitStack()
    continues = source is not None and "out" in chosen and RunFolder(chosen["out"]).holds_run()
    if source in (None, "auto") and not continues:
        config = resolve(chosen)
        if "out" not in chosen and source is None:
            if find_world().size > 1:
                raise InputError("name the run's folder with out=, since all processes have to agree on it")
            folder = new_folder(config)
            unused.enter_context(removed_if_empty(folder))
            chosen["out"] = str(folder.path)
    # For the summary, and for other processes.
    argv = ["train", *command_words({**chosen, "resume": source, "force": force})]
    reporter = NotebookReporter() if in_notebook() else Reporter()
    if quiet:
        reporter = Reporter(Console(quiet=True))
    with unused:
        code = train_session(chosen, resume=source, force=force, argv=argv, reporter=reporter, callbacks=callbacks)
    if code == 130:
        raise KeyboardInterrupt
    if code > 128:
        raise SystemExit(code)
    if code not in (0, EXIT_MAX_TIME):
        raise RuntimeError(f"the processes of the run ended with code {code}")
    return Run(chosen.get("out") or Path(str(source)).resolve().parent.parent)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were chosen, by field name; None counts as not chosen."""
    chosen = {}
    for name, value in options.items():
        field = option_named(name)
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if value is not None:
            chosen[field.name] = checked_value(field, value)
    return chosen
