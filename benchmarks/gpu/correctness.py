"""Whether what is fast is right: the doctor, the tests marked gpu, and hostile pictures."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import ROOT, provenance
from benchmarks.gpu.items import NotMeasured, Report, Settings
from fastast.doctor import diagnose, exit_code
from fastast.energy.nvml import open_machine as open_nvml
from fastast.train.setup import open_machine

_TEST = re.compile(r"^(tests/gpu/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)")


def machine(settings: Settings, report: Report) -> None:
    """Hardware, driver and versions; and the findings of `fastast doctor`."""
    device = open_machine(settings.device).device
    origin = provenance(device)
    origin["hardware"].update(driver=open_nvml().driver, cores=len(os.sched_getaffinity(0)))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        origin["hardware"].update(
            capability=list(torch.cuda.get_device_capability(device)),
            memory_gb=properties.total_memory / 1e9,
            multiprocessors=properties.multi_processor_count,
        )
        origin["versions"].update(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    report.add(**origin)
    checks = diagnose()
    report.add(can_train=exit_code(checks) == 0, checks=[asdict(check) for check in checks])


def gpu_tests(settings: Settings, report: Report) -> None:
    """`pytest -m gpu tests/gpu`; outcomes are reported test by test."""
    if settings.device != "cuda":
        raise NotMeasured("needs a GPU")
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasured("pytest is not installed")
    command = [sys.executable, *["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "--color=no", "tests/gpu"]]
    outcomes: dict[str, str] = {}
    tail = ["no output"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            tail = [*tail[-60:], line.rstrip()]
            if (match := _TEST.match(line)) is not None:
                outcomes[match[1]] = match[2].lower()
                report.add(outcomes=outcomes, counts=dict(Counter(outcomes.values())))
    if process.returncode:
        report.add(exit_code=process.returncode, tail=tail)
        raise RuntimeError(tail[-1])


def hostile_files() -> dict[str, bytes]:
    """Files by what is wrong with them; the last three are sound and must decode."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = coarse.resize((160, 120), Image.Resampling.BICUBIC)

    def encode(kind: str = "JPEG", picture: Any = image, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    good, png = encode(), encode("PNG")
    frame = good.index(b"\xff\xc0")
    return {
        "text": b"this is no picture\n" * 20,
        "empty": b"",
        "GIF": encode("GIF"),
        "cut short": good[: len(good) // 2],
        "cut short in its header": good[:100],
        "20000 x 20000 in its header": good[: frame + 5] + b"\x4e\x20\x4e\x20" + good[frame + 9 :],
        "damaged tables": good[:25] + bytes(120) + good[145:],
        "noise after its header": good[:4] + rng.bytes(2000),
        "PNG with damaged pixels": png[:100] + bytes(len(png) - 200) + png[-100:],
        "progressive": encode(progressive=True),
        "gray": encode(picture=image.convert("L")),
        "CMYK": encode(picture=image.convert("CMYK")),
    }


def hostile(settings: Settings, report: Report) -> None:
    """An epoch over hostile files and good ones through our loader: it must deliver each good one exactly once."""
    from fastast.data import TrainLoader, epoch_ids, open_folder

    kinds = hostile_files()
    device = open_machine(settings.device).device
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "train" / "a"
        folder.mkdir(parents=True)
        files = {f"{number:02d} {name}": data for number, (name, data) in enumerate(kinds.items())}
        files.update({f"good {number:02d}": kinds["progressive"] for number in range(40)})
        for stem, data in files.items():
            (folder / f"{stem}.jpg").write_bytes(data)
        lost: list[str] = []
        catalog = open_folder(folder.parent)
        loader = TrainLoader(
            catalog,
            batch_size=8,
            image_size=32,
            device=device,
            dtype=torch.float16 if device.type == "cuda" else torch.float32,
            seed=0,
            on_quarantine=lambda sample, path, reason: lost.append(Path(path).stem),
        )
        seen: list[int] = []
        for batch in loader.epoch(0, epoch_ids(catalog.num_samples, 0, 0)):
            seen += batch.ids[batch.valid].tolist()
        loader.close()
        good = [i for i in range(catalog.num_samples) if Path(catalog.path(i)).stem.startswith("good")]
        report.add(
            refused_by_the_scan=sorted(Path(entry.path).stem[3:] for entry in catalog.quarantined),
            quarantined_in_the_epoch=sorted(name[3:] for name in lost),
            delivered=len(seen),
            delivered_twice=len(seen) - len(set(seen)),
            good_pictures_lost=len(set(good) - set(seen)),
        )
