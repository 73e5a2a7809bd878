"""Checkpoints: whole, sealed files of plain tensors and values, read back without executing code.

A checkpoint is what `torch.save` writes, with a SHA-256 of it as the comment of its zip archive. `torch.load` does not
mind the comment; without it a flipped bit in a tensor would go unseen, since torch does not check its own CRCs.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import RunFolder

SCHEMA = 2
# The seal replaces the empty comment of the archive: its length (2 bytes, little-endian), this text, and the hash.
_NO_COMMENT = b"\0\0"
_SEAL = (7 + 64).to_bytes(2, "little") + b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_PLAIN = (int, float, bool, str, bytes, type(None))


def snapshot(value: Any) -> Any:
    """A copy of a state on the CPU that nothing changes later.

    Args:
        value: tensors, numbers, strings, and lists, tuples and dicts of them.

    Returns:
        The same structure. Tensors keep their strides, and one that occurs twice stays one; of a view only its own
        elements are copied.

    Raises:
        TypeError: something else is in it, which could not be read back.
    """
    return _copy(value, {})


def _copy(value: Any, copies: dict[tuple, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in copies or not value.numel():
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict):
        copied = OrderedDict() if isinstance(value, OrderedDict) else {}
        for name, item in value.items():
            copied[_copy(name, copies)] = _copy(item, copies)
        if hasattr(value, "_metadata"):  # the versions of modules, which their state dicts carry
            copied._metadata = _copy(value._metadata, copies)  # type: ignore[attr-defined]
        return copied
    if isinstance(value, list | tuple):
        items = [_copy(item, copies) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Writes `state` (what `snapshot` takes), whole or not at all.

    Args:
        path: the file.
        state: must not change meanwhile.
        keep: the name that the file's predecessor keeps.

    Raises:
        OSError: it could not be written; the file is as it was.
    """
    write_whole(path, lambda file: _write_sealed({"schema": SCHEMA, **state}, file), keep=keep)


def _write_sealed(state: dict[str, Any], file: BinaryIO) -> None:
    hashing = _HashingWriter(file)
    try:
        torch.save(state, cast(BinaryIO, hashing))
    except Exception:
        if hashing.error is not None:  # torch makes a RuntimeError of a full disk
            raise hashing.error from None
        raise
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_SEAL + hashing.hash.hexdigest().encode())


class _HashingWriter:
    """Hashes what it writes to a file, and remembers the file's first error."""

    def __init__(self, file: BinaryIO) -> None:
        self.hash = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        self.hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def is_sealed(path: Path) -> bool:
    """Whether every byte of a checkpoint is the one that was written.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        left = file.seek(0, os.SEEK_END) - _SEAL_SIZE
        if left < 0:
            return False
        file.seek(0)
        digest = hashlib.sha256()
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        digest.update(_NO_COMMENT)
        return file.read() == _SEAL + digest.hexdigest().encode()


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read and every byte of it is the one that was written."""
    try:
        return is_sealed(path)
    except OSError:
        return False


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises:
        InputError: the file is missing, damaged, holds more than plain tensors, or is of another schema.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        if not is_sealed(path):
            raise InputError(f"{path}: damaged, or not a fastast checkpoint (its checksum does not fit)")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: damaged, or holds more than plain tensors; not loaded") from error
    except Exception as error:  # torch.load raises many kinds for what it cannot read
        raise InputError(f"{path}: damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or "schema" not in state:
        raise InputError(f"{path}: not a fastast checkpoint")
    if state["schema"] != SCHEMA:
        raise InputError(
            f"{path}: was written by another version of fastast (its schema is {state['schema']}, here {SCHEMA}); "
            "continue with that version, or start anew with another --out"
        )
    return state


def load_last(folder: RunFolder) -> tuple[dict[str, Any], Path, str | None]:
    """Reads the newest checkpoint of a run that is whole.

    Returns:
        The state, the file it came from, and a note for the user if that is not the last one.

    Raises:
        InputError: none can be read.
    """
    try:
        return load_checkpoint(folder.last), folder.last, None
    except InputError as error:
        reason = str(error)
    if not folder.previous.is_file():
        raise InputError(f"{reason}; there is no {folder.previous.name} to fall back on")
    try:
        state = load_checkpoint(folder.previous)
    except InputError as error:
        raise InputError(f"{reason}; nor can the one before be used: {error}") from error
    return state, folder.previous, f"{reason}; continuing from the one before ({folder.previous.name})"


def export_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a model's state dict as safetensors, under its own (torchvision) names.

    Tied weights are written under each of their names: safetensors refuses tensors that share memory.
    """
    tensors: dict[str, Tensor] = {}
    storages = set()
    for name, value in weights.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    write_whole(path, _with_metadata(safetensors.torch.save(tensors), metadata or {}))


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with metadata in the order given; the library itself writes it in another order each time.

    https://huggingface.co/docs/safetensors: 8 bytes with the length of the header (little-endian), the header as JSON,
    then the tensors, whose offsets count from there.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]
