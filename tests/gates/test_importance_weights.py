from __future__ import annotations

import pytest
import torch

from fastast.gates.importance_weights import importance_weights
from tests.gates.test_controller import controllers


def test_weights_are_rate_over_probability():
    mask = torch.tensor([True, False, True, True])
    weights = importance_weights(mask, torch.tensor([0.5, 0.5, 1.0, 0.01]), 0.2)
    assert weights.tolist() == pytest.approx([0.4, 0.0, 0.2, 20.0])
    assert torch.isfinite(importance_weights(mask, torch.zeros(4), torch.tensor(0.2))).all()


@pytest.mark.parametrize("explore", [0.0, 0.05])
def test_weighted_gradient_is_unbiased(explore):
    """Logistic regression, scored by its loss; 48 seeds of 150 batches of 64, the first 30 to settle.

    Each seed gives one deviation of the selected samples' mean gradient from that of all. The 48 are independent, so
    their mean lies within 4 standard errors of 0 (6 components: 1 in 2,600 by chance; the seed is fixed). Without
    the weights it is many standard errors off.
    """
    num_seeds, batch, num_batches, warmup = 48, 64, 150, 30
    generator = torch.Generator().manual_seed(0)
    true, guess = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, -1.0, 1.0])
    controller = controllers([0.2] * num_seeds, "soft", explore)
    sums = dict.fromkeys(("dense", "weighted", "plain", "weights", "selected", "offered"), 0.0)
    for k in range(num_batches):
        x = torch.randn(num_seeds, batch, 3, generator=generator)
        y = (torch.rand(num_seeds, batch, generator=generator) < torch.sigmoid(x @ true)).float()
        p = torch.sigmoid(x @ guess)
        loss = -(y * p.log() + (1 - y) * (1 - p).log())
        gradient = (p - y)[..., None] * x  # [seeds, B, 3]
        ids = torch.arange(num_seeds * batch).view(num_seeds, batch) + k * num_seeds * batch
        mask = controller.decide(loss, ids)
        weights = importance_weights(mask, controller.probability, controller.mean_probability[:, None])
        controller.update(mask.sum(-1), torch.full((num_seeds,), batch), controller.probability.sum(-1))
        if k < warmup:
            continue
        sums["dense"] += gradient.sum(1)
        sums["weighted"] += (gradient * weights[..., None]).sum(1)
        sums["plain"] += (gradient * mask[..., None]).sum(1)
        sums["weights"] += weights.sum(1)
        sums["selected"] += mask.sum(1)
        sums["offered"] += batch
    selected = sums["selected"][:, None]
    dense = sums["dense"] / sums["offered"]

    def standard_errors(estimate):
        deviation = estimate - dense
        return deviation.mean(0).abs() / (deviation.std(0) / num_seeds**0.5)

    assert standard_errors(sums["weighted"] / selected).max() < 4
    assert standard_errors(sums["plain"] / selected).max() > 20
    assert float((sums["weights"] / sums["selected"]).mean()) == pytest.approx(1.0, abs=0.02)
