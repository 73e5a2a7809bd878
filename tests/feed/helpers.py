"""Loaders on the CPU, and what they deliver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastast.data.catalog import Catalog
from fastast.feed import Batch, EvalLoader, LoaderOptions, TrainLoader

CPU = torch.device("cpu")


def loader_options(**changes: Any) -> LoaderOptions:
    return LoaderOptions(**{"batch_size": 8, "image_size": 32, "device": CPU, "num_threads": 1, **changes})


def train_loader(
    catalog: Catalog, *, seed: int = 3, min_area: float = 0.25, flips: bool = True, **changes: Any
) -> TrainLoader:
    return TrainLoader(catalog, loader_options(**changes), seed=seed, min_area=min_area, flips=flips)


def eval_loader(catalog: Catalog, **changes: Any) -> EvalLoader:
    return EvalLoader(catalog, loader_options(**changes))


def delivered_ids(batches: Iterable[Batch]) -> list[int]:
    return [sample for batch in batches for sample in batch.ids[: batch.num_valid].tolist()]


def images_by_id(batches: Iterable[Batch]) -> dict[int, torch.Tensor]:
    """Fails if an id comes twice."""
    found: dict[int, torch.Tensor] = {}
    for batch in batches:
        for row, sample in enumerate(batch.ids[: batch.num_valid].tolist()):
            assert sample not in found
            found[sample] = batch.images[row].clone()
    return found


def same_images(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(image, b[sample]) for sample, image in a.items())


def same_batches(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.num_valid == y.num_valid and all(map(torch.equal, x[:4], y[:4])) for x, y in zip(a, b, strict=True)
    )
