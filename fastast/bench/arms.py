"""The arms and budgets that `--arms` and `--budgets` name; everything is checked here, without torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastast.config.config_checks import idle_gate
from fastast.config.config_file import option_named, resolve
from fastast.config.options import check_choice, flag_of, parse_budget, require
from fastast.errors import InputError
from fastast.gates.registry import GATES, unused_options

# Options that the matrix sets for each run, and those that all runs share: with other data, another size of the
# pictures that are evaluated, or another network, neither accuracy nor work could be compared.
SET_BY_MATRIX = ("gate", "out", "epochs", "budget", "max_time")
SHARED = ("seed", "data", "train_dir", "val_dir", "val_split", "image_size", "arch")


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of the comparison: a gate, and the options in which its runs differ from the others."""

    gate: str
    options: Mapping[str, Any]  # by field name of `TrainConfig`, without the gate

    @property
    def name(self) -> str:
        """As in `--arms`, with the options in the order of their names."""
        words = [
            flag_of(key)[2:] + ("" if value is True else f"={value:g}" if type(value) is float else f"={value}")
            for key, value in sorted(self.options.items())
        ]
        return self.gate + (":" + ",".join(words) if words else "")

    def to_json(self) -> dict[str, Any]:
        """Its entry in `bench.json`."""
        return {"name": self.name, "options": {"gate": self.gate, **self.options}}


@dataclass(frozen=True, slots=True)
class Budget:
    """What each run of a column may spend."""

    kind: str  # "ep", "time" or "joules"
    amount: float  # dense epochs' worth of work, seconds, or joules of the GPUs

    @property
    def name(self) -> str:
        """As `--budget` takes it."""
        if self.kind == "ep":
            return f"{self.amount:g}ep"
        if self.kind == "joules":
            return f"{self.amount / 1000:g}kJ"
        minutes, seconds = divmod(round(self.amount, 1), 60)
        hours, minutes = divmod(int(minutes), 60)
        parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
        return "".join(f"{value:g}{unit}" for value, unit in parts if value)

    def scaled(self, factor: float) -> Budget:
        """The budget times a factor, to three digits."""
        return Budget(self.kind, float(f"{self.amount * factor:.3g}"))

    def to_json(self) -> dict[str, Any]:
        """Its entry in `bench.json`."""
        return {"name": self.name, **dataclasses.asdict(self)}


def parse_arms(text: str) -> list[Arm]:
    """The arms of `--arms "dense;random:target=0.3;memory:target=auto,no-flip"`.

    Raises:
        InputError: a gate or an option is unknown, or not for an arm; an arm is named twice; none is dense.
    """
    arms: list[Arm] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        arm = _parse_arm(part)
        require(arm.name not in [other.name for other in arms], f"--arms {part}: is named twice; leave one of them out")
        arms.append(arm)
    require(
        any(arm.gate == "dense" for arm in arms),
        f'--arms {text}: has no dense arm, which the others are compared with; add it, as in --arms "dense;{text}"',
    )
    return arms


def _parse_arm(text: str) -> Arm:
    gate, _, rest = (part.strip() for part in text.partition(":"))
    check_choice("--arms", "gate", gate, GATES)
    options: dict[str, Any] = {}
    for part in filter(None, map(str.strip, rest.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        try:
            field = option_named(key.removeprefix("--"))
            options[field.name] = _value(field, key, value if equals else None)
        except InputError as error:
            raise InputError(f"--arms {text}: {error}") from error
        flag = flag_of(field.name)
        require(
            field.name not in SET_BY_MATRIX,
            f"--arms {text}: {flag} is set for each run; leave it out, and name gates in --arms, amounts in --budgets",
        )
        require(
            field.name not in SHARED,
            f"--arms {text}: {flag} must be the same in all runs, or they could not be compared; give it beside --arms",
        )
    useless = unused_options(dict(options), gate)
    require(
        not useless, f"--arms {text}: {flag_of(useless[0]) if useless else ''} does nothing with {gate}; leave it out"
    )
    return Arm(gate, options)


def _value(field: dataclasses.Field, key: str, text: str | None) -> Any:
    kind, words = field.metadata["kind"], field.metadata["words"]
    if text in words:
        return text
    if kind is bool:
        require(text is None, f"{key} takes no value; write {key} alone")
        return True
    require(bool(text), f"{key} needs a value, as in {key}=VALUE")
    try:
        return kind(text)
    except ValueError:
        expected = " or ".join(("a whole number" if kind is int else "a number", *words))
        raise InputError(f"{key}={text}: expected {expected}") from None


def parse_budgets(text: str) -> list[Budget]:
    """The budgets of `--budgets 0.5,1,2ep` or `5m,10m`, the smallest first; a number takes the unit of the last one.

    Raises:
        InputError: one of them is none; they are of several kinds; one is named twice.
    """
    parts = [part.strip() for part in text.split(",")]
    unit = re.fullmatch(r"[\d.]+([a-zA-Z]+)", parts[-1])
    budgets = []
    for part in parts:
        amount = parse_budget(part + unit[1] if unit and re.fullmatch(r"[\d.]+", part) else part, "--budgets")
        budgets.append(Budget(*amount))
    kinds = {budget.kind for budget in budgets}
    require(len(kinds) == 1, f"--budgets {text}: epochs, times and energies cannot be compared; use one unit for all")
    require(
        len({budget.name for budget in budgets}) == len(budgets),
        f"--budgets {text}: one of them is named twice; leave it out",
    )
    return sorted(budgets, key=lambda budget: budget.amount)


def check_runs(options: dict[str, Any], arms: list[Arm], budgets: list[Budget]) -> list[str]:
    """Checks every run by the rules of `fastast train`.

    Returns:
        A line for each arm whose gate never runs with some budgets, as its dense epochs take them all.

    Raises:
        InputError: a run would be refused; with the arm where its own options are at fault.
    """
    resolve({**options, "gate": "dense", "budget": budgets[0].name})
    notes = []
    for arm in arms:
        try:
            configs = [resolve({**options, **arm.options, "gate": arm.gate, "budget": b.name}) for b in budgets]
        except InputError as error:
            raise InputError(f"--arms {arm.name}: {error}") from error
        idle = [config.budget for config in configs if idle_gate(config) is not None]
        if idle:
            warmup = configs[0].warmup_epochs or 0.0
            notes.append(
                f"{arm.name} is dense training with {', '.join(map(str, idle))}: --warmup-epochs "
                f"{warmup:g} and --anneal {configs[0].anneal:g} leave its gate nothing; lower them"
            )
    return notes
