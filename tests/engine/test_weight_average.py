"""The average of the weights: its figures, and which weights a run keeps."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fastast.checkpoint.file_format import load_checkpoint
from fastast.cli import main
from fastast.engine.weight_average import AGE, WeightAverage
from fastast.train.validation import Validation
from tests.train.test_run import options, summary_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.again = self.layer  # under two names, as tied weights are
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def change(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        model.norm.num_batches_tracked += 1


def test_average_weighs_steps_by_a_power_of_their_number():
    model = Net()
    average, seen = WeightAverage(model), []
    for step in range(1, 41):
        change(model, step)
        average.update()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    # (1 - 1/t)^k telescopes: step i has the share (i / n)^k - ((i - 1) / n)^k.
    edges = (np.arange(41) / 40) ** (1 / AGE - 1)
    shares = torch.from_numpy(np.diff(edges)).float()
    found = average.weights()
    assert found.keys() == model.state_dict().keys()
    for name in ("layer.weight", "again.weight", "norm.weight", "norm.running_mean"):
        expected = sum(share * one[name] for share, one in zip(shares, seen, strict=True))
        torch.testing.assert_close(found[name], expected, msg=name)
    assert torch.equal(found["mask"], model.mask)
    assert found["norm.num_batches_tracked"] == 40
    ages = 1 - np.arange(1, 1001) / 1000
    assert ages @ np.diff((np.arange(1001) / 1000) ** (1 / AGE - 1)) == pytest.approx(AGE, rel=0.02)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError):
        fail_within(average, model, found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def fail_within(average, model, expected):
    expected = {name: value.clone() for name, value in expected.items()}
    with average.swapped():
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        raise KeyError


@pytest.mark.parametrize("average_is_better", [False, True])
def test_better_of_weights_and_average_is_kept(pictures, tmp_path, monkeypatch, average_is_better):
    out, evaluate, found = tmp_path / "run", Validation._evaluate, []

    def evaluate_and_change(self, between):
        accuracy = evaluate(self, between)
        num_right = (found[-1] if found else accuracy).hits.sum() + (len(found) == 1) * (2 * average_is_better - 1)
        hits = np.zeros_like(accuracy.hits)
        hits[0] = num_right
        found.append(dataclasses.replace(accuracy, hits=hits))
        return found[-1]

    monkeypatch.setattr(Validation, "_evaluate", evaluate_and_change)
    arguments = options(pictures, out, gate="dense", epochs=1, ema="auto", eval_every=1, optimizer="adamw", lr=0.01)
    assert main(["train", *arguments]) == 0
    plain, averaged = (accuracy.top1 for accuracy in found)
    accuracy = summary_of(out)["accuracy"]
    assert accuracy["val_top1"] == accuracy["best_val_top1"] == max(plain, averaged)
    assert accuracy["ema"] == {
        **{"decay": pytest.approx((1 - 1 / 15) ** 19), "top1": averaged, "plain_top1": plain},
        "used": average_is_better,
    }
    state = load_checkpoint(out / "checkpoints" / "last.pt")["trainer"]
    weights = list(safetensors.torch.load_file(out / "model.safetensors").values())
    engine, own = state["shared"]["engine"], state["ranks"][0]["engine"]
    kept = [*engine["ema"]["parameters"], *own["ema"]] if average_is_better else list(engine["model"].values())
    assert all(any(torch.equal(one, other) for other in weights) for one in kept if one.is_floating_point())
