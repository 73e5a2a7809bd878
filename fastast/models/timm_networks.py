"""Networks of timm, where it is installed: `--arch timm/NAME`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from fastast.errors import InputError

PREFIX = "timm/"


def is_timm(arch: str) -> bool:
    """Whether `--arch` names a network of timm."""
    return arch.startswith(PREFIX)


def require_timm(what: str) -> Any:
    """The package.

    Args:
        what: the option that needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(f"{what}: timm is not installed; pip install timm") from None


def settings(arch: str) -> Any:
    """What timm says of a network: mean, std, input_size [3, S, S], classifier, and where its weights are.

    Args:
        arch: timm/NAME or timm/NAME.TAG.

    Raises:
        InputError: timm is not installed, or knows no such network.
    """
    timm = require_timm(f"--arch {arch}")
    name = arch.removeprefix(PREFIX)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        near = " or ".join(PREFIX + other for other in close)
        hint = f"did you mean {near}?" if close else "timm.list_models() has all"
        raise InputError(f"--arch {arch}: timm has no such network; {hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        base = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{base}.*")[:5])
        raise InputError(f"--arch {arch}: {error} Choose {PREFIX}{base}, or of its weights: {tags}") from None


def construct(arch: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """A network with a head for so many classes.

    Raises:
        InputError: timm does not know it, or its weights cannot be had.
    """
    cfg = settings(arch)
    timm = require_timm(f"--arch {arch}")
    if pretrained and not cfg.has_weights:
        raise InputError(f"--weights imagenet: timm has no weights for {arch}; give a file, or --weights none")
    try:
        return timm.create_model(arch.removeprefix(PREFIX), num_classes=num_classes, pretrained=pretrained)
    except OSError as error:
        if not pretrained:
            raise
        url = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{cfg.hf_hub_filename or 'model.safetensors'}"
        url = url if cfg.hf_hub_id else cfg.url
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--weights imagenet: could not download ({reason}); fetch {url} on a machine with a network and pass it "
            f"as --weights {url.rsplit('/', 1)[-1]}"
        ) from error


def head_names(network: nn.Module) -> list[str]:
    """The modules that give the logits, where a network of timm says so; else nothing."""
    found = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or []
    return [found] if isinstance(found, str) else list(found)


def counterpart(arch: str, network: nn.Module, num_classes: int) -> tuple[str, Any]:
    """The name of the timm network with the tensors of `network`, and one such network.

    Args:
        arch: the name of `network`, as `--arch` takes it.
        network: a classifier.
        num_classes: its outputs.

    Raises:
        InputError: timm has none, or is not installed.
    """
    timm = require_timm("--to hub")
    name = arch.removeprefix(PREFIX).partition(".")[0]
    if timm.is_model(name):
        twin = timm.create_model(name, num_classes=num_classes)
        if _shapes(twin) == _shapes(network):
            return name, twin
    raise InputError(
        f"--to hub: timm has no network with the tensors of {arch} (of torchvision's it has ResNet, ResNeXt, Wide "
        "ResNet, DenseNet and Inception); use --to onnx or torch"
    )


def _shapes(network: nn.Module) -> dict[str, Any]:
    return {name: value.shape for name, value in network.state_dict().items()}
