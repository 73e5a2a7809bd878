"""Joins the ranks that a launcher started, and reports how they end.

Tensors of a GPU are sent by NCCL, those of the host by gloo.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist

from fastast.distributed.environment import find_world, launched_by_torchrun
from fastast.distributed.ranks import Ranks
from fastast.distributed.rendezvous import rendezvous
from fastast.errors import InputError, ReportedByOtherRank

# As gloo, NCCL and torch's store put it when a rank is gone or a link is cut.
_CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed ?out|timeout|remote (error|process)|system error"
    r"|gloo/transport|no route to host|unreachable",
    re.IGNORECASE,
)
_TOLD, _READ = "fastast/error", "fastast/read"
_TELL_TIMEOUT = datetime.timedelta(seconds=2)
_JOIN_TIMEOUT = datetime.timedelta(minutes=10)  # torchrun's own
_FOR_EVER = datetime.timedelta(days=30)


class RankLost(Exception):
    """Another rank ended or cannot be reached."""


@contextlib.contextmanager
def open_ranks(device: str, timeout_s: float) -> Iterator[Ranks]:
    """Joins the ranks that a launcher started.

    Args:
        device: the option: "auto", "cuda" or "cpu".
        timeout_s: how long a rank waits for another in training; 0: for ever.

    Raises:
        InputError: they do not find each other, or there are more processes than GPUs.
        RankLost: another rank ended during the run.
    """
    world = find_world()
    if world.size == 1:
        yield Ranks(world)
        return
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        if world.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"{world.local_size} processes on a machine with {torch.cuda.device_count()} usable GPUs: start "
                "one for each (--nproc auto does), all of which see all GPUs (with srun: no --gpus-per-task)"
            )
        torch.cuda.set_device(world.local_rank)
    try:
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=_JOIN_TIMEOUT))
        if launched_by_torchrun():
            store = rendezvous(store, world, _JOIN_TIMEOUT.total_seconds())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=_JOIN_TIMEOUT,
        )
        limits = datetime.timedelta(seconds=timeout_s) if timeout_s else _FOR_EVER, _FOR_EVER
        group, patient = (cast(dist.ProcessGroup, dist.new_group(timeout=limit)) for limit in limits)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"rank {world.rank} of {world.size} does not reach the others by way of {where} "
            f"({_first_line(error)}); check MASTER_ADDR, firewalls, and GLOO_SOCKET_IFNAME"
        ) from error
    try:
        yield Ranks(world, group, patient)
    except InputError as error:
        if world.rank == 0:
            _tell(str(error), world.size - 1)
        elif _is_told(str(error)):
            raise ReportedByOtherRank(str(error)) from error
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_lost(error):
            raise
        raise RankLost(
            f"rank {world.rank} of {world.size} ({socket.gethostname()}) lost the others: one of them ended, "
            f"waits for its data, or the network between them is cut ({_first_line(error)})"
        ) from error
    dist.destroy_process_group()  # not after an error: others may be stuck, and it would wait for them


def _tell(message: str, others: int) -> None:
    """Tells the other ranks the error of the first, and waits until they have read it: the first hosts the store."""
    store = dist.distributed_c10d._get_default_store()
    store.set(_TOLD, message)
    give_up = time.monotonic() + _TELL_TIMEOUT.total_seconds()
    while store.add(_READ, 0) < others and time.monotonic() < give_up:
        time.sleep(0.02)


def _is_told(message: str) -> bool:
    """Whether the first rank ends with the same error, so that one line is enough."""
    store = dist.distributed_c10d._get_default_store()
    try:
        store.wait([_TOLD], _TELL_TIMEOUT)
        told = store.get(_TOLD).decode()
        store.add(_READ, 1)
        return told == message
    except RuntimeError:  # it has none, or has ended
        return False


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another rank did not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
