"""Networks small enough for tests, for `--arch tests.nets:tiny`."""

from torch import nn


def tiny(num_classes: int) -> nn.Module:
    """A strided convolution with batch normalisation, and a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
