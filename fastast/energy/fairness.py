"""Whether the dense and the gated part of a run can be compared, and what differs between them beside the gate.

What the gate did not do must not be counted as its saving: a dense part that waited for a cold page cache, whose
pictures the GPU decoded while the CPU took over later, or that ran on a cooler or faster-clocked GPU.
"""

from __future__ import annotations

from typing import Any

from fastast.energy.parts import Blocks, PartEnergy
from fastast.number_text import percent

# A shorter part shows clocks and temperature more than the gate.
MIN_PART_S = 30.0
# Differences between the parts beyond which their joules are not compared.
MAX_ON_CPU = 0.125  # of the share of the pictures that the CPU decodes
MAX_TEMPERATURE_C = 20.0
MAX_CLOCK = 0.15  # of the SM clock, relative
MAX_SLOWED = 0.1  # of the share of the time in which heat or a power brake held the clocks down
MAX_WAIT = 0.1  # of the share of the time spent waiting for pictures, where storage reads are not known


def comparable(dense: PartEnergy | None, gated: PartEnergy | None) -> tuple[Blocks | None, Blocks | None]:
    """The blocks of both parts that are compared: cold ones only if most of the gated part was cold as well."""
    with_cold = gated is not None and gated.is_cold
    compared = [None if part is None else part.blocks(with_cold=with_cold) for part in (dense, gated)]
    return compared[0], compared[1]


def steady_speed(blocks: Blocks | None) -> float | None:
    """Offered samples per second of compared blocks; None where they are too short to tell."""
    if blocks is None or not blocks.num_samples or blocks.seconds < MIN_PART_S:
        return None
    return blocks.num_samples / blocks.seconds


def too_short(energy: PartEnergy, blocks: Blocks, part: str) -> str | None:
    """Why a part that is named `part` gives no joules per sample, or None."""
    if steady_speed(blocks) is not None:
        return None
    left_out = []
    if energy.cold.seconds and blocks.seconds < energy.steady.seconds + energy.cold.seconds:
        left_out.append(f"{energy.cold.seconds:.0f} s waited for pictures that were not in the page cache")
    if energy.unsettled_s:
        left_out.append(f"in {energy.unsettled_s:.0f} s the decoder's share or the power limit still changed")
    told = f" ({', '.join(left_out)}: left out)" if left_out else ""
    remedy = "; a second dense epoch finds them there: --warmup-epochs 2" if energy.cold.seconds and left_out else ""
    return (
        f"the {part} part trained for {blocks.seconds:.0f} s after its first steps{told}; "
        f"{MIN_PART_S:.0f} s are needed for joules per sample{remedy}"
    )


def unlike(dense: Blocks, gated: Blocks) -> str | None:
    """Why the parts differ by more than the gate, or None."""
    d, g = conditions(dense), conditions(gated)

    def apart(name: str) -> float:
        return abs(d[name] - g[name]) if d[name] is not None and g[name] is not None else 0.0

    if apart("temperature_c") > MAX_TEMPERATURE_C:
        return (
            f"the GPU was at {d['temperature_c']:.0f} C in the dense part and at {g['temperature_c']:.0f} C in the "
            "gated part; more dense training (--warmup-epochs) warms it up"
        )
    if d["clock_mhz"] and apart("clock_mhz") > MAX_CLOCK * d["clock_mhz"]:
        return (
            f"the SM clock was {d['clock_mhz']:.0f} MHz in the dense part and {g['clock_mhz']:.0f} MHz in the gated "
            "part; --lock-clocks keeps it the same"
        )
    if apart("slowed") > MAX_SLOWED:
        return (
            f"heat or a power brake held the clocks down for {percent(d['slowed'], 0)} of the dense part and "
            f"{percent(g['slowed'], 0)} of the gated part; better cooling or a lower --power-limit avoids that"
        )
    if dense.read_b is None and (d["data_wait"] or 0.0) - (g["data_wait"] or 0.0) > MAX_WAIT:
        return (
            f"the dense part waited for pictures for {percent(d['data_wait'], 0)} of its time, the gated part for "
            f"{percent(g['data_wait'], 0)}, and without /proc/self/io a cold page cache cannot be told from slow "
            "decoding"
        )
    return None


def decoded_elsewhere(dense: Blocks, gated: Blocks) -> str | None:
    """Why the joules of the GPU alone cannot be compared although those of GPU and CPU together can, or None."""
    d, g = dense.on_cpu or 0.0, gated.on_cpu or 0.0
    if abs(d - g) <= MAX_ON_CPU:
        return None
    return (
        f"the CPU decoded {percent(d, 0)} of the pictures in the dense part and {percent(g, 0)} in the gated part, "
        "which moves joules from one to the other; --decode gpu or --decode cpu keeps that the same"
    )


def differences(dense: PartEnergy, gated: PartEnergy) -> str:
    """What both parts ran under, where it differs, in one line; empty if nothing does."""
    d, g = (conditions(part.blocks(with_cold=gated.is_cold)) for part in (dense, gated))
    told = []
    for name, form, unit, what in (
        ("temperature_c", ".0f", " C", "GPU at"),
        ("clock_mhz", ".0f", " MHz", "SM clock"),
        ("slowed", ".0f", " % of the time", "clocks held down"),
        ("data_wait", ".1f", " % of the time", "waiting for pictures"),
        ("from_storage", ".0f", " % of the bytes", "read from storage"),
        ("decoded_on_cpu", ".0f", " % of the pictures", "decoded on the CPU"),
        ("cpu_j_per_sample", ".3g", "", "CPU joules per picture"),
    ):
        scale = 100 if unit.startswith(" %") else 1
        values = ["not known" if part[name] is None else f"{scale * part[name]:{form}}" for part in (d, g)]
        if values[0] != values[1]:
            told.append(f"{what} {values[0]} / {values[1]}{unit}")
    for name, part in (("dense", dense), ("gated", gated)):
        if part.cold.seconds and not gated.is_cold:
            told.append(f"{part.cold.seconds:.0f} s of the {name} part left out, which waited for a cold page cache")
    return "dense / gated: " + "; ".join(told) if told else ""


def conditions(blocks: Blocks) -> dict[str, Any]:
    """What a part ran under, as plain values; None for what was not read."""
    devices = blocks.reading.devices
    num_states = sum(device.num_states for device in devices)

    def mean(name: str) -> float | None:
        return sum(getattr(device, name) for device in devices) / num_states if num_states else None

    return {
        "seconds": blocks.seconds,
        "samples": blocks.num_samples,
        "data_wait": blocks.data_wait,
        "from_storage": blocks.from_storage,
        "decoded_on_cpu": blocks.on_cpu,
        "cpu_j_per_sample": blocks.cpu_j_per_sample,
        "temperature_c": mean("temperature_sum_c"),
        "clock_mhz": mean("clock_sum_mhz"),
        "slowed": mean("num_slowed"),
    }


def part_conditions(dense: PartEnergy | None, gated: PartEnergy | None) -> dict[str, Any]:
    """The `energy.conditions` entry of `summary.json`: of each part what is compared, and what was left out."""
    with_cold = gated is not None and gated.is_cold
    return {
        name: None
        if part is None
        else conditions(part.blocks(with_cold=with_cold))
        | {"cold_s": 0.0 if with_cold else part.cold.seconds, "unsettled_s": part.unsettled_s}
        for name, part in (("dense", dense), ("gated", gated))
    }
