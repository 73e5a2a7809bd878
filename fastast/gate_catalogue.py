"""Every gate by name, and what can be said of it without importing torch: a new gate adds its line here."""

from __future__ import annotations

from dataclasses import dataclass

# With every gate but `dense`, a run trains densely before and after the gated epochs.
_PHASES = ("warmup_epochs", "anneal", "dense_calibration")


@dataclass(frozen=True, slots=True)
class GateInfo:
    """What the command line, the bench and the docs need to know of a gate.

    Attributes:
        help: what it trains, in a few words.
        options: the gate options that have an effect with it, by field name of `TrainConfig`.
        plans: whether it chooses before pictures are read.
        scores: whether every offered picture gets a scoring forward.
    """

    help: str
    options: tuple[str, ...] = ()
    plans: bool = False
    scores: bool = False


GATES: dict[str, GateInfo] = {
    "dense": GateInfo("all of them"),
    "random": GateInfo("a fresh random share each epoch", ("target", *_PHASES), plans=True),
    "forward": GateInfo(
        "those with high scores, after a forward of each",
        ("target", "selection", "significance", "explore", "unbiased", *_PHASES),
        scores=True,
    ),
    "memory": GateInfo(
        "those with high losses when last trained",
        ("target", "selection", "explore", "unbiased", *_PHASES),
        plans=True,
    ),
    "infobatch": GateInfo("all but half of those below the mean loss", ("prune", *_PHASES), plans=True),
}


def unused_options(options: dict[str, object], gate: str) -> list[str]:
    """The names of those options that have no effect with the gate, though they have with another one."""
    gate_options = {name for info in GATES.values() for name in info.options}
    return [name for name in options if name in gate_options.difference(GATES[gate].options)]
