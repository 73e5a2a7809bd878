"""The state of a run of several ranks: what they have in common is kept once, what each has for itself for each."""

from __future__ import annotations

from typing import Any

import torch

# Of the engine's state; besides these, batch statistics, and all of the training step but the merged memory.
_OWN_PARTS = ("score_step", "rng", "cuda_rng")
_MEMORY = "memory."
QUEUE = "queue._extra_state"


def own_part(state: dict[str, Any], buffers: list[str]) -> dict[str, Any]:
    """What of a trainer's state a rank has for itself.

    Args:
        state: of `Trainer.state_dict` on one rank, its memory merged.
        buffers: names of the network's buffers (BatchNorm's statistics); those that are not saved are left out.
    """
    engine = state["engine"]
    return {
        "engine": {name: engine[name] for name in _OWN_PARTS},
        "buffers": {name: engine["model"][name] for name in buffers if name in engine["model"]},
        "train_step": {name: value for name, value in engine["train_step"].items() if not name.startswith(_MEMORY)},
        "energy": state["energy"],
    }


def part_of(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """The state that a rank loads, from the whole one, which is left as it is."""
    if rank == 0:
        return state
    own, engine = state["ranks"][rank - 1], state["engine"]
    train_step = {**engine["train_step"], **own["train_step"]}
    selected = _MEMORY + "_selected"
    train_step[selected] = torch.zeros_like(train_step[selected])  # all of it is counted on the first rank
    return {
        **state,
        "engine": {**engine, **own["engine"], "model": {**engine["model"], **own["buffers"]}, "train_step": train_step},
        "journal": {**state["journal"], "offered": torch.zeros_like(state["journal"]["offered"])},
        "energy": own["energy"],
    }


def num_waiting(state: dict[str, Any]) -> int:
    """The most rows that wait on one rank in a trainer's state."""
    parts = [state["engine"], *(own["engine"] for own in state["ranks"])]
    return max(len(part["score_step"][QUEUE]["ids"]) for part in parts)
