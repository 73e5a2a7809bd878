"""What a gate saved, by three definitions that are never mixed.

estimated   as the published AST counts: an active sample costs 1.0, a skipped one 0.01;
arithmetic  counted work in forwards (`fastast.cost_model`), those of small training pictures at what they cost;
measured    joules per sample against those of dense training in the same run (`fastast.energy.measured`).

`savings_*` are of the gated part (of a dense run: all of it), `run_savings_*` of the whole run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastast.cost_model import DENSE_COST
from fastast.energy.energy_meter import IdlePower
from fastast.energy.fairness import part_conditions
from fastast.energy.measured import measure_savings
from fastast.energy.parts import PartEnergy
from fastast.energy.reading import Reading, sum_known

ACTIVE_COST, SKIPPED_COST = 1.0, 0.01
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCounts:
    """Executed work of one part of a run, on pictures of one size."""

    offered: int = 0  # samples delivered for a decision
    selected: int = 0  # samples chosen for backward (dense: all)
    backward: int = 0  # samples that went through backward
    scored: int = 0  # samples that went through the scoring forward
    score_units: float = 1.0  # cost of scoring one sample, in its forwards
    unit: float = 1.0  # cost of one forward at the size of its pictures, in forwards at `--image-size`
    train_cost: float = DENSE_COST  # cost of training one sample, in its forwards; less where a part is frozen

    @property
    def processed(self) -> int:
        """Samples that were trained or skipped. Selected ones that did not fill a batch are neither work nor saving."""
        return self.offered - self.selected + self.backward

    @property
    def forward_units(self) -> float:
        """Executed work, in forwards at `--image-size`."""
        return self.unit * (self.train_cost * self.backward + self.score_units * self.scored)

    @property
    def dense_forward_units(self) -> float:
        """Work of training every processed sample."""
        return self.unit * self.train_cost * self.processed


def rows_per_processed(parts: Sequence[PartCounts]) -> float:
    """Samples offered for each that was trained or skipped: above 1 where some did not fill a batch."""
    processed = sum(part.processed for part in parts)
    return sum(part.offered for part in parts) / processed if processed else 1.0


def estimated_savings(*parts: PartCounts) -> float | None:
    """1 - (trained x 1.0 + skipped x 0.01) / (trained + skipped); None when nothing was trained.

    With activation a in one part it is AST's formula 1 - (a + 0.01 (1 - a)).
    """
    trained, processed = sum(part.backward for part in parts), sum(part.processed for part in parts)
    if trained == 0:
        return None
    return 1 - (ACTIVE_COST * trained + SKIPPED_COST * (processed - trained)) / processed


def arithmetic_savings(*parts: PartCounts, probe_units: float = 0.0) -> float | None:
    """1 - work done / work of training every processed sample; None when nothing was trained.

    Args:
        parts: of the run.
        probe_units: forward units beside them, of a probe.
    """
    if not any(part.backward for part in parts):
        return None
    work = probe_units + sum(part.forward_units for part in parts)
    return 1 - work / sum(part.dense_forward_units for part in parts)


def speedup_ceiling(*parts: PartCounts) -> float | None:
    """The largest speed-up over dense that the cost model allows at the realised activation.

    `forward` at activation a: 3 / (1 + 3 a).
    """
    units = sum(part.unit * (part.train_cost * part.selected + part.score_units * part.scored) for part in parts)
    return sum(part.unit * part.train_cost * part.offered for part in parts) / units if units else None


def compute_summary(
    dense: Sequence[PartCounts], gated: Sequence[PartCounts], probe_units: float = 0.0
) -> dict[str, float | None]:
    """The `compute` entry of `summary.json`; arguments are as of `energy_summary`."""
    return {
        "forward_units": probe_units + sum(part.forward_units for part in (*dense, *gated)),
        "dense_forward_units": sum(part.dense_forward_units for part in (*dense, *gated)),
        "speedup_ceiling": speedup_ceiling(*gated),
    }


def energy_summary(
    *,
    dense: Sequence[PartCounts],
    gated: Sequence[PartCounts],
    gate_is_dense: bool,
    run: Reading,
    idle: IdlePower | None = None,
    dense_energy: PartEnergy | None = None,
    gated_energy: PartEnergy | None = None,
    probe_units: float = 0.0,
    probe_j: float | None = None,
    limits: dict[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The `energy` entry of `summary.json`.

    Args:
        dense: counts of warm-up and anneal, of each size of pictures.
        gated: counts of the gated part, of each size; for a dense run, of all of it.
        gate_is_dense: the run has no gate.
        run: energy of the whole run, evaluation included.
        idle: power before the run, GPU context open.
        dense_energy: joules of warm-up and anneal; None if there was none.
        gated_energy: joules of the gated part; for a dense run, of all of it.
        probe_units: forward units of a probe.
        probe_j: its joules, or None.
        limits: what was set on the GPUs for the run, or None.
        notes: further lines for `notes`, put first.
    """
    dense_of_run = gated_energy if gate_is_dense else dense_energy
    found = measure_savings(
        dense_of_run,
        gated_energy,
        dense_rows=rows_per_processed(gated if gate_is_dense else dense),
        gated_rows=rows_per_processed(gated),
    )
    measured, with_cpu, measured_note = found.savings, found.with_cpu, found.note
    trained_some = any(part.backward for part in gated)
    sizes = [{part.unit for part in parts if part.offered} for parts in (dense, gated)]
    was_measured = measured is not None or with_cpu is not None
    if gate_is_dense and was_measured:
        measured_note = "a dense run is its own reference: savings 0"
    elif was_measured and not trained_some:
        measured = with_cpu = None
        measured_note = "savings not measured: the gated part trained no full batch"
    elif was_measured and sizes[0] != sizes[1]:
        measured = with_cpu = None
        measured_note = (
            "savings not measured: with --train-size the dense and the gated part had pictures of other sizes, so "
            "their joules per sample tell more of those than of the gate; bench compares whole runs"
        )
    num_gated = sum(part.processed for part in gated)
    processed = sum(part.processed for part in dense) + num_gated
    trained = (part.whole.joules for part in (dense_energy, gated_energy) if part is not None)
    untrained = [] if trained_some else ["savings of the gated part are null: it trained no full batch"]
    idle_notes = [idle.note] if idle is not None and run.joules is not None else []
    run_measured = None
    if measured is not None and processed and found.dense_j:
        # Warm-up and anneal save nothing, so the gated part's savings are weighted by its share of the samples.
        run_measured = measured * num_gated / processed
        if probe_units:
            run_measured = None if probe_j is None else run_measured - probe_j / (found.dense_j * processed)
    joules, idle_w = run.joules, None if idle is None else idle.watts
    return {
        "savings_estimated": estimated_savings(*gated),
        "savings_arithmetic": arithmetic_savings(*gated),
        "savings_measured": measured,
        "run_savings_estimated": estimated_savings(*dense, *gated),
        "run_savings_arithmetic": arithmetic_savings(*dense, *gated, probe_units=probe_units),
        "run_savings_measured": run_measured,
        "gpu_j": joules,
        "train_gpu_j": sum_known(trained),
        "gpu_j_above_idle": None if joules is None or idle_w is None else joules - idle_w * run.seconds,
        "cpu_j": run.cpu_j,
        "idle_w": idle_w,
        "dense_j_per_sample": found.dense_j,
        "gated_j_per_sample": found.gated_j,
        "savings_with_cpu": with_cpu,
        "conditions": part_conditions(dense_of_run, gated_energy),
        "limits": limits,
        "source": run.source,
        "notes": list(dict.fromkeys([*notes, *run.notes, *untrained, measured_note, *idle_notes])),
    }


def cost(joules: float, price_per_kwh: float) -> float:
    """What the energy costs, in the currency of `price_per_kwh`."""
    return joules / JOULES_PER_KWH * price_per_kwh


def emissions_g(joules: float, gco2_per_kwh: float) -> float:
    """Grams of CO2 for the energy, at `gco2_per_kwh` grams per kilowatt hour."""
    return joules / JOULES_PER_KWH * gco2_per_kwh
