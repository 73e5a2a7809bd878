"""CPU time of each training picture: from a pack, and by what people use instead.

    python -m benchmarks.feed --data DIR:SIDE [DIR:SIDE ...] [--count 1500] [--rounds 3] [--workers 2] [--out FILE]

DIR holds class folders, SIDE is the crop in pixels, for example `--data cifar10/train:32 fullsize:224`. The chain is
the same everywhere: read, decode, random resized crop with antialias, flip, normalise, a float32 batch in torch.
Rivals, with as many workers as fastast has decoder threads: torchvision's ImageFolder and DataLoader with PIL (its
default), the same with `torchvision.io.decode_image` and tensor transforms, and WebDataset (if installed) over the
same shards with PIL.

CPU time is user + system time of the process and its workers: it counts work wherever it is done, and more cores do
not hide it. Every contender runs in a process of its own, in turns, so that a drifting machine affects all alike. In
each process the first pass is not counted (start-up, page cache, fastast's header scan), the second is. A
data set smaller than `--count` is offered several times over. Published are medians over the rounds: of the CPU time
and of the ratio of fastast's pack to each rival. With `--out a.json` a table goes to a.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import make_parser, markdown_table, provenance, publish
from fastast.data import epoch_ids, open_folder
from fastast.feed import LoaderOptions, TrainLoader
from fastast.packing.packer import run_pack
from fastast.preprocessing import MEAN, STD

BATCH = 64
MIN_AREA = 0.25
SHARDS_PER_WORKER = 4
PLANNED = 1_281_167  # ids in the planning figure: ImageNet's

Passes = tuple[Callable[[int], Iterator[Any]], Callable[[], list[int]]]


def offered(num_samples: int, count: int, epoch: int) -> np.ndarray:
    """int64[count]: the same pictures in each pass, in another order; over and over if there are too few."""
    chosen = np.resize(epoch_ids(num_samples, 0, 0), count)
    return chosen[epoch_ids(count, 1, epoch)]


def fastast_passes(data: Path, side: int, count: int, workers: int) -> Passes:
    catalog = open_folder(data)
    options = LoaderOptions(batch_size=BATCH, image_size=side, device=torch.device("cpu"), num_threads=workers)
    loader = TrainLoader(catalog, options, seed=0, min_area=MIN_AREA)
    return lambda epoch: loader.epoch(epoch, offered(catalog.num_samples, count, epoch)), list


def torchvision_transforms(side: int, *, pil: bool) -> Callable[[Any], torch.Tensor]:
    """Random resized crop, flip, conversion to float32, normalisation."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=(MIN_AREA, 1), antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor() if pil else transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize([level / 255 for level in MEAN], [level / 255 for level in STD]),
        ]
    )


def torchvision_passes(
    data: Path, side: int, count: int, workers: int, *, pil: bool, batch_size: int = BATCH
) -> Passes:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image, read_file

    dataset = ImageFolder(os.fspath(data), torchvision_transforms(side, pil=pil))
    if not pil:
        dataset.loader = lambda path: decode_image(read_file(path), mode=ImageReadMode.RGB)

    class Sampler:
        epoch = 0

        def __iter__(self) -> Iterator[int]:
            return iter(offered(len(dataset), count, self.epoch).tolist())

        def __len__(self) -> int:
            return count

    sampler = Sampler()
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size, sampler=sampler, pin_memory=torch.cuda.is_available(), **options)

    def run(epoch: int) -> Iterator[Any]:
        sampler.epoch = epoch
        return iter(loader)

    return run, lambda: [worker.pid for worker in loader._iterator._workers]


def webdataset_passes(data: Path, side: int, count: int, workers: int) -> Passes:
    import webdataset

    shards = sorted(map(str, data.glob("train-*.tar")))
    dataset = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(100).decode("pil")
    dataset = (
        dataset.to_tuple("jpg", "cls")
        .map_tuple(torchvision_transforms(side, pil=True), int)
        .with_epoch(count // workers)
    )
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True)
    return lambda _: iter(loader), lambda: [worker.pid for worker in loader._iterator._workers]


CONTENDERS: dict[str, Callable[..., Passes]] = {
    "fastast, pack": fastast_passes,
    "fastast, folders": fastast_passes,
    "torchvision, PIL": lambda *args: torchvision_passes(*args, pil=True),
    "torchvision, decode_image": lambda *args: torchvision_passes(*args, pil=False),
    "webdataset, PIL": webdataset_passes,
}
FROM_PACK = ("fastast, pack", "webdataset, PIL")


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of this process and others, to the nanosecond (clock_getcpuclockid(3))."""
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def measure(name: str, data: Path, side: int, count: int, workers: int) -> dict[str, float]:
    """Runs two passes of one contender and measures the second."""
    torch.set_num_threads(1)
    run, worker_pids = CONTENDERS[name](data, side, count, workers)
    for _ in run(0):
        pass
    pids = worker_pids()
    cpu_began, began, seen = cpu_s(pids), time.perf_counter(), 0
    for batch in run(1):
        seen += int(batch.num_valid) if name.startswith("fastast") else len(batch[0])
    return {
        "cpu_ms": (cpu_s(pids) - cpu_began) / seen * 1e3,
        "images_per_s": seen / (time.perf_counter() - began),
        "seen": seen,
    }


def measure_apart(name: str, data: Path, side: int, count: int, workers: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    job = json.dumps([name, os.fspath(data), side, count, workers])
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.feed", "--measure", job]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare(data: Path, side: int, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All contenders on one data set."""
    pack = scratch / f"{data.name}-{side}"
    files = [path.stat().st_size for path in data.glob("*/*")]
    shard_mb = (sum(files) + 2048 * len(files)) / 1e6 / (SHARDS_PER_WORKER * args.workers)
    began = time.perf_counter()
    run_pack(data, pack, shard_size_mb=shard_mb, workers=args.workers, say=lambda line: None)
    pack_s = time.perf_counter() - began
    names = [name for name in CONTENDERS if "webdataset" not in name or importlib.util.find_spec("webdataset")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            place = pack if name in FROM_PACK else data
            found[name].append(measure_apart(name, place, side, args.count, args.workers))
            print(f"{data.name} {number + 1}/{args.rounds} {name}: {found[name][-1]}", file=sys.stderr)
    cost = {name: statistics.median(run["cpu_ms"] for run in runs) for name, runs in found.items()}
    rate = {name: statistics.median(run["images_per_s"] for run in runs) for name, runs in found.items()}
    ours = [run["cpu_ms"] for run in found["fastast, pack"]]

    def ratio(runs: list[dict[str, float]]) -> float:
        """Median of the rounds' own ratios, since contenders of one round ran under the same conditions."""
        return statistics.median(mine / run["cpu_ms"] for mine, run in zip(ours, runs, strict=True))

    catalog = open_folder(pack)
    return {
        "data": os.fspath(data.name if data.name != "train" else data.parent.name),
        "pictures": catalog.num_samples,
        "mean_pixels": float(catalog.sizes.astype(np.int64).prod(axis=1).mean()),
        "mean_bytes": sum(files) / len(files),
        "image_size": side,
        "offered": args.count,
        "n": args.rounds,
        "cpu_ms_per_image": cost,
        "cpu_ms_range": {n: [min(r["cpu_ms"] for r in x), max(r["cpu_ms"] for r in x)] for n, x in found.items()},
        "images_per_s": rate,
        "ratio_of_cpu": {name: ratio(runs) for name, runs in found.items() if not name.startswith("fastast")},
        "packed_per_s": len(files) / pack_s,
    }


def plan_cost() -> dict[str, float]:
    """Seconds and memory of planning one epoch of ImageNet's length."""
    epoch_ids(PLANNED, 0, 0)
    began = time.perf_counter()
    epoch_ids(PLANNED, 0, 1)
    seconds = time.perf_counter() - began
    tracemalloc.start()
    epoch_ids(PLANNED, 0, 2)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {"ids": PLANNED, "seconds": seconds, "peak_mb": peak_mb}


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for found in result["sets"]:
        ratios = {name: f" (pack: {ratio:.2f} of it)" for name, ratio in found["ratio_of_cpu"].items()}
        cells = [f"{cost:.3f}{ratios.get(name, '')}" for name, cost in found["cpu_ms_per_image"].items()]
        rows.append((found["data"], f"{found['image_size']} px", *cells))
    columns = ("pictures", "crop", *result["sets"][0]["cpu_ms_per_image"])
    plan = result["plan"]
    return f"""\
CPU milliseconds for each training picture, {result["workers"]} workers or decoder threads, batch {BATCH}; \
{result["hardware"]["name"]}, {result["measured_at"][:10]}.
`python -m benchmarks.feed --data {" ".join(result["argv"])}`

{markdown_table(columns, rows, num_left=2)}

Planning {plan["ids"]:,} ids: {plan["seconds"]:.2f} s, {plan["peak_mb"]:.0f} MB.
"""


def main() -> None:
    parser = make_parser("benchmarks.feed", __doc__)
    parser.add_argument("--data", nargs="+", metavar="DIR:SIDE", help="class folders, and the crop in pixels")
    parser.add_argument("--count", type=int, default=1500, help="pictures in a pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="worker processes, or fastast's decoder threads")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one contender, in its own process
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.measure:
        name, data, *options = json.loads(args.measure)
        print(json.dumps(measure(name, Path(data), *options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        sets = []
        for entry in args.data:
            folder, _, side = entry.rpartition(":")
            sets.append(compare(Path(folder), int(side), args, Path(scratch)))
    shown = [f"{Path(entry).name}" for entry in args.data]
    result = {**provenance(torch.device("cpu")), "workers": args.workers, "argv": shown, "min_area": MIN_AREA}
    result.update(sets=sets, plan=plan_cost())
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
