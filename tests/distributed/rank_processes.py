"""The ranks of a run as processes of this machine, forked from one that has imported torch."""

from __future__ import annotations

import faulthandler
import itertools
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer step imports otherwise, in every process
from torch import nn

from fastast.cli import main
from fastast.distributed.process_group import open_ranks
from fastast.session import session
from tests import processes
from tests.nets import tiny
from tests.processes import FORKS

FORKS.set_forkserver_preload([processes.__name__, __name__])

# As torchrun sets them for ranks that it started again after a failure.
RESTARTED = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": 1, "TORCHELASTIC_MAX_RESTARTS": 2}
# After which a rank shows its stacks and ends, whatever has become of the test.
DEADLINE_S = 100
_NUMBERS = itertools.count()


class RankProcesses:
    """Processes that were started as the ranks of one run; a context manager that kills them at its end.

    Args:
        folder: takes what they print and return.
        size: ranks.
        target: called in each of them; of a module's top level.
        arguments: of the call.
        variables: further environment variables.
    """

    def __init__(
        self, folder: Path, size: int, target: Callable[..., Any], *arguments: Any, **variables: object
    ) -> None:
        self._folder = folder / f"ranks{next(_NUMBERS)}"
        self._folder.mkdir(parents=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        common = {**os.environ, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        common.update(MASTER_PORT=port, OMP_NUM_THREADS=1, **variables)
        self.processes = []
        for rank in range(size):
            environment = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
            log, result = self._folder / f"log{rank}", self._folder / f"result{rank}"
            process = FORKS.Process(target=_run_rank, args=(environment, log, result, target, arguments))
            process.start()
            self.processes.append(process)

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def said(self, rank: int) -> str:
        """What a rank printed."""
        return (self._folder / f"log{rank}").read_text()

    def error_lines(self) -> list[str]:
        """The lines of all ranks that tell an error."""
        said = (self.said(rank) for rank in range(len(self.processes)))
        return [line for text in said for line in text.splitlines() if "error" in line]

    def codes(self) -> list[int]:
        """Exit codes of all ranks, none of which may hang."""
        for process in self.processes:
            process.join(DEADLINE_S + 20)
        logs = "\n".join(f"rank {rank}:\n{self.said(rank)}" for rank in range(len(self.processes)))
        assert "Timeout (" not in logs, logs
        return [process.exitcode for process in self.processes]

    def results(self) -> list[Any]:
        """What the calls of all ranks returned."""
        codes = self.codes()
        assert codes == [0] * len(codes), "\n".join(self.said(rank) for rank in range(len(codes)))
        return [pickle.loads((self._folder / f"result{rank}").read_bytes()) for rank in range(len(codes))]


def results(folder: Path, size: int, target: Callable[..., Any], *arguments: Any, **variables: object) -> list[Any]:
    """What a call returned on each of so many ranks, all of which must exit with 0."""
    with RankProcesses(folder, size, target, *arguments, **variables) as ranks:
        return ranks.results()


def train(folder: Path, size: int, arguments: Sequence[str], **variables: object) -> list[int]:
    """Exit codes of `fastast train` on so many ranks."""
    with RankProcesses(folder, size, command, list(arguments), **variables) as ranks:
        return ranks.codes()


def command(arguments: Sequence[str], prepare: Callable[..., None] | None = None, *more: Any) -> None:
    """One rank of `fastast train`; `prepare` is called first."""
    if prepare is not None:
        prepare(*more)
    sys.exit(main(["train", *arguments]))


def with_ranks(target: Callable[..., Any], *arguments: Any, timeout_s: float = 30) -> Any:
    """Calls `target` with the opened `Ranks`."""
    with open_ranks("cpu", timeout_s) as ranks:
        return target(ranks, *arguments)


def _run_rank(
    environment: dict[str, str], log: Path, result: Path, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
    torch.set_num_threads(1)
    session.write_report = lambda folder: None
    result.write_bytes(pickle.dumps(target(*arguments)))


def plain(num_classes: int) -> nn.Module:
    """`tiny` without batch normalisation, for `--arch tests.distributed.rank_processes:plain`."""
    return nn.Sequential(*(layer for layer in tiny(num_classes) if not isinstance(layer, nn.BatchNorm2d)))
