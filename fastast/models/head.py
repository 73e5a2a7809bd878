"""The head of a network: its last linear layer, and what comes before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.models.build import build_model, check_fits, last_module, scoring_twin
from fastast.models.timm_networks import head_names, is_timm, settings
from fastast.models.weights_info import read_info

IMAGENET_CLASSES = 1000


def head_is_new(arch: str, weights: str, classes: Sequence[str]) -> bool:
    """Whether a network that starts from weights gets a head as initialised, since theirs is for other classes.

    Args:
        arch, weights: as `build_model` takes them.
        classes: what the outputs stand for.

    Raises:
        InputError: as `build_model`.
    """
    if weights == "none":
        return False
    if weights == "imagenet":
        return len(classes) != (settings(arch).num_classes if is_timm(arch) else IMAGENET_CLASSES)
    info = read_info(Path(weights))
    if info is not None:
        return info.classes != list(classes)
    _, notes = build_model(arch, len(classes), weights, classes)
    return bool(notes)


def takes_probe(arch: str, num_classes: int, image_size: int) -> bool:
    """Whether a network ends in a linear layer, which a probe can set.

    Raises:
        InputError: as `build_model`, or the network takes no pictures of that size.
    """
    model, _ = build_model(arch, num_classes)
    check_fits(scoring_twin(model), arch, image_size, num_classes)
    try:
        Head(model, arch).check(image_size)
    except InputError:
        return False
    return True


class Head:
    """The last linear layer of a network.

    Args:
        model: the network.
        arch: its name, for the message.

    Raises:
        InputError: the network does not end in one.

    Attributes:
        layer: `model`'s own.
        features: what comes before it, in eval mode, sharing its tensors with the model: pictures [B, 3, S, S] in,
            features [B, F] out.
    """

    def __init__(self, model: nn.Module, arch: str) -> None:
        names = head_names(model) or [last_module(model)]
        layer = model.get_submodule(names[0])
        if len(names) > 1 or not isinstance(layer, nn.Linear) or layer.bias is None:
            raise _refusal(arch)
        self.layer = layer
        self.features = scoring_twin(model)
        parent, _, name = names[0].rpartition(".")
        setattr(self.features.get_submodule(parent), name, nn.Identity())
        self._model, self._arch = model, arch

    @torch.no_grad()
    def check(self, image_size: int) -> None:
        """Runs a picture through the network, in eval mode.

        Args:
            image_size: its side, pixels.

        Raises:
            InputError: the layer's output is not the network's.
        """
        picture = torch.linspace(-1, 1, 3 * image_size**2, device=self.layer.weight.device)
        picture = picture.view(1, 3, image_size, image_size)
        output = scoring_twin(self._model)(picture)
        features = self.features(picture)
        if not isinstance(features, Tensor) or features.shape != (1, self.layer.in_features):
            raise _refusal(self._arch)
        if not torch.allclose(getattr(output, "logits", output), self.layer(features), rtol=1e-2, atol=1e-2):
            raise _refusal(self._arch)

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Sets the layer's weight [F, C] and bias [C], in place."""
        self.layer.weight.copy_(weight.T)
        self.layer.bias.copy_(bias)


def _refusal(arch: str) -> InputError:
    return InputError(f"--start probe: {arch} does not end in a linear layer that gives the logits; use --start random")
