"""Networks small enough for tests, for `--arch tests.nets:tiny`."""

import torch
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


class WithConstant(nn.Module):
    """`tiny` behind a constant that is a buffer, but of no state dict."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = tiny(num_classes)
        self.register_buffer("scale", torch.ones(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return self.network(images * self.scale)


def frozen(num_classes: int) -> nn.Module:
    """`tiny` with nothing to train."""
    return tiny(num_classes).requires_grad_(False)


def fixed(num_classes: int) -> nn.Module:
    """A network for 32 px alone, as those with position embeddings are."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, num_classes))
