"""The score, train and evaluation steps against plain twins."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastast.device import compile_step
from fastast.engine.evaluation import Accuracy
from fastast.engine.optimizer import GuardedStep, build_optimizer
from fastast.engine.steps import (
    HIST_BINS,
    HIST_WIDTH,
    EvalStep,
    Objective,
    ScoreStep,
    TrainStep,
    balanced_weights,
    logits_of,
)
from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector
from fastast.models.build import scoring_twin
from fastast.models.trained import top_classes
from tests.engine import engines
from tests.engine.engines import CLASSES, SIDE, B
from tests.nets import tiny

ALL = torch.ones(B, dtype=torch.bool)
EPOCH = torch.zeros((), dtype=torch.int64)


def batch(seed):
    return engines.batch(seed)[:3]


def network():
    torch.manual_seed(0)
    return tiny(CLASSES).to(memory_format=torch.channels_last)


def train_step(model, *, smoothing=0.1, compiled=False):
    """A train step and the memory that it records in."""
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=1e-4)
    guard = GuardedStep(model, optimizer, scale_loss=False, compiled=compiled)
    guard.set_lr(0.1)
    objective = Objective(model, dtype=torch.float32, label_smoothing=smoothing, compiled=compiled)
    memory = ScoreMemory(1000)
    return TrainStep(objective, guard, memory), memory


def test_balanced_weights_give_every_class_the_same_part():
    counts = np.array([100, 0, 10, 40])
    weights = balanced_weights(counts)
    assert (weights * counts).tolist() == pytest.approx([50, 0, 50, 50])
    objective = engines.engine(class_weights="balanced").train_step.objective
    images, labels, _ = batch(0)
    mean, loss = objective(images, labels, torch.full((B,), 3.0))
    logits = copy.deepcopy(objective.model)(images)
    rows = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(mean, (3 * torch.tensor([4 / 3, 2 / 3, 4 / 3])[labels] * rows).mean())
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [torch.ones(B), torch.rand(B)], ids=["alike", "weighted"])
def test_objective_is_weighted_cross_entropy(smoothing, weights):
    objective = Objective(network(), dtype=torch.float32, label_smoothing=smoothing, compiled=False)
    images, labels, _ = batch(0)
    mean, loss = objective(images, labels, weights)
    logits = copy.deepcopy(objective.model)(images)
    rows = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(mean, (weights * rows).mean())
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))


def test_train_step_remembers_losses_of_good_steps():
    model = network()
    (step, memory), queue = train_step(model), SampleQueue(B, (3, SIDE, SIDE))
    images, labels, ids = batch(0)
    before = F.cross_entropy(copy.deepcopy(model)(images), labels, reduction="none")
    queue.push(images, labels, ids, ALL)
    step(queue.pop())
    torch.testing.assert_close(memory.score[ids], before.detach())
    assert step.loss_rows.item() == B
    assert step.loss_sum.item() == pytest.approx(before.sum().item(), rel=1e-5)

    images, labels, ids = batch(1)
    images[0, 0, 0, 0] = torch.nan
    queue.push(images, labels, ids, ALL)
    step(queue.pop())
    assert memory.score[ids].isnan().all()
    assert (memory.selected[ids] == 0).all()
    assert step.loss_rows.item() == B
    assert step.guard.counts.tolist() == [2, 1, 1, 0]


def test_score_step_equals_its_parts():
    model = network()
    twin = scoring_twin(model)
    step = ScoreStep(twin, Selector(0.3), SampleQueue(B, (3, SIDE, SIDE)), dtype=torch.float32)
    selector, totals = Selector(0.3), Selector(0.3).no_totals()
    kept, hist = [], torch.zeros(2, HIST_BINS, dtype=torch.int64)
    before = copy.deepcopy(model.state_dict())
    for seed in range(8):
        images, labels, ids = batch(seed)
        valid = torch.arange(B) < (B if seed < 7 else 5)
        step(images, labels, ids, valid, EPOCH)
        with torch.no_grad():
            logits = twin(images)
        mask, loss, totals = selector(logits, labels, images, ids, EPOCH, valid, totals)
        kept += ids[mask].tolist()
        for row in range(B):
            if valid[row]:
                hist[int(mask[row]), min(HIST_BINS - 1, int(loss[row] / HIST_WIDTH))] += 1
    queue = step.queue
    assert queue.ids[: queue.pushed].tolist() == kept
    assert len(kept) > 0
    assert torch.equal(step.hist, hist)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


def test_evaluation_sums_valid_rows():
    model = network()
    step = EvalStep(scoring_twin(model), CLASSES, dtype=torch.float32)
    expected, by_class = torch.zeros(2, dtype=torch.float64), np.zeros((2, CLASSES), np.int64)
    for seed, num_valid in ((0, B), (1, 5), (2, 1)):
        images, labels, _ = batch(seed)
        logits = step(images, labels, torch.arange(B) < num_valid)
        logits, labels = logits[:num_valid], labels[:num_valid]
        expected += torch.tensor(
            [
                F.cross_entropy(logits, labels, reduction="sum").item(),
                num_valid,  # three classes: all are among the first five
            ]
        )
        for label, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
            by_class[:, label] += 1, predicted == label
    torch.testing.assert_close(step.sums, expected)
    assert step.by_class.tolist() == by_class.tolist()
    accuracy = Accuracy(0.0, 1.0, *by_class)
    assert accuracy.top1 == by_class[1].sum() / (B + 6)
    assert accuracy.balanced_top1 == pytest.approx(np.mean(by_class[1] / by_class[0]))
    assert Accuracy(0.0, 1.0, np.array([3, 0, 1]), np.array([3, 0, 0])).balanced_top1 == 0.5


def test_evaluation_ranks_as_predictions_do():
    """Equal logits, as bfloat16 makes them, count for the first class; those that are no numbers for none."""

    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.nn.Parameter(logits)

        def forward(self, images):
            return self.logits

    logits = torch.randint(0, 6, (400, 12), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(400) % 12
    _, first = top_classes(logits, 5)
    step = EvalStep(Fixed(logits), 12, dtype=torch.float32)
    step(torch.zeros(400, 3, 1, 1), labels, torch.ones(400, dtype=torch.bool))
    hits = first == labels[:, None]
    assert step.sums[1] == hits.any(1).sum()
    assert step.by_class.sum(1).tolist() == [400, hits[:, 0].sum()]
    assert 0 < hits[:, 0].sum() < hits.sum() < 400
    step = EvalStep(Fixed(torch.full((400, 12), float("nan"))), 12, dtype=torch.float32)
    step(torch.zeros(400, 3, 1, 1), labels, torch.ones(400, dtype=torch.bool))
    assert step.sums[1] == 0
    assert step.by_class.sum(1).tolist() == [400, 0]


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_compiled_steps_equal_eager_without_recompiling(selection):
    """Over epochs, and over a change of the target."""
    results = []
    torch._dynamo.reset()
    for compiled in (False, True):
        model, selector = network(), Selector(0.5, selection=selection, explore=0.1)
        queue = SampleQueue(B, (3, SIDE, SIDE))
        score = ScoreStep(scoring_twin(model), selector, queue, dtype=torch.float32, unbiased=selection == "soft")
        run, (train, _) = compile_step(score, compiled), train_step(model, compiled=compiled)
        popped, pushed = 0, []
        for seed in range(15):
            if seed == 12:
                selector.controller.set_target(0.8)
            # By then all has been compiled: the first batches fill the queue.
            with torch.compiler.set_stance("fail_on_recompile" if compiled and seed > 6 else "default"):
                run(*batch(seed), ALL, torch.tensor(seed // 4))
                pushed.append(queue.pushed.item())
                while pushed[-1] - popped >= B:
                    train(queue.pop())
                    popped += B
        results.append((pushed, model.state_dict()))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1].values(), results[1][1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_image_type_in_either_precision(images_dtype, dtype):
    model = network().eval()
    images, _, _ = batch(0)
    logits = logits_of(model, images.to(images_dtype), dtype)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(images), rtol=0.05, atol=0.02)
