"""Training pictures a second from a file system that answers late, and CPU time of each picture.

    python -m benchmarks.read_latency --data DIR [--latency 0 1 3 10] [--batch-size 64 256] [--against CHECKOUT] ...

DIR holds class folders of small pictures (CIFAR-10's), so that reading is the bottleneck: `read_one` sleeps before
each read, as many threads at once as there are. `--against` measures another checkout's loader in turn with this one's,
each in a process of its own. Of a process the first pass is left out; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command_line, provenance, publish
from fastast.data import epoch_ids, open_folder
from fastast.feed import LoaderOptions, TrainLoader

ROOT = Path(__file__).resolve().parent.parent


def measure(data: str, latency_ms: float, batch_size: int, seconds: float) -> dict[str, float]:
    """One loader's images/s, CPU us an image and peak memory, over passes of `seconds` in all."""
    torch.set_num_threads(1)
    catalog = open_folder(data)
    read = catalog.read_one

    def read_late(sample: int) -> Any:
        time.sleep(latency_ms / 1e3)
        return read(sample)

    if latency_ms:
        catalog.read_one = read_late  # type: ignore[method-assign]
    options = LoaderOptions(batch_size=batch_size, image_size=32, device=torch.device("cpu"), num_threads=2)
    loader = TrainLoader(catalog, options, seed=0)

    def run(epoch: int, until: float) -> int:
        seen = 0
        for batch in loader.epoch(epoch, epoch_ids(catalog.num_samples, 0, epoch)):
            seen += batch.num_valid
            if time.perf_counter() >= until:
                break
        return seen

    run(0, time.perf_counter() + seconds / 4)
    began, cpu_began = time.perf_counter(), time.process_time()
    seen, epoch = 0, 1
    while time.perf_counter() < began + seconds:
        seen, epoch = seen + run(epoch, began + seconds), epoch + 1
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    loader.close()
    return {"images_per_s": seen / wall, "cpu_us": cpu / seen * 1e6, "peak_mb": peak_mb}


def in_process(checkout: Path, args: argparse.Namespace, latency_ms: float, batch_size: int) -> dict[str, float]:
    """`measure` of a checkout's loader, by this file."""
    job = json.dumps([args.data, latency_ms, batch_size, args.seconds])
    command = [sys.executable, __file__, "--measure", job]
    path = os.pathsep.join([str(checkout), str(ROOT)])  # `benchmarks` of an older checkout may lack a part
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.read_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="class folders, or a pack")
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 1, 3, 10], help="of a read, ms")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure its loader too, in turns")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    trees = {"this": ROOT} if args.against is None else {"against": args.against.resolve(), "this": ROOT}
    cases = []
    for latency_ms in args.latency:
        for batch_size in args.batch_size:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
            for _ in range(args.rounds):
                for name, checkout in trees.items():
                    runs[name].append(in_process(checkout, args, latency_ms, batch_size))
            case = {name: {key: statistics.median(r[key] for r in x) for key in x[0]} for name, x in runs.items()}
            cases.append({"latency_ms": latency_ms, "batch_size": batch_size, "n": args.rounds, **case})
            print(json.dumps(cases[-1]), file=sys.stderr)
    command = command_line(parser, args)
    publish({"command": command, **provenance(torch.device("cpu")), "cases": cases}, args.out)


if __name__ == "__main__":
    main()
