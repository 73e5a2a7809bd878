"""Finds a trained network: a run folder or a file of weights, and what both say about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastast.errors import InputError
from fastast.feed import LoaderOptions
from fastast.models.build import WEIGHT_SUFFIXES, build_model, check_fits
from fastast.models.weights_info import INTERPOLATION, WeightsInfo, channel_levels, read_info
from fastast.preprocessing import eval_resize
from fastast.run_folder import RunFolder, find_weights, read_json


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """Weights, and all that is needed to use them.

    Attributes:
        weights: the file.
        folder: the folder around it, which holds a run or not.
        arch: the network, as `--arch` takes it.
        image_size: side of the pictures that it takes, pixels.
        classes: names in the order of its outputs; None if neither the file nor the folder says them.
        info: what the file says of itself; None if it says nothing.
    """

    weights: Path
    folder: RunFolder
    arch: str
    image_size: int
    classes: tuple[str, ...] | None
    info: WeightsInfo | None

    def required_classes(self) -> tuple[str, ...]:
        """The names of the classes.

        Raises:
            InputError: nothing says them.
        """
        if self.classes is None:
            raise InputError(
                f"{self.weights}: says nothing of its classes; put a classes.json beside it, a list of names in the "
                "order of the outputs"
            )
        return self.classes

    def loader_options(
        self, *, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> LoaderOptions:
        """Those that prepare pictures as the network expects them."""
        mean, std = channel_levels(self.arch)
        if self.info is not None:
            mean, std = (tuple(255 * value for value in values) for values in (self.info.mean, self.info.std))
        return LoaderOptions(
            batch_size=batch_size, image_size=self.image_size, device=device, dtype=dtype, mean=mean, std=std
        )

    def build(self, device: torch.device, num_classes: int) -> nn.Module:
        """The network in eval mode.

        Raises:
            InputError: the weights are of another network, or of another number of classes.
        """
        model, notes = build_model(self.arch, num_classes, str(self.weights))
        if notes:
            raise InputError(f"{self.weights}: {notes[0]}; use data with the classes that it was trained on")
        model = model.to(device).eval()
        check_fits(model, self.arch, self.image_size, num_classes)
        return model


def find_trained(path: str | Path, arch: str | None = None, image_size: int | None = None) -> TrainedNetwork:
    """Finds the weights and what is known about them.

    Args:
        path: a run folder (its `model.safetensors`), or a file of weights.
        arch: the network, where neither the file nor a run folder around it says it.
        image_size: side of the pictures, pixels; None: what the file was trained for, else the run's, else 224.

    Raises:
        InputError: there is no such file, it is of another network than `arch`, or nothing says which network it is.
    """
    weights, folder = find_weights(path)
    if weights.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{weights}: name a run folder, or a file of weights: {', '.join(WEIGHT_SUFFIXES)}")
    config: dict[str, Any] = read_json(folder.config) if folder.config.exists() else {}
    info = read_info(weights)
    if info is not None:
        _require_agreement(weights, info, arch)
        if ":" in info.arch and arch is None and config.get("arch") != info.arch:
            raise InputError(f"{path}: a file may not choose code to run; if you trust it, add --arch {info.arch}")
        arch, image_size = arch or info.arch, image_size or info.crop_size
    arch = arch or config.get("arch")
    if not isinstance(arch, str):
        raise InputError(f"{path}: neither the file nor a run folder around it names its network; name it with --arch")
    classes = info.classes if info is not None else _read_classes(folder.classes) if folder.classes.exists() else None
    return TrainedNetwork(
        weights=weights,
        folder=folder,
        arch=arch,
        image_size=image_size or config.get("image_size") or 224,
        classes=None if classes is None else tuple(classes),
        info=info,
    )


def top_classes(logits: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable classes; of equal ones, as bfloat16 makes them, the first.

    Args:
        logits: [B, C].
        top: K, at most C.

    Returns:
        Probabilities [B, K], descending, and labels int64 [B, K].
    """
    labels = logits.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return logits.softmax(1).gather(1, labels), labels


def _require_agreement(path: Path, info: WeightsInfo, arch: str | None) -> None:
    """Refuses another network than the one that the weights are of, and pictures prepared as we cannot."""
    if arch not in (None, info.arch) and not (":" in str(arch) and ":" in info.arch):
        raise InputError(f"--arch {arch}: {path} is a {info.arch}; leave --arch out")
    if (info.resize_size, info.interpolation) != (eval_resize(info.crop_size), INTERPOLATION):
        raise InputError(
            f"{path}: its pictures were prepared otherwise ({info}); evaluate it with the version that wrote it"
        )


def _read_classes(path: Path) -> list[str]:
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a list of class names ({error})") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: expected a JSON list of class names")
    return classes
