"""Redistributes the state that each rank has of its own to another number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def reshard_module(module: nn.Module, states: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """State dicts of a module on `size` ranks, from those of all ranks of a checkpoint.

    New ranks get the state of the first, with two exceptions that submodules declare themselves. RANK_COUNTS names
    buffers that each rank counts on its own: the first rank gets the sums, the others zeros. A submodule with a
    `reshard` function redistributes its extra state.

    Args:
        module: the module on this rank; only its structure is read.
        states: its `state_dict` on every rank of the checkpoint, left as they are.
        size: the new number of ranks.
    """
    old = len(states)
    shards = [{**states[rank if rank < old else 0]} for rank in range(size)]
    for path, part in module.named_modules():
        prefix = path and path + "."
        for name in getattr(part, "RANK_COUNTS", ()):
            total = sum(state[prefix + name] for state in states)
            for rank, shard in enumerate(shards):
                shard[prefix + name] = total if rank == 0 else torch.zeros_like(total)
        if hasattr(part, "reshard"):
            key = prefix + "_extra_state"
            for shard, extra in zip(shards, part.reshard([state[key] for state in states], size), strict=True):
                shard[key] = extra
    return shards
