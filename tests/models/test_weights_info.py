"""The channels that a network expects are those that its published weights were trained with."""

import pytest
import torch
import torchvision
from torchvision import models

from fastast.models.weights_info import channel_levels


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_channels_of_torchvisions_networks_are_those_of_their_weights(name):
    """As `transforms()` of the best weights says; two networks convert that to -1 to 1 once they load them."""
    picture = torch.rand(3, 40, 40)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    expected = torchvision.transforms.functional.normalize(picture, preset.mean, preset.std)
    if name in ("googlenet", "inception_v3"):
        network = models.get_model(name, weights=None, aux_logits=False, init_weights=False, transform_input=True)
        expected = network._transform_input(expected[None])[0]
    mean, std = (torch.tensor(levels).view(3, 1, 1) / 255 for levels in channel_levels(name))
    torch.testing.assert_close((picture - mean) / std, expected, atol=2e-3, rtol=0)
