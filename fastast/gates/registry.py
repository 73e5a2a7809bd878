"""Every gate by its name on the command line, without importing torch.

A new gate is one file with a subclass of `fastast.gates.base.Gate`, and one entry here: the command line, its checks,
the planner and the bench read the entry.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastast.errors import InputError

if TYPE_CHECKING:
    from fastast.gates.base import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEntry:
    """What can be known of a gate before it is imported.

    Attributes:
        path: "module:Class".
        help: one line for `--help`.
        options: names of the options of a run that it uses, beside those of the schedule.
        arguments: those of them that its class takes.
    """

    path: str
    help: str
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


GATES: dict[str, GateEntry] = {
    "dense": GateEntry(path="fastast.gates.dense:Dense", help="trains every sample: the baseline"),
    "random": GateEntry(
        path="fastast.gates.random:Random",
        help="reads and trains a fresh random share each epoch",
        options=("target", "warmup_epochs", "anneal", "dense_calibration"),
    ),
    "forward": GateEntry(
        path="fastast.gates.forward:Forward",
        help="scores every sample with a forward pass and trains those selected",
        options=("target", "warmup_epochs", "anneal", "dense_calibration", "selection", "significance", "explore")
        + ("unbiased",),
    ),
    "memory": GateEntry(
        path="fastast.gates.memory:Memory",
        help="reads and trains a share chosen by the losses last seen in training",
        options=("target", "warmup_epochs", "anneal", "dense_calibration", "selection", "explore", "unbiased"),
    ),
    "infobatch": GateEntry(
        path="fastast.gates.infobatch:InfoBatch",
        help="leaves out half of the samples with a loss below the mean and scales up the other half",
        options=("warmup_epochs", "anneal", "dense_calibration", "prune"),
        arguments=("prune",),
    ),
}


def make_gate(name: str, options: dict[str, Any] | None = None) -> Gate:
    """The gate of that name.

    Args:
        name: one of the keys of `GATES`.
        options: values by option name; those that the gate's class takes are handed to it, others are ignored.

    Raises:
        InputError: there is none of that name, or an option is outside its range.
    """
    if name not in GATES:
        raise InputError(f"gate {name!r} is unknown: choose one of {', '.join(GATES)}")
    entry = GATES[name]
    module, _, class_name = entry.path.partition(":")
    arguments = {key: value for key, value in (options or {}).items() if key in entry.arguments}
    return getattr(importlib.import_module(module), class_name)(**arguments)
