"""What the energy meter reads from replayed GPU models, against a known power curve.

    python -m benchmarks.energy_models [--seconds 12] [--out benchmarks/results/energy_models.json]

The device models are replayed by a compiled replacement of NVIDIA's library (tests/energy/fake_nvml.c) and read by the
real pynvml through ctypes: the table says how the meter handles a driver's answers, and nothing about hardware.
Each model runs in a process of its own. With `--out` a Markdown table is written beside the JSON file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import make_parser, markdown_table, provenance, publish
from tests.energy.fake_driver import MODELS, FakeDriver

# Seconds and watts: idle, bursts of training, an evaluation. Readings of 1 s averages lag behind it.
CURVE = "0:60/1.2:240/3.1:100/3.6:300/5.4:120/7.7:280/9.5:90"
WHAT = {
    "t4": "Turing: counter, instantaneous power",
    "p100": "Pascal: no counter",
    "a100": "Ampere: counter, instantaneous power",
    "h200": "Hopper: counter in 100 ms steps, power field",
    "h200-old-driver": "Hopper, old driver: counter, 1 s averages",
    "l4-no-counter": "no counter, 1 s averages only",
    "counter-only": "counter, no power readings",
    "stuck": "counter that never moves",
    "mig": "MIG is on",
    "vgpu": "virtual GPU, no counter",
    "blind": "neither counter nor power",
    "lost": "falls off the bus after 2 s",
    "flaky": "every 7th power read times out",
}
# Error codes of nvmlInit.
FAILURES = {4: "no permission", 9: "driver not loaded", 12: "no library", 18: "library and driver differ"}
METER = """
import json, os, sys, time
from fastast.energy.energy_meter import EnergyMeter

zero_s = time.monotonic()
os.environ["FAKE_NVML_T0"] = str(zero_s)
with EnergyMeter(cpu=False) as meter:
    time.sleep(0.2)
    begin_s = time.monotonic() - zero_s
    with meter.measure("all") as measurement:
        time.sleep(float(sys.argv[1]))
    end_s = time.monotonic() - zero_s
device = measurement.devices[0] if measurement.devices else None
print(json.dumps({
    "bounds_s": [begin_s, end_s],
    "joules": measurement.joules,
    "source": measurement.source,
    "counter_j": device and not device.failure and device.counter_moves and device.counter_j or None,
    "integral_j": device and not device.failure and device.num_samples and device.integral_j or None,
    "power_kind": device and device.power_kind,
    "num_samples": measurement.num_samples,
    "notes": [note for note in measurement.notes if not note.startswith("CPU not read")],
}))
"""


def energy_j(bounds_s: list[float]) -> float:
    """Joules under `CURVE` between two seconds."""
    steps = [tuple(map(float, point.split(":"))) for point in CURVE.split("/")]
    ends = [start for start, _ in steps[1:]] + [float("inf")]
    return sum(
        watts * max(0.0, min(end, bounds_s[1]) - max(start, bounds_s[0]))
        for (start, watts), end in zip(steps, ends, strict=True)
    )


def row(name: str, what: str, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: errors against the curve, what was quoted, and why where nothing was."""
    true_j = energy_j(found.pop("bounds_s"))

    def error(joules: float | None) -> float | None:
        return None if joules is None else joules / true_j - 1

    return {
        "model": name,
        "what": what,
        "true_j": true_j,
        **found,
        "error": error(found["joules"]),
        "counter_error": error(found["counter_j"]),
        "integral_error": error(found["integral_j"]),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:+.2%}"

    rows = []
    for entry in result["rows"]:
        # A note begins with the device's name and UUID.
        notes = "; ".join(dict.fromkeys(note.rpartition("): ")[2] for note in entry["notes"]))
        errors = [percent(entry[key]) for key in ("counter_error", "integral_error", "error")]
        quoted = entry["source"] or "no figure"
        rows.append((entry["model"], entry["what"], errors[0], errors[1], quoted, errors[2], notes))
    columns = ("model", "what it offers", "counter", "integral", "quoted", "error", "note or reason")
    versions = result["versions"]
    return f"""\
# Energy meter against replayed device models

Device models replayed by a replacement of NVIDIA's library, read by the real `pynvml`: **not hardware**.
One interval of {result["seconds"]:g} s over a stepped power curve, 20 samples a second. Errors are against
the integral of the known curve. A dash means that there was nothing to read; it is never counted as 0 J.

{markdown_table(columns, rows, num_left=2)}

Made by `python -m benchmarks.energy_models --seconds {result["seconds"]:g}` at {result["measured_at"]}, \
fastast {versions["fastast"]} ({versions["commit"]}), Python {versions["python"]}.
"""


def main() -> None:
    parser = make_parser("benchmarks.energy_models", __doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the metered interval")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver.build(Path(folder))
        started = [
            (name, what, driver.start(METER, driver.environment(name, curve=CURVE), str(args.seconds)))
            for name, what in WHAT.items()
        ]
        started += [
            (f"nvmlInit error {code}", what, driver.start(METER, driver.environment("t4", init=code), "1"))
            for code, what in FAILURES.items()
        ]
        rows = [row(name, what, finish()) for name, what, finish in started]
    result = {
        "title": "Replayed device models, not hardware",
        **provenance(torch.device("cpu")),
        "seconds": args.seconds,
        "curve": CURVE,
        "models": MODELS,
        "rows": rows,
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
