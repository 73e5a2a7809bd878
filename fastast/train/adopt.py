"""Continuing with other pictures: what of a state still holds when the training set is another one."""

from __future__ import annotations

from typing import Any

import torch

from fastast.gate import Rows
from fastast.train.account import PhaseCounts
from fastast.train.passage import NO_IDS, Moment
from fastast.train.shards import QUEUE


def adopt(state: dict[str, Any], num_train: int) -> int:
    """Rewrites a trainer's state, in place, for another training set, of the same size or not.

    The network, its optimizer, the gate's controller and all counts stay. Whatever is kept by id goes: remembered
    losses, the plan of the epoch under way (which begins again), and the selected rows that wait for a full batch.

    Args:
        state: of `Trainer.state_dict`, from a run with the same classes.
        num_train: size of the training set now, N.

    Returns:
        The number of waiting rows that were dropped; they no longer count as selected.
    """
    popped = 0
    for part in (state, *state["ranks"]):
        queue = part["engine"]["score_step"][QUEUE]
        _, handed_out, overflow = queue["status"]
        queue["status"] = [handed_out, handed_out, overflow]
        popped += handed_out - queue["moved"]
        for name in Rows._fields:
            queue[name] = queue[name][:0]
    journal = state["journal"]
    journal["moved"] = [part["engine"]["score_step"][QUEUE]["moved"] for part in (state, *state["ranks"])]
    phases = list(journal["account"]["phases"].values())
    dropped = left = sum(counts["selected"] - counts["backward"] for counts in phases)
    for counts in reversed(phases):  # it is the last phase whose rows wait
        cut = min(left, counts["selected"])
        counts["selected"] -= cut
        left -= cut
    for status in (journal["status"], journal["epoch_status"]):
        status[0] = min(status[0], popped)
    memory, last = state["engine"]["train_step"], num_train + 1  # with the spare row of `ScoreMemory`
    memory["memory._score"] = torch.full((last,), torch.nan)
    for name in ("memory._age", "memory._selected", "memory._recorded"):
        memory[name] = torch.zeros(last, dtype=torch.int32)
    journal.update(offered=torch.zeros(num_train, dtype=torch.int32), report=None, moments=[])
    state.update(bad_ids=torch.zeros(num_train, dtype=torch.bool), passage=None, trained=False)
    for part in (state, *state["ranks"]):
        if part["thumbs"] is None:
            continue
        nothing, no_ids = Moment(0, 0, PhaseCounts(), NO_IDS).state_dict(), torch.zeros(0, dtype=torch.int64)
        part["thumbs"] = {
            **{"decision": None, "scored": None, "selected": no_ids, "offered": no_ids},
            **{"ready": [], "pulled": [], "moment": nothing},
        }
        state["engine"]["select_step"]["weights"] = torch.ones(last)
    return dropped
