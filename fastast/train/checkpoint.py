"""Checkpoints: whole files of plain tensors and values, read back without executing code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fastast.errors import InputError
from fastast.files import write_whole

SCHEMA = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, and lists and dicts of them), whole or not at all."""
    write_whole(path, lambda file: torch.save({"schema": SCHEMA, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises:
        InputError: the file is missing, damaged, holds more than plain tensors, or is of another schema.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: damaged, or holds more than plain tensors; not loaded") from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise InputError(f"{path}: damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a fastast checkpoint of schema {SCHEMA}")
    return state


def export_weights(path: Path, model: nn.Module) -> None:
    """Writes the state dict as safetensors under the model's own (torchvision) names."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(path, safetensors.torch.save(tensors))
