"""`fastast evaluate`: accuracy of a run's best weights, or of any file of weights, on a folder of pictures."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastast.atomic_files import write_whole
from fastast.commands.shared_options import add_batches, add_network, require_file_name, require_positive
from fastast.run_folder import find_weights

if TYPE_CHECKING:
    import torch

    from fastast.data import Catalog
    from fastast.data.catalog import Quarantined
    from fastast.feed import Batch
    from fastast.loggers.console import Reporter


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy of a trained network on a folder of pictures",
        description="Prints top-1, top-5 and balanced top-1 accuracy (the mean of the classes' own); with --out writes "
        "path, label, prediction and probability, and pictures that cannot be read at the end, without a prediction.",
    )
    add_network(parser)
    parser.add_argument("--data", required=True, metavar="D", help="class folders, or a folder that holds val/")
    parser.add_argument("--out", metavar="preds.csv", help="write one line for each picture")
    add_batches(parser)
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
    """Prints top-1, top-5 and balanced top-1, and writes one CSV line for each picture if `out` is given.

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
    require_positive(image_size=image_size, batch_size=batch_size)
    require_file_name(out, "preds.csv")
    find_weights(model_path)  # before torch is imported

    from fastast.data import open_folder
    from fastast.data.catalog import Quarantined
    from fastast.data.dataset import require_same_bits
    from fastast.device import open_runtime
    from fastast.engine.evaluation import evaluate
    from fastast.engine.steps import EvalStep
    from fastast.feed import EvalLoader
    from fastast.loggers.console import FewNotes
    from fastast.models.trained import find_trained
    from fastast.number_text import counted, percent

    network = find_trained(model_path, arch, image_size)
    info = network.info
    if info is not None:
        reporter.note(f"{network.weights}: {info}")
        if network.image_size != info.crop_size:
            reporter.note(
                f"evaluated at {network.image_size} px, since --image-size asks for it; trained for {info.crop_size}"
            )
    catalog = open_folder(data, network.classes, on_note=reporter.note)
    if info is not None:
        require_same_bits(info.bits, catalog.bits, data)
    if network.classes is None:
        reporter.note(
            f"{network.weights}: says nothing of its classes: taken are the folder's in order, at "
            f"{network.image_size} px"
        )

    runtime = open_runtime(device)
    num_classes = len(catalog.classes)
    step = EvalStep(network.build(runtime.device, num_classes), num_classes, dtype=runtime.dtype)
    left_out = list(catalog.quarantined)
    options = dataclasses.replace(
        network.loader_options(batch_size=batch_size, device=runtime.device, dtype=runtime.image_dtype),
        on_quarantine=lambda *entry: left_out.append(Quarantined(*entry)),
        on_note=reporter.note,
    )
    loader = EvalLoader(catalog, options)
    rows = EvaluatedPictures(catalog.num_samples)
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
    done = counted(accuracy.num_samples, "picture") + (f" of {total:,}" if left_out else "")
    missing = f"; {len(left_out):,} left out" if left_out else ""
    reporter.note(
        f"top-1 {percent(accuracy.top1)}, top-5 {percent(accuracy.top5)}, balanced top-1 "
        f"{percent(accuracy.balanced_top1)} on {done}{missing}"
    )
    model = shlex.quote(model_path)
    reporter.next(f"fastast predict {model} PICTURES", f"fastast export {model} --to onnx")
    return 0


class EvaluatedPictures:
    """The most probable class of each picture, by id; pictures that were not delivered stay without one."""

    def __init__(self, num_samples: int) -> None:
        import numpy as np  # not above: the parser of this command is built for every command

        self.predicted = np.full(num_samples, -1)
        self.probability = np.zeros(num_samples, np.float32)

    def add(self, batch: Batch, logits: torch.Tensor) -> int:
        """Takes in a batch and its logits [B, C]; returns how many pictures are done so far."""
        from fastast.models.trained import top_classes

        probability, predicted = top_classes(logits[: batch.num_valid], 1)
        ids = batch.ids[: batch.num_valid].cpu().numpy()
        self.predicted[ids] = predicted[:, 0].cpu().numpy()
        self.probability[ids] = probability[:, 0].cpu().numpy()
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
