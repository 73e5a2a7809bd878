"""Continuing with another number of ranks: what a run knows is kept, and shared out anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastast.energy.parts import PartEnergy, merge_part_ranks
from fastast.energy.reading import Reading, merge_ranks
from fastast.gate import Rows
from fastast.train.shards import QUEUE, own_part, part_of
from fastast.train.status import NUM_FIELDS, combined

# What each rank counts for itself: the first gets the sums.
_COUNTS = {
    "score_step": ("decision.gate.controller.nan_count", "decision.hist"),
    "train_step": ("loss_sum", "loss_rows"),
}


def for_ranks(state: dict[str, Any], size: int) -> dict[str, Any]:
    """A trainer's state for another number of ranks; as it is if it has that number.

    Waiting rows are shared out evenly in the order of the ranks, and counts and joules go to the first. New ranks start
    with the batch statistics of the first. The batch of each rank stays, so that of all of them changes; the learning
    rate does not.

    Args:
        state: of `Trainer.state_dict`; left as it is.
        size: ranks that will load it.
    """
    old = 1 + len(state["ranks"])
    if size == old:
        return state
    parts = [part_of(state, rank) for rank in range(old)]
    queues, moved = _share_rows([part["engine"]["score_step"][QUEUE] for part in parts], size)
    new = []
    for rank in range(size):
        part = parts[min(rank, old - 1) if rank < old else 0]
        engine = {**part["engine"], "score_step": {**part["engine"]["score_step"], QUEUE: queues[rank]}}
        if rank >= old:  # its own, or all would drop out the same units
            engine.update(rng=None, cuda_rng=None)
        for step, names in _COUNTS.items():
            engine[step] = {**engine[step]}
            for name in names:
                total = sum(other["engine"][step][name] for other in parts)
                engine[step][name] = total if rank == 0 else torch.zeros_like(total)
        new.append({**part, "engine": engine, "energy": None})
    first = new[0]
    journal = {**first["journal"], "moved": moved}
    if journal["report"] is not None:
        rows = journal["report"].numpy().reshape(old, NUM_FIELDS)
        journal["report"] = torch.zeros(size, NUM_FIELDS, dtype=torch.float64)
        journal["report"][0] = torch.tensor(combined(rows))
        journal["report"] = journal["report"].flatten()
    first = {**first, "journal": journal, "energy": _merged_energy([part["energy"] for part in parts])}
    buffers = list(state["ranks"][0]["buffers"]) if old > 1 else []
    return {**first, "ranks": [own_part(part, buffers) for part in new[1:]]}


def _share_rows(queues: Sequence[dict[str, Any]], size: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Queues with all waiting rows, and how many rows each is thought to have had from others.

    The first counts all selected rows as its own; to the others every row came from elsewhere.
    """
    rows = {name: torch.cat([queue[name] for queue in queues]) for name in Rows._fields}
    popped, num_rows = queues[0]["status"][1], len(rows["ids"])
    selected = sum(queue["status"][0] - queue["moved"] for queue in queues)
    shared, moved = [], []
    for rank in range(size):
        mine = slice(rank * num_rows // size, (rank + 1) * num_rows // size)
        pushed = popped + mine.stop - mine.start
        moved.append(pushed - (selected if rank == 0 else 0))
        status = [pushed, popped, sum(queue["status"][2] for queue in queues) if rank == 0 else 0]
        shared.append({"status": status, "moved": moved[-1], **{name: rows[name][mine] for name in Rows._fields}})
    return shared, moved


def _merged_energy(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One `EnergyBook`'s state from those of all ranks."""
    names = {name for state in states for name in state["parts"]}
    return {
        **{
            name: merge_ranks(Reading.from_state(state[name]) for state in states).state_dict()
            for name in ("run", "epoch")
        },
        "parts": {
            name: merge_part_ranks(
                PartEnergy.from_state(state["parts"][name]) for state in states if name in state["parts"]
            ).state_dict()
            for name in names
        },
    }
