from __future__ import annotations

import pytest
import torch

from fastast.gates import RankCorrelation
from fastast.gates.base import Gate
from fastast.gates.controller import PIController
from fastast.gates.importance_weights import importance_weights
from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Total
from fastast.gates.significance import Significance, significance
from tests.sync_guard import no_sync

BATCH = 32


def batches(num, seed=0, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    for k in range(num):
        logits = 2 * torch.randn(size, 10, generator=generator)
        labels = torch.randint(0, 10, (size,), generator=generator)
        images = torch.randn(size, 3, 6, 6, generator=generator).contiguous(memory_format=torch.channels_last)
        yield logits, labels, images, torch.arange(size) + k * size


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_equals_its_parts_one_step_late(selection):
    gate = Gate(0.2, selection=selection, kind="loss+std", seed=3)
    scorer, controller = Significance("loss+std"), PIController(0.2, selection=selection, seed=3)
    totals, late = gate.no_totals(), None
    for k, (logits, labels, images, ids) in enumerate(batches(40)):
        valid = torch.arange(BATCH) < (10 if k % 7 == 3 else BATCH)
        if k % 5 == 2:
            logits[4] = torch.nan
        mask, loss, totals = gate(logits, labels, images, ids, 1, valid, totals)
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
    ours, parts = gate.controller.state_dict(), controller.state_dict()
    for name in ours:
        assert torch.allclose(ours[name].double(), parts[name].double(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_ranks_hold_one_state_and_one_target(selection):
    """Two ranks of different difficulty; only the sum of their totals is shared."""
    num_ranks, num_batches, target = 2, 210, 0.1
    ranks = [Gate(target, selection=selection, kind="loss") for _ in range(num_ranks)]
    streams = [batches(num_batches, seed=rank) for rank in range(num_ranks)]
    shared = ranks[0].no_totals()
    counts = []
    for k in range(num_batches):
        parts = []
        for rank, (gate, stream) in enumerate(zip(ranks, streams, strict=True)):
            logits, labels, images, ids = next(stream)
            args = (logits * (1 + rank), labels, images, ids + 10_000_000 * rank)
            parts.append(gate(*args, k // 100, torch.ones(BATCH, dtype=torch.bool), shared)[2])
        shared = torch.stack(parts).sum(0)
        counts.append(shared[Total.SELECTED])
        states = [gate.controller for gate in ranks]
        for other in states[1:]:
            assert torch.equal(states[0].debt, other.debt)
            assert torch.equal(states[0].log_threshold, other.log_threshold)
    total = torch.cat([torch.zeros(1), torch.stack(counts).cumsum(0)])
    share = (total[200:] - total[:-200]) / (200 * BATCH * num_ranks)
    assert (share / target - 1).abs().max() <= 0.05


def test_no_totals_change_nothing():
    gate = Gate(0.3)
    totals = gate.no_totals()
    for logits, labels, images, ids in batches(3):
        totals = gate(logits, labels, images, ids, 0, torch.ones(BATCH, dtype=torch.bool), totals)[2]
    gate.fold(totals)
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    gate.fold(gate.no_totals())
    for name, value in gate.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_autograd_graph_reaches_the_state():
    gate, queue, memory = Gate(0.5), SampleQueue(BATCH, (3, 6, 6)), ScoreMemory(3 * BATCH)
    totals = gate.no_totals()
    for logits, labels, images, ids in batches(3):
        logits.requires_grad_()
        mask, loss, totals = gate(logits, labels, images, ids, 0, torch.ones(BATCH, dtype=torch.bool), totals)
        scores = significance(logits, labels, images)
        assert scores.requires_grad
        gate.controller.select(scores)
        queue.push(images, labels, ids, mask, scores)
        memory.record(ids, scores, mask)
        assert not loss.requires_grad
    for module in (gate, queue, memory):
        assert not any(buffer.requires_grad for buffer in module.buffers())


@pytest.mark.parametrize(
    ("selection", "kind"),
    [("soft", "loss+std"), ("soft", "loss+entropy"), ("soft", "margin"), ("hard", "el2n")],
)
def test_nothing_in_a_step_waits_for_the_device(selection, kind):
    gate = Gate(0.3, selection=selection, kind=kind, explore=0.1)
    queue, memory, agreement = SampleQueue(BATCH, (3, 6, 6)), ScoreMemory(3 * BATCH), RankCorrelation()
    totals, epoch = gate.no_totals(), torch.tensor(2)
    valid = torch.arange(BATCH) < BATCH - 3
    with no_sync():
        for logits, labels, images, ids in batches(3):
            mask, loss, totals = gate(logits, labels, images, ids, epoch, valid, totals)
            controller = gate.controller
            weights, _ = importance_weights(mask, controller.probability, controller.mean_probability, clip=10.0)
            queue.push(images, labels, ids, mask, weights)
            memory.record(ids, loss, mask)
            agreement.add(loss, -loss, valid)
            queue.status()
        rows = queue.pop()
        memory.record(rows.ids, rows.weights, torch.ones(BATCH, dtype=torch.bool))
        memory.tick(torch.ones(3 * BATCH, dtype=torch.bool))
        PIController(0.3, selection=selection).select(torch.rand(BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_score_step_is_one_graph_and_never_recompiles(selection):
    """Gate and queue in one graph over epochs and a change of target, with the results of eager mode."""

    def build():
        gate, queue = Gate(0.3, selection=selection, explore=0.1), SampleQueue(BATCH, (3, 6, 6))

        def step(logits, labels, images, ids, epoch, valid, totals):
            mask, loss, totals = gate(logits, labels, images, ids, epoch, valid, totals)
            controller = gate.controller
            weights, _ = importance_weights(mask, controller.probability, controller.mean_probability)
            queue.push(images, labels, ids, mask, weights)
            return mask, loss, totals, queue.status()

        return gate, queue, step

    torch._dynamo.reset()
    (gate, queue, eager), (other_gate, other_queue, step) = build(), build()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    totals = other_totals = gate.no_totals()
    valid = torch.ones(BATCH, dtype=torch.bool)
    for k, part in enumerate(batches(12)):
        if k == 8:
            gate.controller.set_target(0.6)
            other_gate.controller.set_target(0.6)
        epoch = torch.tensor(k // 3)
        with torch.compiler.set_stance("fail_on_recompile" if k else "default"):
            mask, _, totals, status = compiled(*part, epoch, valid, totals)
        other_mask, _, other_totals, _ = eager(*part, epoch, valid, other_totals)
        assert torch.equal(mask, other_mask)
        assert torch.allclose(totals, other_totals, rtol=1e-4)
        while queue.check(queue.status().numpy()) >= BATCH:
            for a, b in zip(queue.pop(), other_queue.pop(), strict=True):
                assert torch.equal(a, b)
    assert int(status[2]) == 0
