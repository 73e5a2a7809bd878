"""Measured savings: joules per sample of the gated part against those of the dense part of the same run."""

from __future__ import annotations

from dataclasses import dataclass

from fastast.energy.fairness import comparable, decoded_elsewhere, differences, too_short, unlike
from fastast.energy.parts import Blocks, PartEnergy
from fastast.number_text import percent


@dataclass(frozen=True, slots=True)
class MeasuredSavings:
    """What the meters say of the gate; None for what they do not.

    Attributes:
        dense_j, gated_j: GPU joules for each sample that was trained or skipped.
        savings: 1 - gated_j / dense_j.
        with_cpu: the same of GPU, CPU packages and DRAM together.
        note: the savings with their standard error and what differs between the parts, or why there are none.
    """

    dense_j: float | None
    gated_j: float | None
    savings: float | None
    with_cpu: float | None
    note: str


def measure_savings(
    dense: PartEnergy | None, gated: PartEnergy | None, *, dense_rows: float = 1.0, gated_rows: float = 1.0
) -> MeasuredSavings:
    """Compares the two parts of a run.

    Args:
        dense, gated: their joules; None for a part that was not run.
        dense_rows, gated_rows: samples offered for each that was trained or skipped: those that did not fill a batch
            are no saving.
    """
    dense_blocks, gated_blocks = comparable(dense, gated)
    dense_j, dense_lack = _rate("dense", dense, dense_blocks, dense_rows)
    gated_j, gated_lack = _rate("gated", gated, gated_blocks, gated_rows)
    if dense is None or gated is None or dense_blocks is None or gated_blocks is None or not dense_j or gated_j is None:
        lack = dense_lack or gated_lack or "the dense part took no joules"
        return MeasuredSavings(dense_j, gated_j, None, None, f"savings not measured: {lack}")
    told = differences(dense, gated)
    with_cpu = None
    reason = unlike(dense_blocks, gated_blocks)
    if reason is None:
        with_cpu = _with_cpu(dense_blocks, gated_blocks, dense_rows, gated_rows)
        reason = decoded_elsewhere(dense_blocks, gated_blocks)
    together = f"GPU and CPU together {percent(with_cpu, 1)}" if with_cpu is not None else ""
    ratio = gated_j / dense_j
    if reason is None:
        note = f"measured savings {percent(1 - ratio, 1)}" + _error(ratio, dense_blocks, gated_blocks)
    else:
        note = f"savings not measured: {reason}"
    note = "; ".join(filter(None, (note, together, told)))
    return MeasuredSavings(dense_j, gated_j, None if reason else 1 - ratio, with_cpu, note)


def _rate(name: str, part: PartEnergy | None, blocks: Blocks | None, rows: float) -> tuple[float | None, str | None]:
    """GPU joules per sample of a part that is named `name`, or None and the reason."""
    if part is None or blocks is None:
        return None, f"no {name} part was run"
    # The notes of the whole run say why a GPU was not read.
    if part.whole.joules is None or blocks.reading.joules is None:
        return None, f"joules of the {name} part were not read"
    if (lack := too_short(part, blocks, name)) is not None:
        return None, lack
    return None if blocks.j_per_sample is None else blocks.j_per_sample * rows, None


def _error(ratio: float, dense: Blocks, gated: Blocks) -> str:
    """The standard error of the savings in words; empty where it is not known."""
    errors = [
        None
        if blocks.j_per_sample_error is None or not blocks.j_per_sample
        else blocks.j_per_sample_error / blocks.j_per_sample
        for blocks in (dense, gated)
    ]
    if errors[0] is None or errors[1] is None:
        return ""
    error = ratio * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return f" +- {percent(error, 1)} (standard error over {len(dense.rows)} dense and {len(gated.rows)} gated blocks)"


def _with_cpu(dense: Blocks, gated: Blocks, dense_rows: float, gated_rows: float) -> float | None:
    totals = [
        None
        if blocks.j_per_sample is None or blocks.cpu_j_per_sample is None
        else (blocks.j_per_sample + blocks.cpu_j_per_sample) * rows
        for blocks, rows in ((dense, dense_rows), (gated, gated_rows))
    ]
    return None if not totals[0] or totals[1] is None else 1 - totals[1] / totals[0]
