"""One gate over a batch, and two over its halves that share their totals, decide alike."""

from __future__ import annotations

import pytest
import torch

from fastast.gates.selector import Selector, Total
from tests.gate.test_gate import batches

BATCH = 64


@pytest.mark.parametrize("kind", ["loss+std", "margin"])
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_the_same_scores_give_the_same_mask(selection, kind):
    one, *ranks = (Selector(0.3, selection=selection, kind=kind, seed=5) for _ in range(3))
    started = one.no_totals()
    first = next(batches(1, seed=9, size=BATCH))
    started = one(*first, 0, torch.ones(BATCH, dtype=torch.bool), started)[2]
    for gate in ranks:
        gate.load_state_dict(one.state_dict())
    whole = shared = started
    num_selected = 0
    for k, parts in enumerate(batches(60, size=BATCH)):
        valid = torch.arange(BATCH) < (BATCH - 5 if k % 8 == 3 else BATCH)
        if k % 11 == 4:
            parts[0][BATCH // 2 + 1] = torch.nan
        mask, loss, whole = one(*parts, k // 20, valid, whole)
        masks, losses, totals = [], [], []
        for gate, rows in zip(ranks, (slice(BATCH // 2), slice(BATCH // 2, BATCH)), strict=True):
            ours = gate(*(part[rows] for part in parts), k // 20, valid[rows], shared)
            for kept, value in zip((masks, losses, totals), ours, strict=True):
                kept.append(value)
        shared = torch.stack(totals).sum(0)
        for gate in (one, *ranks):  # the limiter rests, which works on each rank's own rows
            assert abs(float(gate.controller.slip)) == 0.0
        assert torch.equal(torch.cat(masks), mask)
        torch.testing.assert_close(torch.cat(losses), loss, equal_nan=True)
        if selection == "hard":  # estimated from each rank's own keys, of which there are fewer
            shared[Total.LOG_SLOPE] = whole[Total.LOG_SLOPE]
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-4)
        num_selected += int(mask.sum())
    assert abs(num_selected / (60 * BATCH) / 0.3 - 1) < 0.1
    for gate in ranks:
        torch.testing.assert_close(gate.controller.log_threshold, one.controller.log_threshold, rtol=1e-4, atol=1e-5)
