"""Where the options of a run come from: defaults, those of the demo and of a preset, a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from typing import Any

from fastast.config.options import checked_value, flag_of
from fastast.config.presets import DEMO, PRESETS
from fastast.config.removed import removed_option
from fastast.config.train_config import TrainConfig
from fastast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def resolve(options: dict[str, Any]) -> TrainConfig:
    """Makes the config of a run: the defaults, the demo's where no data is named, the preset's, then `options`.

    Args:
        options: those that the user chose, by field name.

    Raises:
        InputError: a wrong type or a value out of range.
    """
    chosen: dict[str, Any] = {}
    for layer in ({} if names_data(options) else DEMO, PRESETS.get(options.get("preset", ""), {}), options):
        if any(layer.get(name) is not None for name in ("epochs", "budget")):  # of which a run has one
            chosen = {name: value for name, value in chosen.items() if name not in ("epochs", "budget")}
        chosen |= layer
    return TrainConfig(**chosen)


def names_data(options: dict[str, Any]) -> bool:
    """Whether options, by field name, say what to train on; otherwise it is the demo set."""
    return any(options.get(name) for name in ("data", "train_dir", "val_dir"))


def read_toml(path: str) -> dict[str, Any]:
    """Reads options from a TOML file; keys may use `-` or `_`.

    Raises:
        InputError: the file is missing or is not TOML, a key is no option, or a value is of the wrong type.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise InputError(f"--config {path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:  # of the syntax, of UTF-8, of a number's length, of nesting
        raise InputError(f"--config {path}: not valid TOML: {error}") from error
    options = {}
    for key, value in table.items():
        try:
            field = option_named(key)
            options[field.name] = checked_value(field, value)
        except InputError as error:
            raise InputError(f"--config {path}: {error}") from error
    return options


def option_named(key: str) -> dataclasses.Field:
    """The field of `TrainConfig` with this name; it may use `-` or `_`.

    Raises:
        InputError: there is none, with a close one if there is; or what became of it.
    """
    known = {field.name: field for field in dataclasses.fields(TrainConfig)}
    name = key.replace("-", "_")
    if removed := removed_option(name):
        raise InputError(f"{flag_of(name)} {removed}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; `fastast train --help-all` lists them"
        raise InputError(f"unknown option {key!r}{hint}")
    return known[name]
