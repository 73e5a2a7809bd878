"""`--nproc`: one process for each GPU of this machine, started by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastast.cores import usable_cores
from fastast.distributed.parent_death import with_parent_death_signal
from fastast.errors import InputError
from fastast.signals import stop_signals_handled

# Where a rank leaves the exit code of the run, since torchrun has but 0 and 1. Read by the command line's `main`.
EXIT_FILE = "FASTAST_EXIT_FILE"
# When the command began, for its ranks: seconds on the monotonic clock of this machine.
BEGAN = "FASTAST_BEGAN"


def count_processes(nproc: str | None, device: str) -> int:
    """Processes that `--nproc` asks for; without it 1.

    Args:
        nproc: a number, or "auto" for one on each visible GPU.
        device: the option: "auto", "cuda" or "cpu".

    Raises:
        InputError: neither a number nor auto.
    """
    if nproc is None:
        return 1
    if nproc == "auto":
        return max(1, torch.cuda.device_count()) if device != "cpu" else 1  # counts without opening a context
    if not (isinstance(nproc, str) and nproc.isdecimal() and int(nproc) > 0):
        raise InputError(f"--nproc {nproc}: give a number of processes, or auto")
    return int(nproc)


def _without_nproc(argv: list[str]) -> list[str]:
    """A command line without the option, which torchrun would take for its own."""
    kept = []
    for before, argument in zip(["", *argv], argv, strict=False):
        if argument != "--nproc" and not argument.startswith("--nproc=") and before != "--nproc":
            kept.append(argument)
    return kept


def launch(num_processes: int, argv: list[str], began_s: float) -> int:
    """Runs `fastast ARGV` in so many processes, and waits for them.

    Signals that ask a run to stop are forwarded, so that it ends with a checkpoint.

    Args:
        num_processes: how many.
        argv: the command line.
        began_s: when the command began, on the monotonic clock.

    Returns:
        The exit code that one process would have had.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    command += ["--nproc-per-node", str(num_processes), "-m", "fastast", *_without_nproc(argv)]
    with tempfile.TemporaryDirectory() as folder:
        exit_file = Path(folder) / "exit"
        environment[EXIT_FILE], environment[BEGAN] = str(exit_file), str(began_s)
        # In its own session, so that a Ctrl-C arrives once: a second one would end it without a checkpoint.
        process = subprocess.Popen(with_parent_death_signal(command), env=environment, start_new_session=True)
        asked: list[int] = []

        def forward(signum: int, frame: Any) -> None:
            asked.append(signum)
            process.send_signal(signum if signum == signal.SIGINT else signal.SIGTERM)

        with stop_signals_handled(forward):
            failed = process.wait() != 0
        code = int(exit_file.read_text()) if exit_file.exists() else int(failed)
    return 128 + asked[0] if asked and code > 128 else code
