"""What a run spends: work counted by hooks on its network, and how far it is through its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(slots=True)
class Work:
    """Counts what really goes through a network, picture by picture, by hooks on it.

    A picture of another size counts by its area. Nothing is counted while paused, as in an evaluation.

    Attributes:
        image_size: the full side, pixels.
        forward: forward passes of full-size pictures, with or without gradient.
        backward: pictures in backward passes, those that a mask had zeroed included: they cost as much.
    """

    image_size: int
    forward: float = 0.0
    backward: float = 0.0
    _paused: int = field(default=0, repr=False)

    @property
    def units(self) -> float:
        """Forward units: 1 for a forward, 2 for a backward."""
        return self.forward + 2 * self.backward

    def count(self, network: nn.Module) -> nn.Module:
        """Counts `network` and every copy that is made of it; returns it."""

        # A function, not a method: copying a network copies the object of a method with it.
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._paused:
                return
            rows, side = len(inputs[0]), inputs[0].shape[-1]
            share = (side / self.image_size) ** 2
            self.forward += rows * share
            if output.requires_grad:
                output.register_hook(lambda gradient: self._back(len(gradient) * share))

        network.register_forward_hook(seen)
        return network

    def _back(self, pictures: float) -> None:
        self.backward += pictures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing within the block, or in the function that it decorates."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1


class Spending:
    """How far a run is through its budget.

    Args:
        limit: the budget.
        spent: what is spent so far, in the same unit.

    Attributes:
        is_over: no further step belongs to the budget: the number of steps is the one that comes nearest to it.
    """

    def __init__(self, limit: float, spent: Callable[[], float]) -> None:
        self.limit, self.spent = limit, spent
        self.is_over = False
        self._before = spent()

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        return min(1.0, self.spent() / self.limit)

    def finish_step(self) -> None:
        """To be called after every step; the next one is expected to cost as much."""
        now = self.spent()
        step, self._before = now - self._before, now
        self.is_over = now + step / 2 >= self.limit
