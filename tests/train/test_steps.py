"""The score, train and evaluation steps against plain twins."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector
from fastast.models.build import scoring_twin
from fastast.train.optimizer import GuardedStep, build_optimizer
from fastast.train.steps import (
    HIST_BINS,
    HIST_WIDTH,
    EvalStep,
    Objective,
    ScoreStep,
    TrainStep,
    compile_step,
    logits_of,
)
from tests.nets import tiny

B, SIDE, CLASSES = 16, 16, 4
EPOCH = torch.zeros((), dtype=torch.int64)


def batch(seed: int):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (B,), generator=generator)
    return images, labels, torch.arange(B) + seed * B


def network():
    torch.manual_seed(0)
    return tiny(CLASSES).to(memory_format=torch.channels_last)


def train_step(model, *, smoothing=0.1, compiled=False):
    guard = GuardedStep(
        model, build_optimizer(model, momentum=0.9, weight_decay=1e-4), scale_loss=False, compiled=compiled
    )
    guard.set_lr(0.1)
    objective = Objective(model, dtype=torch.float32, label_smoothing=smoothing, compiled=compiled)
    return TrainStep(objective, guard, ScoreMemory(1000))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_objective_is_torch_cross_entropy_with_label_smoothing(smoothing):
    step = train_step(network(), smoothing=smoothing)
    images, labels, _ = batch(0)
    objective, loss = step.objective(images, labels, torch.ones(B))
    logits = copy.deepcopy(step.objective.model)(images)
    torch.testing.assert_close(objective, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))


def test_weights_scale_each_row_of_the_objective():
    step = train_step(network())
    images, labels, _ = batch(0)
    weights = torch.rand(B)
    objective, _ = step.objective(images, labels, weights)
    logits = copy.deepcopy(step.objective.model)(images)
    rows = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(objective, (weights * rows).mean())


def test_the_train_step_remembers_losses_of_steps_that_counted_only():
    model = network()
    step, queue = train_step(model), SampleQueue(B, (3, SIDE, SIDE))
    images, labels, ids = batch(0)
    before = F.cross_entropy(copy.deepcopy(model)(images), labels, reduction="none")
    queue.push(images, labels, ids, torch.ones(B, dtype=torch.bool))
    step(queue.pop())
    torch.testing.assert_close(step.memory.score[ids], before.detach())
    assert step.loss_rows.item() == B
    assert step.loss_sum.item() == pytest.approx(before.sum().item(), rel=1e-5)

    images, labels, ids = batch(1)
    images[0, 0, 0, 0] = torch.nan
    queue.push(images, labels, ids, torch.ones(B, dtype=torch.bool))
    step(queue.pop())
    assert step.memory.score[ids].isnan().all()
    assert (step.memory.selected[ids] == 0).all()
    assert step.loss_rows.item() == B
    assert step.guard.counts.tolist() == [2, 1, 1, 0]


def test_the_score_step_equals_its_parts_and_changes_nothing_else():
    model = network()
    twin = scoring_twin(model)
    step = ScoreStep(twin, Selector(0.3), SampleQueue(B, (3, SIDE, SIDE)), dtype=torch.float32)
    gate, totals = Selector(0.3), Selector(0.3).no_totals()
    kept, hist = [], torch.zeros(2, HIST_BINS, dtype=torch.int64)
    before = copy.deepcopy(model.state_dict())
    for seed in range(8):
        images, labels, ids = batch(seed)
        valid = torch.arange(B) < (B if seed < 7 else 5)
        step(images, labels, ids, valid, EPOCH)
        with torch.no_grad():
            logits = twin(images)
        mask, loss, totals = gate(logits, labels, images, ids, EPOCH, valid, totals)
        kept += ids[mask].tolist()
        for row in range(B):
            if valid[row]:
                hist[int(mask[row]), min(HIST_BINS - 1, int(loss[row] / HIST_WIDTH))] += 1
    queue = step.queue
    assert queue.ids[: queue.pushed].tolist() == kept
    assert len(kept) > 0
    assert torch.equal(step.decision.hist, hist)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


def test_evaluation_sums_over_valid_rows_only():
    model = network()
    step = EvalStep(scoring_twin(model), dtype=torch.float32)
    expected = torch.zeros(4, dtype=torch.float64)
    for seed, num_valid in ((0, B), (1, 5), (2, 1)):
        images, labels, _ = batch(seed)
        logits = step(images, labels, torch.arange(B) < num_valid)
        logits, labels = logits[:num_valid], labels[:num_valid]
        expected += torch.tensor(
            [
                F.cross_entropy(logits, labels, reduction="sum").item(),
                (logits.argmax(1) == labels).sum().item(),
                num_valid,  # four classes: all are among the first five
                num_valid,
            ]
        )
    torch.testing.assert_close(step.sums, expected)


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones_in_one_graph_without_recompiling():
    eager_model, compiled_model = network(), network()
    results = []
    torch._dynamo.reset()
    for model, compiled in ((eager_model, False), (compiled_model, True)):
        score = ScoreStep(scoring_twin(model), Selector(0.5), SampleQueue(B, (3, SIDE, SIDE)), dtype=torch.float32)
        run, train = compile_step(score, compiled), train_step(model, compiled=compiled)
        popped, masks = 0, []
        for seed in range(12):
            images, labels, ids = batch(seed)
            run(images, labels, ids, torch.ones(B, dtype=torch.bool), torch.tensor(seed // 4))
            masks.append(score.queue.pushed.item())
            while score.queue.pushed.item() - popped >= B:
                train(score.queue.pop())
                popped += B
            if compiled and seed == 6:
                graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        results.append((masks, model.state_dict()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_either_type_run_in_either_precision(images_dtype, dtype):
    model = network().eval()
    images, _, _ = batch(0)
    logits = logits_of(model, images.to(images_dtype), dtype)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(images), rtol=0.05, atol=0.02)
