"""Gradients averaged over the ranks."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastast.distributed.ranks import Ranks

# torch 2.15 has renamed it.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BROADCAST: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False,
}


def averaged(objective: nn.Module, network: nn.Module, image_size: int, ranks: Ranks) -> nn.Module:
    """Makes backward through `objective` leave the mean over the ranks in every gradient.

    Parameters and buffers are copied from the first rank once, here; after that buffers may differ between ranks
    (BatchNorm's statistics are each rank's own). A NaN on one rank becomes a NaN on all.

    Args:
        objective: its first output is what backward starts from; its parameters are those of `network`.
        network: the network within it, on its device.
        image_size: of the pictures that it takes, pixels.
        ranks: who takes part; with one, `objective` is returned as it is.
    """
    if ranks.size == 1:
        return objective
    return DistributedDataParallel(
        objective,
        process_group=ranks.group,
        **_NO_BROADCAST,
        gradient_as_bucket_view=True,
        # The search costs a walk over the graph at every step.
        find_unused_parameters=_has_unused(network, image_size),
    )


def _has_unused(network: nn.Module, image_size: int) -> bool:
    """Whether backward reaches less than all parameters, as with the auxiliary heads of Inception and GoogLeNet."""
    trial = copy.deepcopy(network).train()
    blank = torch.zeros(2, 3, image_size, image_size, device=next(trial.parameters()).device)
    with torch.random.fork_rng(devices=[]):
        output = trial(blank)
    getattr(output, "logits", output).sum().backward()
    return any(p.grad is None for p in trial.parameters() if p.requires_grad)


@torch.no_grad()
def average_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Gives all ranks the mean of their floating-point buffers (BatchNorm's), so that they evaluate one network.

    Args:
        network: in training mode; parts in eval mode are frozen, the same on all ranks, and stay so to the bit.
        ranks: who takes part.
    """
    if ranks.size == 1:
        return
    for module in network.modules():
        for buffer in module.buffers(recurse=False):
            if module.training and buffer.is_floating_point():
                ranks.all_reduce(buffer).div_(ranks.size)
