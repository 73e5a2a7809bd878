"""What a forward costs at one picture size, against another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastast.errors import InputError


def forward_flops(network: nn.Module, size: int) -> int:
    """Floating-point operations of one picture's forward: those of matrix products, convolutions and attention.

    Args:
        network: in eval mode, on its device.
        size: side of the picture, pixels.
    """
    picture = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(picture)
    return counter.get_total_flops()


def forward_units(network: nn.Module, sizes: Iterable[int], image_size: int) -> dict[int, float]:
    """The cost of one picture's forward at each size, in forwards at `image_size`, by counted operations.

    Raises:
        InputError: nothing was counted, as in a network of elementwise operations only.
    """
    sizes = set(sizes) | {image_size}
    if len(sizes) == 1:
        return {image_size: 1.0}
    flops = {size: forward_flops(network, size) for size in sorted(sizes)}
    if not flops[image_size]:
        raise InputError("--train-size: torch counts no operations in this --arch, so sizes have no cost; leave it out")
    return {size: count / flops[image_size] for size, count in flops.items()}
