"""Continuing with other pictures: what of a state still holds when the training set is another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastast.train.account import PhaseCounts
from fastast.train.passage import Moment


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
    queue = state["engine"]["score_step"]["queue._extra_state"]
    _, popped, overflow = queue["status"]
    queue["status"] = [popped, popped, overflow]
    for name in ("images", "labels", "ids", "weights"):
        queue[name] = queue[name][:0]
    journal = state["journal"]
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
    memory["memory._age"] = memory["memory._selected"] = torch.zeros(last, dtype=torch.int32)
    journal.update(offered=torch.zeros(num_train, dtype=torch.int32), report=None, moments=[])
    state.update(bad_ids=torch.zeros(num_train, dtype=torch.bool), passage=None, trained=False)
    if state["thumbs"] is not None:
        nothing = Moment(0, 0, PhaseCounts(), np.zeros(0, np.int64)).state_dict()
        state["thumbs"] = {
            **{"decision": None, "scored": None, "selected": torch.zeros(0, dtype=torch.int64)},
            **{"ready": [], "pulled": [], "moment": nothing},
        }
        state["engine"]["select_step"]["weights"] = torch.ones(last)

    return dropped
