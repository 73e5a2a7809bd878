"""The network: any classifier of torchvision or timm by name, with a head for the classes at hand."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import itertools
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.models.timm_networks import PREFIX, construct, head_names, is_timm, settings
from fastast.models.weights_info import read_info
from fastast.scan.file_index import some_names

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")


def build_model(
    arch: str, num_classes: int, weights: str = "none", classes: Sequence[str] | None = None
) -> tuple[nn.Module, list[str]]:
    """Builds a classifier with channels-last parameters.

    Args:
        arch: a torchvision classifier ("resnet50"), "timm/NAME", or "module:function" called with `num_classes=`.
        num_classes: outputs of the head.
        weights: "none", "imagenet" (torchvision's best for `arch`, or timm's; a function of the user's is called with
            `weights="imagenet"` too and loads its own), or a .pt/.pth/.safetensors file. Files are read without
            executing code. A head of another size, or one for other classes, is left as initialised.
        classes: what the outputs stand for; None: whatever those of the file do.

    Returns:
        The model, and notes for the user (such as the replaced head).

    Raises:
        InputError: unknown arch, unreadable weights, or weights of another network.
    """
    check_names(arch, weights)
    if weights == "imagenet" and ":" in arch:
        model = _construct(arch, num_classes, weights)
        return model.to(memory_format=torch.channels_last), [f"weights imagenet: as loaded by {arch}"]
    if weights == "imagenet" and is_timm(arch):
        model = construct(arch, num_classes, pretrained=True)
        return model.to(memory_format=torch.channels_last), _describe_pretrained(arch, num_classes)
    model = _construct(arch, num_classes)
    notes = []
    if weights != "none":
        state = _imagenet_state(arch) if weights == "imagenet" else read_weights(weights)
        info = None if weights == "imagenet" or classes is None else read_info(Path(weights))
        others = [] if info is None or info.classes == list(classes or ()) else info.classes
        notes = load_weights(model, state, weights, others)
    return model.to(memory_format=torch.channels_last), notes


def check_names(arch: str, weights: str) -> None:
    """Refuses an unknown network or a missing file of weights, before anything slow is done.

    Raises:
        InputError: with a name that would work.
    """
    if is_timm(arch):
        settings(arch)
    elif ":" not in arch:
        known = torchvision.models.list_models(module=torchvision.models)
        if arch not in known:
            close = difflib.get_close_matches(arch, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "for example resnet18, resnet50, convnext_tiny"
            raise InputError(f"--arch {arch}: torchvision has no such classifier; {hint}")
    if weights in ("none", "imagenet"):
        return
    if Path(weights).suffix not in WEIGHT_SUFFIXES:
        kinds = ", ".join(WEIGHT_SUFFIXES)
        raise InputError(f"--weights {weights}: expected none, imagenet, or a file ending in {kinds}")
    if not Path(weights).is_file():
        raise InputError(f"--weights {weights}: no such file")


def _construct(arch: str, num_classes: int, weights: str = "none") -> nn.Module:
    if is_timm(arch):
        return construct(arch, num_classes)
    if ":" not in arch:
        # Auxiliary heads would have to be trained on losses of their own.
        options = {"aux_logits": False, "init_weights": False} if arch in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    module_name, _, function_name = arch.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        if weights == "none":
            model = function(num_classes=num_classes)
        elif "weights" in inspect.signature(function).parameters:
            model = function(num_classes=num_classes, weights=weights)
        else:
            raise InputError(f"--weights {weights}: {arch} takes no weights=, so it has none; give a file instead")
    except InputError:
        raise  # the function's own words
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"--arch {arch}: {error}; expected module:function on the Python path, called with num_classes="
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"--arch {arch}: returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _describe_pretrained(arch: str, num_classes: int) -> list[str]:
    """What became of the head of timm's own weights."""
    said = settings(arch)
    notes = [f"weights imagenet: {PREFIX}{said.architecture}.{said.tag}"]
    if said.num_classes != num_classes:
        heads = f"timm's has {said.num_classes} outputs; this data has {num_classes} classes"
        notes.append(f"head replaced: {said.classifier} ({heads})")
    return notes


def _imagenet_state(arch: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"--weights imagenet: could not download ({error}); fetch {weights.url} where there is a network, and put "
            f"it into {place}, or pass it as --weights {weights.url.rsplit('/', 1)[-1]}"
        ) from error


def read_weights(path: str) -> dict[str, Tensor]:
    """Reads a state dict from a .pt/.pth/.safetensors file, executing no code.

    The usual wrappers are opened: a dict under "model" or "state_dict", and names behind "module.".

    Raises:
        InputError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            state: Any = safetensors.torch.load(file.read_bytes())  # its own reader takes only UTF-8 paths
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: damaged, or holds more than plain tensors; refused, as loading it could run code"
        ) from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise InputError(f"{path}: damaged or not a torch file ({type(error).__name__})") from error
    if isinstance(state, dict) and "trainer" in state:
        raise InputError(
            f"{path}: the whole state of a run, to resume from; name best.pt beside it, or the run's model.safetensors"
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(
    model: nn.Module, state: dict[str, Tensor], source: str, other_classes: Sequence[str] = ()
) -> list[str]:
    """Loads `state` into `model`; only the head (the last layer) may be of another size.

    Args:
        model: changed in place.
        state: of a network of the same kind.
        source: for the message.
        other_classes: what the file's head stands for, if not for what the model's does: it is not loaded then.

    Returns:
        Notes for the user: which head was replaced, if it was.

    Raises:
        InputError: names or sizes differ beyond the head.
    """
    own = model.state_dict()
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items() if _is_kept(name, own)}
    heads = head_names(model) or [last_module(model)]
    head = {name for name in own if name.rpartition(".")[0] in heads}
    replaced = sorted(n for n in head if n in state and (other_classes or state[n].shape != own[n].shape))
    usable = {name: value for name, value in state.items() if name not in replaced}
    missing = sorted(own.keys() - usable.keys() - head)
    # Batch counters appeared in torch 0.4.1 and older files lack them; they are not used with a fixed momentum.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    unknown = sorted(usable.keys() - own.keys())
    wrong = sorted(n for n in usable.keys() & own.keys() if usable[n].shape != own[n].shape)
    if missing or unknown or wrong:
        first = (wrong or missing or unknown)[0]
        raise InputError(
            f"{source}: not for this --arch ({len(missing)} tensors missing, {len(unknown)} unknown,"
            f" {len(wrong)} of another shape; first: {first})"
        )
    model.load_state_dict(usable, strict=False)
    absent = sorted(head - state.keys())
    if not replaced and not absent:
        return []
    found = f"the file's has {state[replaced[0]].shape[0]} outputs" if replaced else "the file has none"
    if other_classes:
        found += f", for other classes: {some_names(other_classes)}"
    return [f"head replaced: {', '.join(heads)} ({found}; this data has {own[min(head)].shape[0]} classes)"]


# DenseNet files of torchvision name layers "norm.1" that the network calls "norm1".
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# Heads that only serve training, which are left out of our networks.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def _is_kept(name: str, own: dict[str, Tensor]) -> bool:
    return name in own or not name.startswith(_AUXILIARY)


def last_module(model: nn.Module) -> str:
    """Name of the last module that owns a weight: the classifier in every torchvision network but those with an
    auxiliary head, where registration order still puts `fc` last."""
    names = [name for name, _ in model.named_parameters()]
    return names[-1].rpartition(".")[0]


def check_fits(twin: nn.Module, arch: str, image_size: int, num_classes: int, *, grows_to: int | None = None) -> None:
    """Runs one blank picture through a network in eval mode.

    Args:
        twin: the network.
        arch: its name, for the message.
        image_size: side of the picture, pixels.
        num_classes: scores that it is to give.
        grows_to: `--image-size`, where the size is one of `--train-size`.

    Raises:
        InputError: it cannot take pictures of that size, or gives something other than one score for each class.
    """
    device = next(twin.parameters()).device
    try:
        with torch.no_grad():
            output = twin(torch.zeros(1, 3, image_size, image_size, device=device))
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        if grows_to is not None:
            raise InputError(
                f"--arch {arch} takes no pictures of {image_size} px ({reason}); train at one size, "
                f"--train-size {grows_to}:{grows_to}, or start at a larger one if the network takes several"
            ) from error
        made_for = f"{settings(arch).input_size[-1]}" if is_timm(arch) else "such as 224 or 299"
        raise InputError(
            f"--arch {arch} takes no pictures of --image-size {image_size} ({reason}); try the size it was made for, "
            f"{made_for}"
        ) from error
    shape = tuple(getattr(getattr(output, "logits", output), "shape", ()))
    if shape != (1, num_classes):
        raise InputError(
            f"--arch {arch}: gives an output of shape {shape} for one picture, expected (1, {num_classes})"
        )


def scoring_twin(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode that shares every parameter and buffer with it.

    Scoring through the twin needs no switch between training and evaluation mode, so both compiled graphs keep
    one specialisation each, and hooks on `model` see training work only.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
