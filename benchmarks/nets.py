"""Networks small enough to train many times over on a CPU: `--arch benchmarks.nets:tiny_resnet` or `small_resnet`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them (He et al., "Deep Residual Learning", 2016)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.around = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.around(x))


def tiny_resnet(num_classes: int) -> nn.Module:
    """A ResNet-8 for 32 px with 24, 48 and 96 channels, its first stage at half the side: 0.17 M parameters."""
    return _resnet8(num_classes, nn.Conv2d(3, 24, 3, 2, 1, bias=False))


def small_resnet(num_classes: int) -> nn.Module:
    """The same for 64 px: its stem sees 7 x 7 pixels, and the first stage works at a quarter of the side."""
    return _resnet8(num_classes, nn.Conv2d(3, 24, 7, 4, 3, bias=False))


def _resnet8(num_classes: int, stem: nn.Module) -> nn.Module:
    return nn.Sequential(
        stem,
        nn.BatchNorm2d(24),
        nn.ReLU(),
        Block(24, 24, 1),
        Block(24, 48, 2),
        Block(48, 96, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, num_classes),
    )
