"""The regression of a probe: what its penalty and its number of iterations change.

    python -m benchmarks.probe --data DIR --arch benchmarks.lite0:efficientnet_lite0 --image-size 128

For each penalty and number of iterations: mean loss on the held-out fold of the training pictures, by which a run
chooses, and the accuracy on the validation pictures of the head that was fitted without that fold.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import command_line, make_parser, markdown_table, provenance, publish, stamp
from fastast.data import Catalog, open_dataset
from fastast.feed import EvalLoader, LoaderOptions
from fastast.models import logistic_regression
from fastast.models.build import build_model
from fastast.models.feature_store import FeatureStore
from fastast.models.head import Head
from fastast.models.linear_probe import NUM_FOLDS, PENALTIES, collect, folds_of
from fastast.models.logistic_regression import Heads, fit, measure

CPU = torch.device("cpu")


def features_of(head: Head, catalog: Catalog, image_size: int) -> FeatureStore:
    """Features of all pictures of a split, float32 on the CPU until they are stored."""
    labels, folds = torch.from_numpy(catalog.labels).long(), torch.from_numpy(folds_of(catalog.labels, 0))
    store = FeatureStore(catalog.num_samples, head.layer.in_features, labels, folds)
    options = LoaderOptions(batch_size=64, image_size=image_size, device=CPU)
    with contextlib.closing(EvalLoader(catalog, options)) as loader:
        collect(store, head, loader, lambda network, pictures: network(pictures), lambda: None)
    return store


def top1(heads: Heads, store: FeatureStore) -> Tensor:
    """Accuracy of each head, float32 [P]."""
    hits = torch.zeros(heads.bias.shape[0])
    for rows, labels, _ in store.chunks():
        logits = torch.einsum("nf,fpc->npc", rows.float(), heads.weight) + heads.bias
        hits += (logits.argmax(2) == labels[:, None]).sum(0)
    return hits / store.num_rows


def try_iterations(
    train: FeatureStore, val: FeatureStore, num_classes: int, counts: list[int]
) -> Iterator[dict[str, Any]]:
    """A row for each number of iterations."""
    scaling = measure(train, torch.ones(num_classes), NUM_FOLDS, lambda tensor: tensor)
    penalties = torch.tensor(PENALTIES)
    for count in counts:
        logistic_regression.NUM_ITERATIONS = count
        began = time.monotonic()
        heads = fit(train, scaling, torch.zeros(len(PENALTIES), dtype=torch.int64), penalties, lambda _: None)
        seconds = time.monotonic() - began
        held_out = heads.losses(train)[:, train.folds == 0].mean(1)
        yield {
            "iterations": count,
            "seconds": seconds,
            "held_out_loss": held_out.tolist(),
            "val_top1": top1(heads, val).tolist(),
        }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    columns = ["penalty", *(f"{row['iterations']} iterations" for row in result["rows"])]
    cells = [
        [f"{penalty:.1e}", *(f"{row['held_out_loss'][i]:.4f} ({row['val_top1'][i]:.1%})" for row in result["rows"])]
        for i, penalty in enumerate(PENALTIES)
    ]
    seconds = ", ".join(f"{row['seconds']:.1f} s for {row['iterations']}" for row in result["rows"])
    return (
        f"**{result['title']}**: {result['train']:,} and {result['val']:,} pictures, {result['classes']} classes, "
        f"{result['features']:,} features, read in {result['feature_s']:.0f} s. Loss in nats, accuracy in brackets.\n\n"
        f"{markdown_table(columns, cells)}\n\n"
        f"{len(PENALTIES)} problems at once: {seconds} iterations. `{result['command']}`; {stamp(result)}.\n"
    )


def main() -> None:
    parser = make_parser("benchmarks.probe", __doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--iterations", type=int, nargs="+", default=[25, 50, 150])
    args = parser.parse_args()
    dataset = open_dataset(args.data)
    model, _ = build_model(args.arch, len(dataset.classes), "imagenet")
    head = Head(model, args.arch)
    began = time.monotonic()
    train, val = (features_of(head, catalog, args.image_size) for catalog in (dataset.train, dataset.val))
    feature_s = time.monotonic() - began
    args.data = Path(args.data)
    result = {
        "title": f"Probe of {args.arch.rpartition(':')[2]} on {args.data.name} at {args.image_size} px",
        "command": command_line(parser, args),
        **provenance(CPU),
        "train": train.num_rows,
        "val": val.num_rows,
        "classes": len(dataset.classes),
        "features": train.num_features,
        "feature_s": feature_s,
        "penalties": list(PENALTIES),
        "rows": list(try_iterations(train, val, len(dataset.classes), args.iterations)),
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
