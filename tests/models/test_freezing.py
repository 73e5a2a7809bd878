"""Frozen parts stay as they are to the bit, and training around them costs what its operations say."""

import pytest
import torch
import torchvision
from torch import nn

from fastast.cli import main
from fastast.distributed.environment import WorldInfo
from fastast.distributed.gradient_averaging import average_statistics
from fastast.distributed.ranks import Ranks
from fastast.errors import InputError
from fastast.models.freezing import freeze, train_cost
from tests.engine.engines import batch, engine
from tests.nets import tiny
from tests.plan.test_budget import BATCH, NUM_TRAIN, budgeted
from tests.train.test_run import summary_of


def trained(**changes):
    """The names of what a training step changed."""
    one = engine(gate="dense", **changes)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.set_lr(0.1)
    one.enqueue(batch(0))
    one.train()
    return {name for name, value in one.model.state_dict().items() if not torch.equal(value, before[name])}


STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
WEIGHTS = {"0.weight", "1.weight", "1.bias", "5.weight", "5.bias"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, WEIGHTS | STATISTICS),
        ({"freeze_bn": "on"}, WEIGHTS),
        ({"freeze": "0"}, WEIGHTS - {"0.weight"} | STATISTICS),
        ({"freeze": "1"}, {"5.weight", "5.bias"}),
    ],
)
def test_step_changes_what_is_not_frozen(changes, expected):
    assert trained(**changes) == expected


def test_frozen_statistics_stay_to_the_bit_among_three_ranks(monkeypatch):
    ranks = Ranks(WorldInfo(size=3))
    monkeypatch.setattr(ranks, "all_reduce", lambda tensor: tensor.copy_(tensor + tensor + tensor))
    frozen, trained = nn.BatchNorm2d(999), nn.BatchNorm2d(999)
    network = nn.Sequential(frozen, trained)
    for norm in network:
        norm.running_mean.uniform_()
    before = [norm.running_mean.clone() for norm in network]
    frozen.eval()
    average_statistics(network, ranks)
    assert torch.equal(frozen.running_mean, before[0])
    assert not torch.equal(trained.running_mean, before[1])  # x + x + x is rounded
    torch.testing.assert_close(trained.running_mean, before[1])


def test_cost_of_training_the_rest_is_counted():
    model, side = tiny(3), 16
    conv, linear = 16 * 3 * 25 * (side // 4) ** 2, 64 * 3  # multiplications of a forward
    assert train_cost(model, side) == 3
    freeze(model, "1", statistics=False)
    # The first trained layer needs no gradient of its input: the convolution before, the linear layer now.
    assert train_cost(model, side) == pytest.approx(1 + 2 * linear / (conv + 2 * linear))
    assert [p.requires_grad for p in model.parameters()] == [False] * 3 + [True] * 2


def test_what_is_nested_deeper_is_frozen_to_its_end():
    model = torchvision.models.resnet18(num_classes=3)
    freeze(model, "layer2.0", statistics=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"conv1.weight", "layer1.1.bn2.bias", "layer2.0.downsample.0.weight"} <= frozen
    assert not any(name.startswith(("layer2.1", "layer3", "layer4", "fc")) for name in frozen)


def test_tokens_and_position_embeddings_before_a_frozen_layer_are_frozen():
    sizes = {"num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 3}
    model = torchvision.models.VisionTransformer(image_size=32, patch_size=8, **sizes)
    freeze(model, "encoder.layers.encoder_layer_2", statistics=False)
    trained = {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"encoder_layer_3", "self_attention", "mlp", "encoder", "heads"}
    assert train_cost(model, 32) < 1.5  # no backward through three layers of four


@pytest.mark.parametrize(
    ("stage", "message"), [("layer9", "no such part; for example layer"), ("fc", "nothing to train")]
)
def test_other_stages_are_refused(stage, message):
    with pytest.raises(InputError, match=message):
        freeze(torchvision.models.resnet18(), stage, statistics=False)


def test_budget_buys_more_steps_around_a_frozen_part(pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *budgeted(pictures, out, "2ep", gate="dense", freeze="1", eval_every=9)]) == 0
    summary = summary_of(out)
    cost, backward = summary["model"]["train_cost"], summary["samples"]["backward"]
    assert 1 < cost < 2
    assert summary["compute"]["forward_units"] == pytest.approx(cost * backward)
    assert abs(cost * backward - 2 * 3 * NUM_TRAIN) <= cost * BATCH
    assert summary["energy"]["savings_arithmetic"] == 0
