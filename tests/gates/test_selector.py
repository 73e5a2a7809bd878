from __future__ import annotations

import pytest
import torch

from fastast.errors import InputError
from fastast.gates.controller import PIController
from fastast.gates.importance_weights import importance_weights
from fastast.gates.queue import SampleQueue
from fastast.gates.registry import SHARE_POWER
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector, Total
from fastast.gates.significance import Significance, significance
from tests.sync_guard import no_sync

BATCH = 32
ALL = torch.ones(BATCH, dtype=torch.bool)


def batches(num, seed=0, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    for k in range(num):
        logits = 2 * torch.randn(size, 10, generator=generator)
        labels = torch.randint(0, 10, (size,), generator=generator)
        images = torch.randn(size, 3, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
        yield logits, labels, images, torch.arange(size) + k * size


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_equals_its_parts_one_step_late(selection):
    selector = Selector(0.2, selection=selection, kind="loss+std", seed=3)
    scorer, controller = Significance("loss+std"), PIController(0.2, selection=selection, seed=3)
    totals, late = selector.no_totals(), None
    for k, (logits, labels, images, ids) in enumerate(batches(40)):
        valid = torch.arange(BATCH) < (10 if k % 7 == 3 else BATCH)
        if k % 5 == 2:
            logits[4] = torch.nan
        mask, loss, totals = selector(logits, labels, images, ids, 1, valid, totals)
        if late is not None:
            scorer.update(late[0])
            controller.update(*late[1:])
        scores, expected_loss, sums = scorer(logits, labels, images, valid)
        expected = controller.decide(scores, ids, 1, valid)
        usable = valid & torch.isfinite(scores)
        late = (sums, (expected & usable).sum(), usable.sum(), (controller.probability * usable).sum())
        assert torch.equal(mask, expected)
        assert torch.equal(loss.nan_to_num(), expected_loss.nan_to_num())
        assert totals[Total.OFFERED] == valid.sum()
        assert totals[Total.SELECTED] == mask.sum()
        assert totals[Total.NAN] == (valid & ~usable).sum()
    ours, parts = selector.controller.state_dict(), controller.state_dict()
    for name in ours:
        assert torch.allclose(ours[name].double(), parts[name].double(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_ranks_share_state_and_target(selection):
    """Two ranks of different difficulty; only the sum of their totals is shared."""
    num_ranks, num_batches, target = 2, 210, 0.1
    ranks = [Selector(target, selection=selection, kind="loss") for _ in range(num_ranks)]
    streams = [batches(num_batches, seed=rank) for rank in range(num_ranks)]
    shared = ranks[0].no_totals()
    counts = []
    for k in range(num_batches):
        parts = []
        for rank, (selector, stream) in enumerate(zip(ranks, streams, strict=True)):
            logits, labels, images, ids = next(stream)
            args = (logits * (1 + rank), labels, images, ids + 10_000_000 * rank)
            parts.append(selector(*args, k // 100, ALL, shared)[2])
        shared = torch.stack(parts).sum(0)
        counts.append(shared[Total.SELECTED])
        first, other = (selector.controller for selector in ranks)
        assert torch.equal(first.debt, other.debt)
        assert torch.equal(first.log_threshold, other.log_threshold)
    total = torch.cat([torch.zeros(1), torch.stack(counts).cumsum(0)])
    share = (total[200:] - total[:-200]) / (200 * BATCH * num_ranks)
    assert (share / target - 1).abs().max() <= 0.05


@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_auto_selects_the_share_that_the_scores_speak_for(selection, num_ranks):
    """The spread of the scores grows as a network learns; the target follows that of recent batches, on all ranks."""
    ranks = [Selector("auto", selection=selection, kind="variance") for _ in range(num_ranks)]
    streams = [batches(500, seed=rank) for rank in range(num_ranks)]
    shared, recent = ranks[0].no_totals(), [0.0, 0.0, 0.0]
    selected, targets = [], []
    for k in range(500):
        sure = 1 + min(k, 300) / 100
        parts = []
        for rank, (selector, stream) in enumerate(zip(ranks, streams, strict=True)):
            logits, labels, images, ids = next(stream)
            logits = logits + 3 * sure * torch.nn.functional.one_hot(labels, 10)
            if k % 9 == 4:
                logits[3] = torch.nan
            parts.append(selector(logits, labels, images, ids + 10_000_000 * rank, 0, ALL, shared)[2])
        shared = torch.stack(parts).sum(0)
        selected.append(float(shared[Total.SELECTED]) / (BATCH * num_ranks))
        if k:  # a plain running sum over what all ranks had reported by then
            share = max(0.05, (recent[1] ** 2 / (recent[0] * recent[2])) ** SHARE_POWER)
            assert [float(selector.controller.target) for selector in ranks] == pytest.approx(
                [share] * num_ranks, rel=1e-4
            )
        targets.append(float(ranks[0].controller.target))
        now = (shared[Total.OFFERED] - shared[Total.NAN], shared[Total.SCORE], shared[Total.SQUARE])
        recent = [0.98 * before + float(new) for before, new in zip(recent, now, strict=True)]
    assert targets[10] > 1.5 * targets[-1] > 0.1
    for start in range(0, 300, 50):
        aimed = sum(targets[start : start + 200])
        assert sum(selected[start : start + 200]) == pytest.approx(aimed, rel=0.07)


def test_auto_needs_a_small_explore_share():
    with pytest.raises(InputError, match=r"0\.05"):
        Selector("auto", explore=0.05)


@pytest.mark.parametrize("kind", ["loss+std", "margin"])
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_two_ranks_equal_one(selection, kind):
    """One selector over a batch, and two over its halves that share their totals, decide alike."""
    size = 2 * BATCH
    one, *ranks = (Selector(0.3, selection=selection, kind=kind, seed=5) for _ in range(3))
    first = next(batches(1, seed=9, size=size))
    whole = shared = one(*first, 0, torch.ones(size, dtype=torch.bool), one.no_totals())[2]
    for selector in ranks:
        selector.load_state_dict(one.state_dict())
    num_selected = 0
    for k, parts in enumerate(batches(60, size=size)):
        valid = torch.arange(size) < (size - 5 if k % 8 == 3 else size)
        if k % 11 == 4:
            parts[0][BATCH + 1] = torch.nan
        mask, loss, whole = one(*parts, k // 20, valid, whole)
        masks, losses, totals = zip(
            *(
                selector(*(part[rows] for part in parts), k // 20, valid[rows], shared)
                for selector, rows in zip(ranks, (slice(BATCH), slice(BATCH, size)), strict=True)
            ),
            strict=True,
        )
        shared = torch.stack(totals).sum(0)
        for selector in (one, *ranks):  # the limiter rests, which works on each rank's own rows
            assert abs(float(selector.controller.slip)) == 0.0
        assert torch.equal(torch.cat(masks), mask)
        torch.testing.assert_close(torch.cat(losses), loss, equal_nan=True)
        if selection == "hard":  # estimated from each rank's own keys, of which there are fewer
            shared[Total.LOG_SLOPE] = whole[Total.LOG_SLOPE]
        torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-4)
        num_selected += int(mask.sum())
    assert abs(num_selected / (60 * size) / 0.3 - 1) < 0.1
    for selector in ranks:
        torch.testing.assert_close(
            selector.controller.log_threshold, one.controller.log_threshold, rtol=1e-4, atol=1e-5
        )


def test_no_totals_change_nothing():
    selector = Selector(0.3)
    totals = selector.no_totals()
    for part in batches(3):
        totals = selector(*part, 0, ALL, totals)[2]
    selector.fold(totals)
    before = {name: value.clone() for name, value in selector.state_dict().items()}
    selector.fold(selector.no_totals())
    for name, value in selector.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_autograd_graph_reaches_the_state():
    selector, queue, memory = Selector(0.5), SampleQueue(BATCH, (3, 6, 6)), ScoreMemory(3 * BATCH)
    totals = selector.no_totals()
    for logits, labels, images, ids in batches(3):
        logits.requires_grad_()
        mask, loss, totals = selector(logits, labels, images, ids, 0, ALL, totals)
        scores = significance(logits, labels, images)
        assert scores.requires_grad
        selector.controller.select(scores)
        queue.push(images, labels, ids, mask, scores)
        memory.record(ids, scores, mask)
        assert not loss.requires_grad
    for module in (selector, queue, memory):
        assert not any(buffer.requires_grad for buffer in module.buffers())


@pytest.mark.parametrize(
    ("target", "selection", "kind"),
    [(0.3, "soft", "loss+std"), (0.3, "soft", "margin"), (0.3, "hard", "el2n"), ("auto", "soft", "variance")],
)
def test_never_waits_for_the_device(target, selection, kind):
    selector = Selector(target, selection=selection, kind=kind, explore=0.04)
    queue, memory = SampleQueue(BATCH, (3, 6, 6)), ScoreMemory(3 * BATCH)
    totals, epoch, controller = selector.no_totals(), torch.tensor(2), selector.controller
    valid = torch.arange(BATCH) < BATCH - 3
    with no_sync():
        for logits, labels, images, ids in batches(3):
            mask, loss, totals = selector(logits, labels, images, ids, epoch, valid, totals)
            weights = importance_weights(mask, controller.probability, controller.mean_probability)
            queue.push(images, labels, ids, mask, weights)
            memory.record(ids, loss, mask)
            queue.status()
        rows = queue.pop()
        memory.record(rows.ids, rows.weights, ALL)
        controller.select(torch.rand(BATCH))
