"""The joules of a run by part, those of earlier processes of the run included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastast.distributed.ranks import Ranks
from fastast.energy.energy_meter import EnergyMeter, IdlePower
from fastast.energy.parts import PartEnergy, PartMeter, merge_part_ranks
from fastast.energy.reading import Reading, merge_ranks
from fastast.limits.limit_search import LimitSearch
from fastast.limits.limits import AUTO, GpuLimits
from fastast.phases import GATED

DENSE_PART, GATED_PART = "dense", "gated"


class EnergyTotals(NamedTuple):
    """What the ranks of a run have metered.

    Attributes:
        run: the run as a whole.
        parts: "dense" and "gated", those that ran.
    """

    run: Reading
    parts: dict[str, PartEnergy]


class RunEnergy:
    """Meters the dense and the gated part of a run, training intervals only, and the run as a whole.

    Args:
        meter: a started meter.

    Attributes:
        idle: power before the run, or None.
        limits: of this rank's GPU for the time of the run; None where nothing was asked for.
    """

    def __init__(self, meter: EnergyMeter) -> None:
        self.meter = meter
        self.idle: IdlePower | None = None
        self.limits: GpuLimits | None = None
        self._found_w: dict[str, float] = {}
        self._parts = {DENSE_PART: PartMeter(meter), GATED_PART: PartMeter(meter)}
        self._begun = meter.reading()
        self._earlier: dict[str, PartEnergy] = {}
        self._earlier_run: Reading | None = None
        self._epoch_from = self._begun
        self._earlier_epoch: Reading | None = None

    def part_meter(self, phase: str) -> PartMeter:
        """The meter of the part that a phase belongs to."""
        dense = self._parts[DENSE_PART]
        if phase == GATED and isinstance(dense.search, LimitSearch):
            dense.search.give_up()
        return self._parts[GATED_PART if phase == GATED else DENSE_PART]

    def set_limits(self, limits: GpuLimits) -> None:
        """Sets the limits that were asked for; "auto" takes what an earlier process of the run found, or looks for it.

        Args:
            limits: opened.
        """
        self.limits = limits
        limits.apply()
        if limits.power_limit == AUTO and limits.can_search():
            if (found_w := self._found_w.get(limits.device.name)) is not None:
                limits.set_power(found_w)
            else:
                self._parts[DENSE_PART].search = LimitSearch(limits, self.meter)

    def restore_limits(self) -> None:
        """Undoes what `set_limits` set; may be called again."""
        search = self._parts[DENSE_PART].search
        if isinstance(search, LimitSearch):
            search.give_up()
        if self.limits is not None:
            self.limits.restore()

    def _found(self) -> dict[str, float]:
        """The power limits that were looked for and found, by model of GPU."""
        search, limits = self._parts[DENSE_PART].search, self.limits
        if not isinstance(search, LimitSearch) or not search.is_done or limits is None or limits.power_limit_w is None:
            return self._found_w
        return {**self._found_w, limits.device.name: limits.power_limit_w}

    def over_ranks(self, ranks: Ranks) -> EnergyTotals:
        """What all ranks have metered so far."""
        runs = ranks.all_gather_object(self.run())
        parts = {
            name: [part for part in ranks.all_gather_object(self.part(name)) if part is not None]
            for name in self._parts
        }
        if ranks.size == 1:
            return EnergyTotals(runs[0], {name: only[0] for name, only in parts.items() if only})
        return EnergyTotals(
            merge_ranks(runs), {name: merge_part_ranks(theirs) for name, theirs in parts.items() if theirs}
        )

    def part(self, name: str) -> PartEnergy | None:
        """Joules of "dense" or "gated" so far, those before a resume included; None if it never ran."""
        earlier, now = self._earlier.get(name), self._parts[name].energy()
        return earlier if now is None else now if earlier is None else earlier + now

    def run(self) -> Reading:
        """Joules of the run so far, evaluation included."""
        now = self.meter.reading().since(self._begun)
        return now if self._earlier_run is None else self._earlier_run + now

    def joules_since(self, begun: Reading, ranks: Ranks) -> float | None:
        """GPU joules of all ranks since a reading of the meter on each, or None."""
        return _merged_joules(self.meter.reading().since(begun), ranks)

    def epoch_j(self, ranks: Ranks) -> float | None:
        """GPU joules of all ranks since the last call, or None."""
        now = self.meter.reading()
        joules = _merged_joules(self._epoch(now), ranks)
        self._epoch_from, self._earlier_epoch = now, None
        return joules

    def _epoch(self, now: Reading) -> Reading:
        reading = now.since(self._epoch_from)
        return reading if self._earlier_epoch is None else self._earlier_epoch + reading

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        parts = {name: self.part(name) for name in self._parts}
        return {
            "run": self.run().state_dict(),
            "epoch": self._epoch(self.meter.reading()).state_dict(),
            "parts": {name: part.state_dict() for name, part in parts.items() if part is not None},
            "found_w": self._found(),
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Adds what an earlier process of this run metered; None for a rank that did not exist."""
        if state is None:
            return
        self._earlier_run = Reading.from_state(state["run"])
        self._earlier_epoch = Reading.from_state(state["epoch"])
        self._found_w = state["found_w"]
        self._earlier = {name: PartEnergy.from_state(part) for name, part in state["parts"].items()}

    @staticmethod
    def reshard(states: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any] | None]:
        """The states of all ranks for another number of ranks: the first gets the joules of all."""
        if len(states) == size:
            return list(states)
        names = {name for state in states for name in state["parts"]}
        merged = {
            name: merge_ranks(Reading.from_state(state[name]) for state in states).state_dict()
            for name in ("run", "epoch")
        }
        parts = {
            name: merge_part_ranks(
                PartEnergy.from_state(state["parts"][name]) for state in states if name in state["parts"]
            ).state_dict()
            for name in names
        }
        found_w = {name: watts for state in states for name, watts in state["found_w"].items()}
        return [{**merged, "parts": parts, "found_w": found_w}, *[None] * (size - 1)]


def _merged_joules(reading: Reading, ranks: Ranks) -> float | None:
    readings = ranks.all_gather_object(reading)
    return merge_ranks(readings).joules if ranks.size > 1 else readings[0].joules
