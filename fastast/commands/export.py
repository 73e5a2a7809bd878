"""`fastast export RUN --to FORMAT`: the trained network in a format that needs no fastast, checked against PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastast.atomic_files import cache_root, write_whole
from fastast.commands.shared_options import add_network, require_file_name, require_positive
from fastast.errors import InputError
from fastast.run_folder import RunFolder, find_weights, read_json

if TYPE_CHECKING:
    import torch

    from fastast.data import Catalog
    from fastast.models.trained import TrainedNetwork

NUM_CHECKED = 64  # pictures
TOLERANCE = 1e-4  # largest difference of a logit, as a share of the largest logit

_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
_NAMES = {"onnx": "model.onnx", "torch": "model.pt2", "hub": "hub"}


# What loads the result, for the last line.
_LOADED = {
    "onnx": "python -c 'import onnxruntime; onnxruntime.InferenceSession(\"{}\")'",
    "torch": "python -c 'import torch; torch.export.load(\"{}\").module()'",
    "hub": "python -c 'import timm; timm.create_model(\"local-dir:{}\", pretrained=True)'",
}


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "export",
        help="a trained network as ONNX, torch.export or a Hugging Face Hub folder",
        description="Converts a trained network and compares it with PyTorch on validation pictures: the largest "
        "difference is printed, and what differs too much is not written. Batches may have any size; classes and the "
        "preparation of pictures go along.",
    )
    add_network(parser)
    parser.add_argument(
        "--to",
        choices=tuple(_NAMES),
        required=True,
        help="onnx: a file for any runtime; torch: a torch.export program; hub: a folder for timm and transformers",
    )
    parser.add_argument("--data", metavar="D", help="pictures to compare on; default the run's validation pictures")
    parser.add_argument("--out", metavar="PATH", help="file, or folder with --to hub; default in the run folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Exports.

    Raises:
        InputError: something that the user can fix, or the exported network differs.
    """
    require_positive(image_size=args.image_size)
    weights, folder = find_weights(args.model)
    out = _choose_out(args.to, args.out, weights, folder)
    for package in _OF_ONNX if args.to == "onnx" else ():  # before torch is imported, which takes seconds
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--to onnx: {package} is not installed; pip install {' '.join(_OF_ONNX)}")

    import torch

    from fastast.loggers.console import Reporter
    from fastast.models.exporting import export
    from fastast.models.trained import find_trained
    from fastast.models.weights_info import WeightsInfo
    from fastast.preprocessing import eval_resize

    reporter = Reporter()
    trained = find_trained(args.model, args.arch, args.image_size)
    classes = trained.required_classes()
    network = trained.build(torch.device("cpu"), len(classes))
    size = trained.image_size
    info = trained.info or WeightsInfo.of(trained.arch, classes, size)
    info = dataclasses.replace(info, crop_size=size, resize_size=eval_resize(size))
    images = _prepared(_pictures(args.data, folder), trained)
    exported = export(network, info, args.to)
    with torch.no_grad():
        expected = getattr(output := network(images), "logits", output)
        # In two parts, so that batches of one and of several pictures are compared.
        found = torch.cat([exported.run(images[:1]), *([exported.run(images[1:])] if len(images) > 1 else [])])
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    measured = (
        f"largest difference to PyTorch {difference:.1e} (logits up to {largest:.1f}), same top-1 on {same} of "
        f"{len(images)} validation pictures"
    )
    if not difference <= TOLERANCE * max(largest, 1):  # so that NaN is refused
        other = "torch" if args.to == "onnx" else "onnx"
        raise InputError(f"--to {args.to}: not written: {measured}; use --to {other}")
    if args.to == "hub":
        out.mkdir(exist_ok=True)
    for name, content in exported.files.items():
        write_whole(out / name if args.to == "hub" else out, content)
    reporter.note(f"checked: {measured}")
    shape = f"[batch, 3, {info.crop_size}, {info.crop_size}] -> [batch, {len(classes)}]"
    reporter.note(f"wrote {out} ({sum(map(len, exported.files.values())) / 1e6:,.1f} MB): {shape}")
    reporter.next(_LOADED[args.to].format(out))
    return 0


def _choose_out(to: str, chosen: str | None, weights: Path, folder: RunFolder) -> Path:
    """The file or folder to write.

    Raises:
        InputError: it cannot be, or holds somebody else's files.
    """
    if chosen is None and not folder.holds_run():
        raise InputError(f"{weights}: lies in no run folder; add --out {_NAMES[to]}")
    out = Path(chosen) if chosen is not None else folder.path / _NAMES[to]
    if to != "hub":
        require_file_name(str(out), _NAMES[to])
    elif out.exists():
        others = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
        if not {"config.json", "model.safetensors"}.issuperset(others):
            raise InputError(f"--out {out}: holds other files than an exported network's; name a new folder")
    elif not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: no such folder {out.absolute().parent}")
    return out


def _pictures(data: str | None, folder: RunFolder) -> Catalog:
    """Those of `data`, or the run's validation pictures.

    Raises:
        InputError: there are none.
    """
    from fastast.data import open_dataset, open_folder

    if data is not None:
        return open_folder(data)
    config = read_json(folder.config) if folder.config.exists() else {}
    if not config:
        raise InputError(f"{folder.path}: no run, whose pictures could be compared on; name some with --data D")
    source = config.get("data") or cache_root() / "demo"
    train_dirs = config["train_dir"].split(",") if config.get("train_dir") else None
    split, seed = config.get("val_split"), config.get("seed", 0)
    try:
        if split is None:
            return open_folder(config.get("val_dir") or source)
        return open_dataset(None if train_dirs else source, train_dirs=train_dirs, val_split=split, seed=seed).val
    except InputError as error:
        raise InputError(f"the run's own pictures: {error}; or name others with --data D") from error


def _prepared(catalog: Catalog, trained: TrainedNetwork) -> torch.Tensor:
    """Some pictures from all over a catalog, float32 [B, 3, S, S]."""
    import numpy as np
    import torch

    from fastast.feed import EvalLoader

    ids = np.unique(np.linspace(0, catalog.num_samples - 1, NUM_CHECKED).astype(np.int64))
    loader = EvalLoader(catalog, trained.loader_options(batch_size=len(ids), device=torch.device("cpu")))
    try:
        (batch,) = loader.over([ids])
    finally:
        loader.close()
    if not batch.num_valid:
        raise InputError("no picture could be decoded; name others with --data D")
    return batch.images[: batch.num_valid].contiguous()
