"""This project's meter beside Zeus' on the same replayed GPU models, in the same process and over the same seconds.

    pip install zeus
    python -m benchmarks.zeus_check [--seconds 8] [--out benchmarks/results/zeus_check.json]

The models are those of `benchmarks.energy_models`: a replacement of NVIDIA's library, not hardware. Zeus reads the
energy counter at the start and at the end of a window, and without one integrates power that a process of its own
samples.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import make_parser, markdown_table, provenance, publish
from benchmarks.energy_models import CURVE, WHAT, energy_j
from tests.energy.fake_driver import FakeDriver

BOTH = """
import json, os, sys, time
from fastast.energy.energy_meter import EnergyMeter
from zeus.monitor import ZeusMonitor

zero_s = time.monotonic()
os.environ["FAKE_NVML_T0"] = str(zero_s)
found = {"zeus_j": None, "zeus_error": None}

def zeus(step):
    try:
        return step()
    except Exception as error:
        found["zeus_error"] = found["zeus_error"] or f"{type(error).__name__}: {error}".splitlines()[0]

with EnergyMeter(cpu=False) as meter:
    monitor = zeus(lambda: ZeusMonitor(gpu_indices=[0], cpu_indices=[]))
    time.sleep(0.2)
    begin_s = time.monotonic() - zero_s
    with meter.measure("all") as ours:
        if monitor is not None:
            zeus(lambda: monitor.begin_window("all", sync_execution=False))
        time.sleep(float(sys.argv[1]))
        window = monitor and zeus(lambda: monitor.end_window("all", sync_execution=False))
    end_s = time.monotonic() - zero_s
if window is not None:
    found["zeus_j"] = window.gpu_energy.get(0)
found |= {"bounds_s": [begin_s, end_s], "ours_j": ours.joules, "source": ours.source, "notes": ours.notes}
print(json.dumps(found))
"""


def row(model: str, found: dict[str, Any]) -> dict[str, Any]:
    """What both quote, and how far from the curve."""
    true_j = energy_j(found.pop("bounds_s"))
    errors = {
        name: None if found[f"{name}_j"] is None else found[f"{name}_j"] / true_j - 1 for name in ("ours", "zeus")
    }
    return {"model": model, "what": WHAT[model], "true_j": true_j, **found, "errors": errors}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def percent(value: float | None) -> str:
        return "no figure" if value is None else f"{100 * value:+.2f} %"

    rows = []
    for entry in result["rows"]:
        ours = entry["source"] or next((n.rpartition("): ")[2] for n in entry["notes"] if not n.startswith("CPU")), "")
        shown = [percent(entry["errors"][name]) for name in ("ours", "zeus")]
        rows.append((entry["model"], entry["what"], *shown, ours, entry["zeus_error"] or ""))
    columns = ("model", "what it offers", "ours", "Zeus", "ours: source or reason", "Zeus: error")
    versions = result["versions"]
    return f"""\
# This meter and Zeus {result["zeus"]} on replayed device models

Not hardware: a replacement of NVIDIA's library. One interval of {result["seconds"]:g} s over a stepped power curve,
metered by both at once in one process. Errors are against the integral of the known curve.

{markdown_table(columns, rows, num_left=2)}

{EXPLAINED}
Made by `python -m benchmarks.zeus_check --seconds {result["seconds"]:g}` at {result["measured_at"]}, \
fastast {versions["fastast"]} ({versions["commit"]}), Python {versions["python"]}.
"""


EXPLAINED = """\
What differs, and why:

- With a counter that moves, both are within 1.5 %. It moves every 100 ms; Zeus takes it as it stands at both ends,
  this meter extrapolates between two moves by power. Zeus' window lies within ours, so it is a little shorter.
- Without a counter Zeus integrates NVML's power fields (instant or average), which these models do not have; this meter
  falls back to `nvmlDeviceGetPowerUsage`. Whether a real P100 or L4 without a counter has the fields was not measured.
  Where that call gives 1 s averages, the integral lags, and a note says so.
- A counter that does not move is 0 J for Zeus; this meter then quotes the integral.
- Under MIG Zeus quotes the joules of the whole GPU; this meter refuses to attribute them to one instance.
"""


def main() -> None:
    parser = make_parser("benchmarks.zeus_check", __doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the metered interval")
    args = parser.parse_args()
    try:
        version = importlib.metadata.version("zeus")
    except importlib.metadata.PackageNotFoundError:
        parser.error("needs Zeus: pip install zeus")
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver.build(Path(folder))
        rows = [
            # One after the other: Zeus takes seconds of CPU to start.
            row(model, driver.start(BOTH, driver.environment(model, curve=CURVE), str(args.seconds))())
            for model in WHAT
        ]
    result = {
        "title": "This meter and Zeus on replayed device models, not hardware",
        **provenance(torch.device("cpu")),
        "zeus": version,
        "seconds": args.seconds,
        "curve": CURVE,
        "rows": rows,
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
