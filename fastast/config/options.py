"""How an option is declared and checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fastast.config.removed import removed_value
from fastast.errors import InputError


def option(
    default: Any,
    doc: str,
    *,
    kind: type | None = None,
    metavar: str | None = None,
    choices: Collection[str] = (),
    words: Collection[str] = (),
) -> Any:
    """A config field: its default, its one line of doc, and what the command line needs to parse it.

    Args:
        default: the value where none is chosen; None for "chosen for this machine or data".
        doc: what it means, with its unit, and when to change it.
        kind: str, int, float or bool; by default the type of the default.
        metavar: name of the value in `--help`; the choices by default.
        choices: the values that are allowed, read at each check; any if empty.
        words: values that are allowed beside those of the kind.
    """
    shown = metavar or "|".join(choices) or None
    metadata = {"doc": doc, "kind": kind or type(default), "metavar": shown, "choices": choices, "words": words}
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """The option on the command line for a field name."""
    return "--" + name.replace("_", "-")


def command_words(options: Mapping[str, Any]) -> list[str]:
    """Options by field name as words of a command line; None and False are left out, 0 is not."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(flag_of(name))
        elif value is not None and value is not False:
            words += [flag_of(name), str(value)]
    return words


def require(holds: bool, message: str) -> None:
    """Raises InputError with the message unless the condition holds."""
    if not holds:
        raise InputError(message)


def checked_value(field: dataclasses.Field, value: Any) -> Any:
    """The value of an option as its field's kind (an int serves as a float, a number as a str).

    Raises:
        InputError: it is of another type, not finite, or none of the choices.
    """
    kind, choices, flag = field.metadata["kind"], field.metadata["choices"], flag_of(field.name)
    if value is None:
        require(field.default is None, f"{flag}: needs a value")
        return None
    if value in field.metadata["words"]:
        return value
    if type(value) is int:
        require(abs(value) < 2**63, f"{flag}: a number of 2^63 or more")
        value = float(value) if kind is float else value
    if kind is str and type(value) in (int, float):  # such as --nproc and --eval-every, which take a word as well
        value = f"{value:g}" if type(value) is float else str(value)
    require(not isinstance(value, str) or bool(value.strip()), f"{flag}: is empty; give a value, or leave it out")
    expected = " or ".join((kind.__name__, *field.metadata["words"]))
    require(type(value) is kind, f"{flag} {value!r}: expected {expected}, got {type(value).__name__}")
    require(kind is not float or math.isfinite(value), f"{flag} {value}: must be a finite number")
    if choices:
        check_choice(flag, field.name, value, choices)
    return value


def check_choice(flag: str, name: str, value: str, choices: Collection[str]) -> None:
    """Refuses a value that is none of the choices, or says what replaced it if it once was.

    Args:
        flag: the option, for the message.
        name: the field's name.
        value: what was chosen.
        choices: what may be.
    """
    if value not in choices:
        removed = removed_value(name, value)
        raise InputError(f"{flag} {value}" + (f" {removed}" if removed else f": choose from {', '.join(choices)}"))


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


class Amount(NamedTuple):
    """What a run may spend.

    Attributes:
        kind: "ep", "time" or "joules".
        value: dense epochs' worth of work, seconds, or joules of the GPUs.
    """

    kind: str
    value: float


_JOULES = {"j": 1.0, "kj": 1e3, "kwh": 3.6e6}


def parse_budget(text: str, flag: str) -> Amount:
    """The amount that a budget such as 5ep, 8h50m, 40m, 500kJ or 0.15kWh names.

    Args:
        text: a number with ep, kJ, J or kWh; or a duration, as for `parse_duration`.
        flag: the option, for the message.

    Raises:
        InputError: it is none, or zero.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ep|j|kj|kwh)", text.strip().lower())
    if match is None:
        try:
            return Amount("time", parse_duration(text, flag))
        except InputError:
            pass
    elif float(match[1]) > 0:
        value, unit = float(match[1]), match[2]
        return Amount("ep", value) if unit == "ep" else Amount("joules", value * _JOULES[unit])
    raise InputError(
        f"{flag} {text}: expected dense epochs' worth of work, a time, or GPU energy, for example 5ep, 8h50m or 500kJ"
    )
