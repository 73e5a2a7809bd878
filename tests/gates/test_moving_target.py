"""A target that changes: the threshold is solved again from the scores, and nothing counted under the old one stays."""

import pytest
import torch

from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.engine.engine import Engine
from fastast.feed import Batch
from fastast.gates.importance_weights import importance_weights
from fastast.gates.selector import Selector

B, CLASSES = 256, 10
TARGETS = (0.8, 0.4, 0.1, 0.6)


def labelled_logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, CLASSES, generator=generator)
    return logits, torch.randint(0, CLASSES, (B,), generator=generator)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weights_average_one_after_each_change(compiled):
    selector = Selector(TARGETS[0], kind="loss", seed=1)
    step = torch.compile(selector, fullgraph=True, dynamic=False, backend="aot_eager") if compiled else selector
    totals, ids, valid = selector.no_totals(), torch.arange(B), torch.ones(B, dtype=torch.bool)
    for epoch, target in enumerate(TARGETS):
        if epoch:
            selector.set_target(target, totals)
        means, rates = [], []
        for batch in range(40):
            logits, labels = labelled_logits(100 * epoch + batch)
            mask, _, found = step(logits, labels, torch.zeros(B, 3, 1, 1), ids, torch.tensor(epoch), valid, totals)
            totals.copy_(found)
            controller = selector.controller
            weights = importance_weights(mask, controller.probability, controller.mean_probability)
            means.append(float(weights.sum() / mask.sum()))
            rates.append(float(mask.float().mean()))
            if batch == 0:  # the threshold is solved on the first scores under the new target
                assert float(controller.probability.mean()) == pytest.approx(target, rel=1e-3)
        assert sum(rates[:5]) / 5 == pytest.approx(target, rel=0.1)
        assert sum(means[:10]) / 10 == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("compile_mode", ["off", "on"])
def test_engine_follows_a_target_that_moves_each_epoch(compile_mode, monkeypatch):
    if compile_mode == "on":
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", _eager_graphs(torch.compile))
    config = TrainConfig(
        arch="tests.nets:tiny", image_size=16, batch_size=64, lr=0.01, gate="forward", target=0.8, significance="loss"
    )
    engine = Engine(config, open_runtime("cpu", compile=compile_mode), weights="none", num_classes=3, num_train=640)
    generator = torch.Generator().manual_seed(0)
    for epoch, target in enumerate(TARGETS):
        engine.begin_epoch(epoch)
        engine.set_target(target)
        before = engine.read_status().pushed
        for number in range(20):
            images = torch.randn(64, 3, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
            labels = torch.randint(0, 3, (64,), generator=generator)
            ids = torch.arange(64) + number % 10 * 64
            engine.score(Batch(images, labels, ids, torch.ones(64, dtype=torch.bool), 64))
            engine.gather_status()
            while engine.queue.check(engine.queue.status().numpy()) >= 64:
                engine.queue.pop()
        assert (engine.read_status().pushed - before) / (20 * 64) == pytest.approx(target, rel=0.06)


def _eager_graphs(compile_it):
    return lambda step, **options: compile_it(step, fullgraph=True, dynamic=False, backend="aot_eager")
