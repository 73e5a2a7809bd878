"""Communication between the ranks of a run: one process for each GPU.

`torchrun` or SLURM's `srun` starts them. A process that neither started is the only one, and communicates with nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastast.distributed.environment import WorldInfo
from fastast.errors import InputError, ReportedByOtherRank

T = TypeVar("T")

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Ranks:
    """The collectives that a run needs. With one process every call is local and free.

    Collective methods must be called on all ranks, in the same order.

    Args:
        world: of this process; with a size above 1 torch's default process group must be initialised.
        group: torch's group for the training; None: the default one.
        patient: the same for `call_on_first` and `call_in_turn`, without a time limit: a first scan of the data may
            take long.

    Attributes:
        rank, size, local_rank, local_size: of the world.
        group: as given.
    """

    def __init__(
        self,
        world: WorldInfo | None = None,
        group: dist.ProcessGroup | None = None,
        patient: dist.ProcessGroup | None = None,
    ) -> None:
        world = world or WorldInfo()
        self.group, self._patient = group, patient
        self.rank, self.size = world.rank, world.size
        self.local_rank, self.local_size = world.local_rank, world.local_size

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def all_gather(self, vector: Tensor) -> Tensor:
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

    def all_reduce(self, tensor: Tensor, operation: str = "sum") -> Tensor:
        """Replaces a tensor, in place, by the "sum" or "max" over the ranks; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor, _OPERATIONS[operation], group=self.group)
        return tensor

    def all_max(self, value: float) -> float:
        """The largest of the ranks' numbers; the hosts wait for each other."""
        return value if self.size == 1 else float(self.all_reduce(torch.tensor(value, dtype=torch.float64), "max"))

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, on every rank; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_object(self, value: T) -> list[T]:
        """The values of all ranks on the first one; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def refuse(self, message: str) -> NoReturn:
        """Ends the run on all ranks, which call this alike; the first one prints the message.

        Raises:
            InputError: always.
        """
        raise InputError(message) if self.is_first else ReportedByOtherRank(message)

    def call_on_first(self, function: Callable[[], T]) -> T:
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

    def call_in_turn(self, function: Callable[[], T]) -> T:
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

    def send_or_receive(self, tensors: Sequence[Tensor], *, to: int | None, source: int | None) -> None:
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
