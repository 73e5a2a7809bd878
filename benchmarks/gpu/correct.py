"""Whether what is fast is right: the doctor, the tests marked gpu, and hostile pictures."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import NotMeasured, Report, Settings

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTILE_S = 20.0  # for one picture, the start of its process included
DECODED, RAISED = 0, 10
_TEST = re.compile(r"^(tests/gpu/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)")


def machine(settings: Settings, report: Report) -> None:
    """Hardware, driver and versions; and what `fastast doctor` finds."""
    from benchmarks.common import provenance
    from fastast.device import open_machine
    from fastast.energy.nvml import open_nvml

    device = open_machine(settings.device).device
    found = open_nvml()
    origin = provenance(device)
    origin["hardware"].update(driver=found.driver, cores=len(os.sched_getaffinity(0)))
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        origin["hardware"].update(
            capability=list(torch.cuda.get_device_capability(device)),
            memory_gb=properties.total_memory / 1e9,
            multiprocessors=properties.multi_processor_count,
        )
        origin["versions"].update(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    report.add(**origin)
    from fastast.commands.doctor_checks import diagnose, exit_code

    checks = diagnose()
    report.add(can_train=exit_code(checks) == 0, checks=[asdict(check) for check in checks])


def gpu_tests(settings: Settings, report: Report) -> None:
    """`pytest -m gpu tests/gpu`, test by test."""
    if settings.device != "cuda":
        raise NotMeasured("needs a GPU")
    if importlib.util.find_spec("pytest") is None:
        raise NotMeasured("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "--color=no", "tests/gpu"]
    outcomes: dict[str, str] = {}
    tail: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            tail = [*tail[-60:], line.rstrip()]
            match = _TEST.match(line)
            if match is not None:
                outcomes[match[1]] = match[2].lower()
                report.add(outcomes=outcomes, counts=dict(Counter(outcomes.values())))
    failed = process.returncode != 0
    report.add(exit_code=process.returncode, tail=tail if failed else [])
    if failed:
        raise RuntimeError(tail[-1] if tail else f"pytest ended with {process.returncode}")


def hostile(settings: Settings, report: Report) -> None:
    """What DALI alone makes of each kind of bad file, one process each; then all of them through our loader at once."""
    kinds = hostile_files()
    decoder = "mixed" if settings.device == "cuda" else "cpu"
    names = ["text", "CMYK"] if settings.tiny else list(kinds)
    context: Any = multiprocessing.get_context("fork" if settings.device == "cpu" else "spawn")

    def outcome(name: str) -> str:
        process = context.Process(target=_decode_alone, args=(kinds[name], decoder))
        process.start()
        process.join(HOSTILE_S)
        if process.is_alive():
            process.kill()
            process.join()
            return f"hung for {HOSTILE_S:.0f} s"
        code = process.exitcode
        assert code is not None
        known = {DECODED: "decoded", RAISED: "raised an error"}
        return f"crashed: {signal.Signals(-code).name}" if code < 0 else known.get(code, f"exit code {code}")

    with ThreadPoolExecutor(1 if settings.tiny else 4) as pool:
        started = {pool.submit(outcome, name): name for name in names}
        found: dict[str, str] = {}
        for done in as_completed(started):
            found[started[done]] = done.result()
            report.add(dali_alone={name: found[name] for name in names if name in found}, decoder=decoder)
    report.add(loader=_through_loader(kinds, settings))


def hostile_files() -> dict[str, bytes]:
    """Files by what is wrong with them; the last three are sound and must decode."""
    import io

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = coarse.resize((160, 120), Image.Resampling.BICUBIC)

    def encode(kind: str = "JPEG", picture: Any = image, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    good, png = encode(), encode("PNG")
    frame = good.index(b"\xff\xc0")
    huge = good[: frame + 5] + b"\x4e\x20\x4e\x20" + good[frame + 9 :]  # 20000 x 20000
    return {
        "text": b"this is no picture\n" * 20,
        "empty": b"",
        "GIF": encode("GIF"),
        "cut short": good[: len(good) // 2],
        "cut short in its header": good[:100],
        "20000 x 20000 in its header": huge,
        "damaged tables": good[:25] + bytes(120) + good[145:],
        "noise after its header": good[:4] + rng.bytes(2000),
        "PNG with damaged pixels": png[:100] + bytes(len(png) - 200) + png[-100:],
        "progressive": encode(progressive=True),
        "gray": encode(picture=image.convert("L")),
        "CMYK": encode(picture=image.convert("CMYK")),
    }


def _decode_alone(data: bytes, decoder: str) -> None:
    """Decodes a file at the head of a batch, in a process that may die of it."""
    import numpy as np
    from nvidia import dali

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # DALI prints what it thinks of it
    good = hostile_files()["progressive"]
    batch = [np.frombuffer(part, np.uint8) for part in (data, good, good, good)]
    pipeline = dali.Pipeline(batch_size=4, num_threads=2, device_id=0 if decoder == "mixed" else None)
    with pipeline:
        source = dali.fn.external_source(lambda: batch, dtype=dali.types.DALIDataType.UINT8)
        pipeline.set_outputs(dali.fn.decoders.image(source, device=decoder))
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError:
        os._exit(RAISED)
    os._exit(DECODED)


def _through_loader(kinds: dict[str, bytes], settings: Settings) -> dict[str, Any]:
    import torch

    from fastast.data import TrainLoader, epoch_ids, open_folder
    from fastast.device import open_machine

    device = open_machine(settings.device).device
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "train" / "a"
        folder.mkdir(parents=True)
        for number, (name, data) in enumerate(kinds.items()):
            (folder / f"{number:02d} {name}.jpg").write_bytes(data)
        for number in range(40):
            (folder / f"good {number:02d}.jpg").write_bytes(kinds["progressive"])
        lost: list[str] = []
        catalog = open_folder(folder.parent)
        at_scan = [Path(entry.path).stem for entry in catalog.quarantined]
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
        return {
            "refused_by_the_scan": sorted(name[3:] for name in at_scan),
            "quarantined_in_the_pass": sorted(name[3:] for name in lost),
            "delivered": len(seen),
            "delivered_twice": len(seen) - len(set(seen)),
            "good_pictures_lost": len(set(good) - set(seen)),
        }
