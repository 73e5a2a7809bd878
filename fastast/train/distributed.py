"""The ranks of a run: which process of how many this is, and what they tell one another.

A run has one process for each GPU. `torchrun` or SLURM's `srun` starts them; a process that neither started is the only
one, and then nothing here talks to anybody. Tensors of a GPU travel by NCCL, those of the host by gloo.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fastast.errors import InputError, ReportedByOtherRank
from fastast.train.meeting import meet
from fastast.train.placement import Placement, find_placement, launched_by_torchrun

T = TypeVar("T")

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
# As gloo, NCCL and torch's store put it when a rank is gone or a link is cut.
_CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed ?out|timeout|remote (error|process)|system error"
    r"|gloo/transport|no route to host|unreachable",
    re.IGNORECASE,
)
_TOLD, _HEARD = "fastast/error", "fastast/heard"
_TELL_TIMEOUT = datetime.timedelta(seconds=2)
_JOIN_TIMEOUT = datetime.timedelta(minutes=10)  # torchrun's own
_FOR_EVER = datetime.timedelta(days=30)


class RankLost(Exception):
    """Another rank ended or cannot be reached."""


class Ranks:
    """What the processes of a run tell one another. With one process every call is local and free.

    Every method that takes part in a conversation must be called on all ranks, in the same order.

    Args:
        placement: of this process; with a size above 1 torch's default process group must stand.
        group: torch's group for the training; None: the default one.
        patient: the same for `decide` and `in_turn`, without a time limit: a first scan of the data may take long.

    Attributes:
        rank, size, local_rank, local_size: of the placement.
        group: as given.
    """

    def __init__(
        self,
        placement: Placement | None = None,
        group: dist.ProcessGroup | None = None,
        patient: dist.ProcessGroup | None = None,
    ) -> None:
        placement = placement or Placement()
        self.group, self._patient = group, patient
        self.rank, self.size = placement.rank, placement.size
        self.local_rank, self.local_size = placement.local_rank, placement.local_size

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def gather(self, vector: Tensor) -> Tensor:
        """The vectors of all ranks.

        Args:
            vector: [n], on any device; the host does not wait for a GPU.

        Returns:
            [size, n], the same bits on every rank.
        """
        if self.size == 1:
            return vector[None]
        rows = vector.new_empty(self.size * len(vector))
        dist.all_gather_into_tensor(rows, vector.contiguous(), group=self.group)
        return rows.view(self.size, -1)

    def reduce(self, tensor: Tensor, operation: str = "sum") -> Tensor:
        """Replaces a tensor, in place, by the "sum", "max" or "min" over the ranks; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor, _OPERATIONS[operation], group=self.group)
        return tensor

    def largest(self, value: float) -> float:
        """The largest of the ranks' numbers; the hosts wait for one another."""
        return value if self.size == 1 else float(self.reduce(torch.tensor(value, dtype=torch.float64), "max"))

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over the ranks of some numbers; the hosts wait for one another."""
        if self.size == 1:
            return list(values)
        return self.reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def share(self, value: T) -> list[T]:
        """The values of all ranks, on every rank; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def collect(self, value: T) -> list[T]:
        """The values of all ranks on the first one; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def decide(self, function: Callable[[], T]) -> T:
        """Calls a function on the first rank; every rank gets what it returned, or ends as it does.

        Raises:
            InputError: the function did.
        """
        if self.size == 1:
            return function()
        answer: list[Any] = [None, None]
        error: InputError | None = None
        if self.is_first:
            try:
                answer = [function(), None]
            except InputError as refused:
                error, answer = refused, [None, str(refused)]
        dist.broadcast_object_list(answer, group=self._patient)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise ReportedByOtherRank(answer[1])
        return answer[0]

    def in_turn(self, function: Callable[[], T]) -> T:
        """Calls a function on the first rank of each machine, then on the others, which find its caches filled.

        Raises:
            InputError: the function did, here or on another rank.
        """
        result: T | None = None
        for turn in (True, False):
            error: InputError | None = None
            if (self.local_rank == 0) == turn:
                try:
                    result = function()
                except InputError as refused:
                    error = refused
            failed = torch.tensor(int(error is not None))
            if self.size > 1:
                dist.all_reduce(failed, group=self._patient)
            if error is not None:
                raise error
            if failed:
                raise ReportedByOtherRank("another rank was refused")
        assert result is not None
        return result

    def exchange(self, tensors: Sequence[Tensor], *, to: int | None, source: int | None) -> None:
        """Sends tensors to a rank, or fills them with those that another sends; of one shape and type on both.

        Args:
            tensors: contiguous.
            to: the rank to send to, or None.
            source: the rank to receive from, or None.
        """
        # As bytes: gloo does not know every number format.
        parts = [tensor.view(torch.uint8) for tensor in tensors]
        if to is not None:
            operations = [dist.P2POp(dist.isend, part, to, self.group) for part in parts]
        elif source is not None:
            operations = [dist.P2POp(dist.irecv, part, source, self.group) for part in parts]
        else:
            return
        for work in dist.batch_isend_irecv(operations):
            work.wait()


@contextlib.contextmanager
def open_ranks(device: str, timeout_s: float) -> Iterator[Ranks]:
    """Joins the ranks that a launcher started.

    Args:
        device: the option: "auto", "cuda" or "cpu".
        timeout_s: how long a rank waits for another in training; 0: for ever.

    Raises:
        InputError: they do not find one another, or there are more processes than GPUs.
        RankLost: another rank ended while they talked.
    """
    placement = find_placement()
    if placement.size == 1:
        yield Ranks(placement)
        return
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        if placement.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"{placement.local_size} processes on a machine with {torch.cuda.device_count()} usable GPUs: start "
                "one for each (--nproc auto does), all of which see all GPUs (with srun: no --gpus-per-task)"
            )
        torch.cuda.set_device(placement.local_rank)
    try:
        store, _, _ = next(dist.rendezvous("env://", placement.rank, placement.size, timeout=_JOIN_TIMEOUT))
        if launched_by_torchrun():
            store = meet(store, placement, _JOIN_TIMEOUT.total_seconds())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
            store=store,
            rank=placement.rank,
            world_size=placement.size,
            timeout=_JOIN_TIMEOUT,
        )
        limits = datetime.timedelta(seconds=timeout_s) if timeout_s else _FOR_EVER, _FOR_EVER
        group, patient = (cast(dist.ProcessGroup, dist.new_group(timeout=limit)) for limit in limits)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"rank {placement.rank} of {placement.size} does not reach the others by way of {where} "
            f"({_first_line(error)}); check MASTER_ADDR, firewalls, and GLOO_SOCKET_IFNAME"
        ) from error
    try:
        yield Ranks(placement, group, patient)
    except InputError as error:
        if placement.rank == 0:
            _tell(str(error), placement.size - 1)
        elif _is_told(str(error)):
            raise ReportedByOtherRank(str(error)) from error
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_lost(error):
            raise
        raise RankLost(
            f"rank {placement.rank} of {placement.size} ({socket.gethostname()}) lost the others: one of them ended, "
            f"waits for its data, or the network between them is cut ({_first_line(error)})"
        ) from error
    dist.destroy_process_group()  # not after an error: others may be stuck, and it would wait for them


def _tell(message: str, others: int) -> None:
    """Tells the other ranks what the first one ends with, and gives them a moment to hear it: it has the store."""
    store = dist.distributed_c10d._get_default_store()
    store.set(_TOLD, message)
    give_up = time.monotonic() + _TELL_TIMEOUT.total_seconds()
    while store.add(_HEARD, 0) < others and time.monotonic() < give_up:
        time.sleep(0.02)


def _is_told(message: str) -> bool:
    """Whether the first rank ends with the same error, so that one line is enough."""
    store = dist.distributed_c10d._get_default_store()
    try:
        store.wait([_TOLD], _TELL_TIMEOUT)
        told = store.get(_TOLD).decode()
        store.add(_HEARD, 1)
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


def fullest_to_emptiest(fills: Sequence[int], batch_size: int) -> list[tuple[int, int, int]]:
    """Which rows a balance step moves, so that no rank waits for one that has nothing while others overflow.

    The fullest rank gives to the emptiest, the second fullest to the second emptiest, and so on, half of what they
    differ by but no more than a batch. Ranks that differ by less than a batch are left alone.

    Args:
        fills: waiting rows of every rank.
        batch_size: rows of a batch, B.

    Returns:
        (from, to, rows) of each move; a rank is in one at most.
    """
    order = sorted(range(len(fills)), key=lambda rank: (fills[rank], rank))
    moves = []
    for place in range(len(order) // 2):
        empty, full = order[place], order[-1 - place]
        surplus = fills[full] - fills[empty]
        if surplus < batch_size:
            break
        moves.append((full, empty, min(batch_size, surplus // 2)))
    return moves
