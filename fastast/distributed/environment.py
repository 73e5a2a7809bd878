"""Rank and world size, from the variables that a launcher sets: `torchrun`, or SLURM's `srun`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from fastast.errors import InputError


@dataclass(frozen=True, slots=True)
class WorldInfo:
    """Rank and world size of this process, as its launcher set them.

    Attributes:
        rank, size: which process of how many.
        local_rank, local_size: the same among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def find_world(environ: dict[str, str] | os._Environ[str] = os.environ) -> WorldInfo:
    """Reads the variables of `torchrun` or, without those, of a SLURM job step (`srun`).

    For a SLURM step MASTER_ADDR and MASTER_PORT are set in `environ` unless they are there: the step's first machine,
    and a port that follows from the job's number.

    Raises:
        InputError: the variables contradict one another.
    """
    try:
        if "RANK" in environ or int(environ.get("WORLD_SIZE", 1)) > 1:
            world = WorldInfo(
                rank=int(environ["RANK"]),
                size=int(environ["WORLD_SIZE"]),
                local_rank=int(environ.get("LOCAL_RANK", 0)),
                local_size=int(environ.get("LOCAL_WORLD_SIZE", 1)),
            )
        elif int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun alone, not in a batch script
            local_size = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
            world = WorldInfo(
                rank=int(environ["SLURM_PROCID"]),
                size=int(environ["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(environ["SLURM_LOCALID"]),
                local_size=int(local_size[0]) if local_size else 1,
            )
            environ.setdefault("MASTER_ADDR", _first_host(environ["SLURM_STEP_NODELIST"]))
            environ.setdefault("MASTER_PORT", str(20000 + int(environ["SLURM_JOB_ID"]) % 10000))
        else:
            world = WorldInfo()
    except KeyError as error:
        raise InputError(f"a launcher set some variables but not {error}; start with torchrun or srun") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"the launcher's variables make no sense ({error}); start with torchrun or srun") from error
    if not 0 <= world.rank < world.size:
        raise InputError(f"RANK={world.rank}: must be below WORLD_SIZE={world.size}; start with torchrun or srun")
    return world


def _first_host(nodes: str) -> str:
    """The first of a SLURM node list such as gpu[003-007,9],login1."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise ValueError(f"node list {nodes!r}")
    return match[1] + (match[2] or "")


def launched_by_torchrun() -> bool:
    """Whether the exit code goes to `torchrun`, which takes any but 0 for a failure."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_elastic() -> bool:
    """Whether `torchrun` may start this process again, perhaps among more or fewer others (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_restart() -> bool:
    """Whether `torchrun` started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
