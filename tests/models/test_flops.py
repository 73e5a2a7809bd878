"""The cost of a forward at several sizes, by counted operations."""

import pytest
import torchvision
from torch import nn

from fastast.errors import InputError
from fastast.models.flops import forward_flops, forward_units


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def test_operations_are_those_of_convolutions_and_products():
    """Twin: two operations for each multiplication, of every pixel with every weight."""
    for size in (16, 24):
        assert forward_flops(network(), size) == 2 * (size * size * 9 * 3 * 8 + 8 * 5)


def test_cost_is_in_forwards_of_the_evaluation():
    found = forward_units(network(), (16, 24), 32)
    flops = {size: 2 * (size * size * 9 * 3 * 8 + 8 * 5) for size in (16, 24, 32)}
    assert found == {size: flops[size] / flops[32] for size in (16, 24, 32)}
    assert forward_units(network(), (32,), 32) == {32: 1.0}


def test_a_real_network_costs_about_its_area():
    found = forward_units(torchvision.models.resnet18(num_classes=4).eval(), (64, 96), 128)
    assert found[64] == pytest.approx(0.25, rel=0.01)
    assert found[96] == pytest.approx(0.5625, rel=0.01)


def test_network_without_counted_operations_is_refused():
    with pytest.raises(InputError, match="--train-size: torch counts no operations"):
        forward_units(nn.Sequential(nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (16,), 32)
