"""`fastast evaluate`: accuracy of a run's best weights, or of any file of weights, on a folder of pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import RunFolder, read_json

if TYPE_CHECKING:
    import torch

    from fastast.data import Catalog
    from fastast.data.catalog import Quarantined
    from fastast.feed import Batch
    from fastast.loggers.console import Reporter
    from fastast.models.weights_info import WeightsInfo


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a trained network on a folder of pictures",
        description="Prints top-1 and top-5 accuracy; with --out writes path, label, prediction and probability, and "
        "pictures that cannot be read at the end, without a prediction.",
    )
    parser.add_argument("model", metavar="RUN|FILE", help="a run folder, or a .safetensors/.pt/.pth file of weights")
    parser.add_argument("--data", required=True, metavar="D", help="class folders, or a folder that holds val/")
    parser.add_argument("--arch", metavar="A", help="the network, where the file does not say it")
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="evaluation crop, pixels; default what the file was trained for"
    )
    parser.add_argument("--out", metavar="preds.csv", help="write one line for each picture")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at a time (default 64)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to run (default auto)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Evaluates."""
    from fastast.loggers.console import Reporter

    return evaluate_model(
        args.model,
        data=args.data,
        arch=args.arch,
        image_size=args.image_size,
        out=args.out,
        batch_size=args.batch_size,
        device=args.device,
        reporter=Reporter(),
    )


def evaluate_model(
    model_path: str,
    *,
    data: str,
    arch: str | None,
    image_size: int | None,
    out: str | None,
    batch_size: int,
    device: str,
    reporter: Reporter,
) -> int:
    """Prints top-1 and top-5, and writes one CSV line for each picture if `out` is given.

    Args:
        model_path: a run folder (its `model.safetensors`), or a file of weights.
        data: class folders, or a folder that holds val/.
        arch: the network; None takes the run's.
        image_size: evaluation crop in pixels; None takes what the weights were trained for, else 224.
        out: CSV file with the columns path, label, prediction, probability; or None. Pictures that were left out come
            last, without a prediction.
        batch_size: pictures at a time.
        device: "auto", "cuda" or "cpu".
        reporter: shows progress.

    Returns:
        The exit code, 0.

    Raises:
        InputError: something that the user can fix.
    """
    for flag, value in (("--image-size", image_size), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"{flag} {value}: must be at least 1")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out {out}: no such folder {Path(out).absolute().parent}")
    if out is not None and Path(out).is_dir():
        raise InputError(f"--out {out}: is a folder; name a file, for example preds.csv")
    path = Path(model_path)
    if not path.exists():
        raise InputError(f"{path}: no such run folder or file of weights")
    home = path if path.is_dir() else path.absolute().parent
    folder = RunFolder(home.parent if home.name == "checkpoints" else home)
    weights = folder.weights if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        raise InputError(f"{path}: holds no model.safetensors; name a run folder with a finished epoch, or a file")
    config = read_json(folder.config) if folder.config.exists() else {}

    from fastast.models.weights_info import WeightsInfo, read_info

    info = read_info(weights)
    if info is not None:
        ours = WeightsInfo.of(info.arch, info.classes, info.crop_size, info.bits)
        _require_agreement(weights, info, arch, ours)
        if ":" in info.arch and arch is None and config.get("arch") != info.arch:
            raise InputError(f"{path}: a file may not choose code to run; if you trust it, add --arch {info.arch}")
        reporter.note(f"{weights}: {info}")
        if image_size not in (None, info.crop_size):
            reporter.note(f"evaluated at {image_size} px, since --image-size asks for it; trained for {info.crop_size}")
        arch, image_size = arch or info.arch, image_size or info.crop_size
    arch = arch or config.get("arch")
    if not isinstance(arch, str):
        raise InputError(f"{path}: neither the file nor a run folder around it names its network; name it with --arch")
    size = image_size or config.get("image_size") or 224

    from fastast.data import open_folder
    from fastast.data.catalog import Quarantined
    from fastast.data.dataset import require_same_bits
    from fastast.device import open_runtime
    from fastast.feed import EvalLoader, LoaderOptions
    from fastast.loggers.console import FewNotes
    from fastast.models.build import WEIGHT_SUFFIXES, build_model, check_fits, scoring_twin
    from fastast.train.evaluation import evaluate
    from fastast.train.steps import EvalStep

    if weights.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{weights}: name a run folder, or a file of weights: {', '.join(WEIGHT_SUFFIXES)}")
    known = _read_classes(folder.classes) if folder.classes.exists() else None
    catalog = open_folder(data, known if info is None else info.classes, on_note=reporter.note)
    if info is not None:
        require_same_bits(info.bits, catalog.bits, data)
    classes = catalog.classes
    if info is None and known is None:
        reporter.note(f"{weights}: says nothing of its classes: taken are the folder's in order, at {size} px")

    runtime = open_runtime(device)
    model, notes = build_model(arch, len(classes), str(weights))
    if notes:
        raise InputError(f"{weights}: {notes[0]}; evaluate on data with the classes it was trained on")
    twin = scoring_twin(model.to(runtime.device))
    check_fits(twin, arch, size, len(classes))
    step = EvalStep(twin, dtype=runtime.dtype)
    left_out = list(catalog.quarantined)
    options = LoaderOptions(
        batch_size=batch_size,
        image_size=size,
        device=runtime.device,
        dtype=runtime.image_dtype,
        on_quarantine=lambda *entry: left_out.append(Quarantined(*entry)),
        on_note=reporter.note,
    )
    loader = EvalLoader(catalog, options)
    rows = Predictions(catalog.num_samples)
    reporter.begin("evaluating", catalog.num_samples)
    try:
        accuracy = evaluate(step, loader, on_logits=lambda batch, logits: reporter.advance(rows.add(batch, logits)))
    finally:
        reporter.end()
        loader.close()
    few = FewNotes(reporter)
    for entry in left_out:
        few.note(f"left out {entry.path}", entry.reason)
    few.flush("left out")
    if out is not None:
        write_whole(out, rows.to_csv(catalog, left_out))
        reporter.note(f"wrote {out}")
    total = accuracy.num_samples + len(left_out)
    done = f"{accuracy.num_samples:,} pictures" + (f" of {total:,}" if left_out else "")
    missing = f"; {len(left_out):,} left out" if left_out else ""
    reporter.note(f"top-1 {accuracy.top1:.4f}  top-5 {accuracy.top5:.4f}  on {done}{missing}")
    return 0


class Predictions:
    """The most probable class of each picture, by id; pictures that were not delivered stay without one."""

    def __init__(self, num_samples: int) -> None:
        import numpy as np  # not above: the parser of this command is built for every command

        self.predicted = np.full(num_samples, -1)
        self.probability = np.zeros(num_samples, np.float32)

    def add(self, batch: Batch, logits: torch.Tensor) -> int:
        """Takes in a batch and its logits [B, C]; returns how many pictures are done so far."""
        probability, predicted = logits[: batch.num_valid].softmax(1).max(1)
        ids = batch.ids[: batch.num_valid].cpu().numpy()
        self.predicted[ids] = predicted.cpu().numpy()
        self.probability[ids] = probability.float().cpu().numpy()
        return int((self.predicted >= 0).sum())

    def to_csv(self, catalog: Catalog, left_out: Sequence[Quarantined]) -> bytes:
        """Lines of path, label, prediction, probability; of what was left out, only path, and label if known."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["path", "label", "prediction", "probability"])
        classes = catalog.classes
        for i in (self.predicted >= 0).nonzero()[0].tolist():
            label, predicted = classes[catalog.labels[i]], classes[int(self.predicted[i])]
            writer.writerow([catalog.path(i), label, predicted, f"{self.probability[i]:.6f}"])
        for entry in left_out:
            writer.writerow([entry.path, "" if entry.id is None else classes[catalog.labels[entry.id]], "", ""])
        return text.getvalue().encode("utf-8", "backslashreplace")  # names of any bytes: what is not UTF-8 is escaped


def _require_agreement(path: Path, info: WeightsInfo, arch: str | None, ours: WeightsInfo) -> None:
    """Refuses another network than the one that the weights are of, and pictures prepared as we cannot."""
    if arch not in (None, info.arch) and not (":" in str(arch) and ":" in info.arch):
        raise InputError(f"--arch {arch}: {path} is a {info.arch}; leave --arch out")
    if info != ours:
        raise InputError(
            f"{path}: its pictures were prepared otherwise ({info}); evaluate it with the version that wrote it"
        )


def _read_classes(path: Path) -> list[str]:
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a list of class names ({error})") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: expected a JSON list of class names")
    return classes
