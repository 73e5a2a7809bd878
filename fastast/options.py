"""How an option is declared, parsed from the command line or a file, and checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from fastast.errors import InputError


def option(
    default: Any, doc: str, *, kind: type, metavar: str | None = None, choices: Collection[str] = ()
) -> Any:
    """A config field: its default, its one line of doc, and what the command line needs to parse it."""
    metadata = {"doc": doc, "kind": kind, "metavar": metavar, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def require(holds: bool, message: str) -> None:
    """Raises InputError with the message unless the condition holds."""
    if not holds:
        raise InputError(message)


def check_type(field: dataclasses.Field, config: Any) -> None:
    """Values from a file come with any type: each must be of its field's kind (an int serves as a float)."""
    value, kind = getattr(config, field.name), field.metadata["kind"]
    flag = "--" + field.name.replace("_", "-")
    if value is None:
        if field.default is not None:
            raise InputError(f"{flag}: needs a value")
        return
    if type(value) is int and abs(value) >= 2**63:
        raise InputError(f"{flag}: a number of 2^63 or more")
    if kind is float and type(value) is int:
        setattr(config, field.name, float(value))
    elif type(value) is not kind:
        raise InputError(f"{flag} {value!r}: expected {kind.__name__}, got {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{flag} {value}: must be a finite number")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise InputError(f"{flag} {value}: choose from {', '.join(choices)}")


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a duration such as 8h50m, 1d, 45m or 90s.

    Args:
        text: days, hours, minutes and seconds in this order, each with its letter.
        flag: the option, for the message.

    Raises:
        InputError: it is none, or zero.
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower())
    parts = [float(part or 0) for part in match.groups()] if match else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if seconds <= 0:
        raise InputError(f"{flag} {text}: expected a duration, for example 8h50m, 45m or 90s")
    return seconds
