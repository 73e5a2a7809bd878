"""An exponential moving average (EMA) of the weights that follows the length of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Mean age of the averaged weights, as a share of the steps so far.
AGE = 0.05


class WeightAverage:
    """Averages parameters and floating-point buffers (BatchNorm's statistics), step by step, on their device.

    The decay of step t is (1 - 1/t)^(1/AGE - 1): it grows with the run, so that the average has the same relative
    width after ten steps and after a million, and no length has to be known. Source: the power function EMA of Karras
    et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, section 3.1.

    Args:
        model: the network, on its device. Infinite buffers, such as masks, are left out: they are constants.

    Attributes:
        decay: of the last step; None before the first.
        is_better: whether it did better than the plain weights in the last evaluation, if that tried both.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._num_parameters = len(list(model.parameters()))
        buffers = [b for b in model.buffers() if b.is_floating_point() and bool(b.isfinite().all())]
        self._sources = [*model.parameters(), *buffers]
        self._tensors = [source.detach() for source in self._sources]
        self._averages = [tensor.clone() for tensor in self._tensors]
        self._num_steps = 0
        self.is_better = False

    @property
    def decay(self) -> float | None:
        """As above."""
        return (1 - 1 / self._num_steps) ** (1 / AGE - 1) if self._num_steps else None

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step. One that was undone counts once more for what was before it."""
        self._num_steps += 1
        assert self.decay is not None
        torch._foreach_lerp_(self._averages, self._tensors, 1 - self.decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Within it the network has the averaged weights, in its own memory, so that nothing is compiled anew."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for tensor, average in zip(self._tensors, self._averages, strict=True):
            held = tensor.clone()
            tensor.copy_(average)
            average.copy_(held)

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict with the averages in the place of what is averaged."""
        averages = {id(tensor): average for tensor, average in zip(self._sources, self._averages, strict=True)}
        return {name: averages.get(id(value), value) for name, value in self._model.state_dict(keep_vars=True).items()}

    def shared_state(self) -> dict[str, Any]:
        """What all ranks have in common."""
        return {"steps": self._num_steps, "parameters": self._averages[: self._num_parameters]}

    def rank_state(self) -> list[Tensor]:
        """What each rank has of its own: the averages of its buffers."""
        return self._averages[self._num_parameters :]

    @torch.no_grad()
    def load(self, shared: dict[str, Any] | None, own: list[Tensor] | None) -> None:
        """Loads both states; without them the average starts anew."""
        self._num_steps = 0 if shared is None else shared["steps"]
        if shared is not None and own is not None:
            for average, saved in zip(self._averages, [*shared["parameters"], *own], strict=True):
                average.copy_(saved)
