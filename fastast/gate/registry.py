"""Every gate by its name on the command line."""

from __future__ import annotations

from typing import Any

from fastast.errors import InputError
from fastast.gate.infobatch import InfoBatch
from fastast.gate.memory_policy import Memory
from fastast.gate.policy import Dense, Forward, Policy, Random

GATES: dict[str, type[Policy]] = {gate.name: gate for gate in (Dense, Random, Forward, Memory, InfoBatch)}


def make_policy(name: str, **options: Any) -> Policy:
    """The gate of that name.

    Args:
        name: one of the keys of `GATES`.
        options: the gate's own: `prune` of `infobatch`.

    Raises:
        InputError: there is none of that name, or an option is outside its range.
    """
    if name not in GATES:
        raise InputError(f"gate {name!r} is unknown: choose one of {', '.join(GATES)}")
    return GATES[name](**options)
