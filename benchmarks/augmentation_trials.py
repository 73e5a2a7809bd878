"""Augmentations beyond crop and flip: the accuracy of dense training with each, at equal work.

    python -m benchmarks.augmentation_trials --data DIR --arch benchmarks.nets:tiny_resnet --image-size 32 --runs RUNS

RUNS keeps the finished runs, so that the same command goes on where it was stopped.
Every arm crops and flips. `erase` and `trivial` change single pictures as docs/add-an-augmentation.md has it, as a pure
function of (seed, epoch, id). `mixup` and `cutmix` train on two pictures at once, by draws of (seed, step): a gate
would find no loss of a single picture there, so they fit dense training alone.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

import fastast
from benchmarks.common import command_line, make_parser, markdown_table, provenance, publish, stamp
from fastast.bench.statistics import summarise
from fastast.bench.tables import grids
from fastast.engine import engine
from fastast.engine.steps import Objective, logits_of
from fastast.feed import Batch, TrainLoader
from fastast.feed.prefetch import Slice
from fastast.philox import random_words, to_uniform
from fastast.run_folder import RunFolder
from fastast.train import loaders

STREAM_PICTURE, STREAM_MIX = 65, 66


class PerPicture(TrainLoader):
    """Every picture through `change`, whose draws from torch's generator follow from (seed, epoch, id)."""

    change: ClassVar[Callable[[Tensor], Tensor]]

    def stream(self, epoch: int, slices: Iterable[Slice]) -> Generator[Batch, None, None]:
        for batch in super().stream(epoch, slices):
            yield self._augment(batch, epoch)

    def _augment(self, batch: Batch, epoch: int) -> Batch:
        mean, std = torch.tensor((self._options.mean, self._options.std))[:, :, None, None]  # [3, 1, 1] each
        levels = (batch.images * std + mean).round().clamp(0, 255).to(torch.uint8)
        words, _, _, _ = random_words(self._seed, epoch, batch.ids, STREAM_PICTURE)
        images = batch.images.clone()
        with torch.random.fork_rng(devices=[]):
            for row, word in enumerate(words[: batch.num_valid].tolist()):
                torch.default_generator.manual_seed(word)  # a hundred times as quick as seeding every device
                images[row] = (type(self).change(levels[row]).float() - mean) / std
        return batch._replace(images=images)


class Erased(PerPicture):
    """A rectangle of half of the pictures becomes grey.

    Source: Zhong et al., "Random erasing data augmentation", 2020.
    """

    change = v2.RandomErasing(p=0.5, value=[124, 116, 104])  # ImageNet's mean


class Trivial(PerPicture):
    """One of 14 operations a picture, of a strength drawn evenly.

    Source: Mueller and Hutter, "TrivialAugment", 2021, with the wide range of strengths.
    """

    change = v2.TrivialAugmentWide()


class Mixup(Objective):
    """Each picture mixed with the next row by a share, even in (0, 1), of the step; so is the loss.

    Source: Zhang et al., "mixup", 2018, with their alpha of 1.
    """

    seed, steps = 0, 0

    def _compute(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        words = random_words(type(self).seed, self.steps, np.zeros(1, np.int64), STREAM_MIX)
        self.steps += 1
        mixed, share = self._mix(images, images.roll(1, 0), [float(to_uniform(word)[0]) for word in words])
        logits = logits_of(self.model, mixed, self._dtype)
        own, other = (
            F.cross_entropy(logits, those, label_smoothing=self._label_smoothing, reduction="none")
            for those in (labels, labels.roll(1))
        )
        return (share * own + (1 - share) * other).mean(), own.detach()

    def _mix(self, images: Tensor, others: Tensor, draws: list[float]) -> tuple[Tensor, float]:
        return torch.lerp(others, images, draws[0]), draws[0]


class Cutmix(Mixup):
    """A rectangle of each picture is that of the next row: a share, even in (0, 1), less what lies outside.

    Source: Yun et al., "CutMix", 2019.
    """

    def _mix(self, images: Tensor, others: Tensor, draws: list[float]) -> tuple[Tensor, float]:
        side, half = images.shape[-1], images.shape[-1] * math.sqrt(draws[0]) / 2
        edges = [(round(max(side * at - half, 0)), round(min(side * at + half, side))) for at in draws[1:3]]
        (top, bottom), (left, right) = edges
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / side**2


# What takes the place of a run's loader and objective; the first arm is what the others are compared with.
ARMS: dict[str, tuple[type[TrainLoader], type[Objective]]] = {
    "crop and flip": (TrainLoader, Objective),
    "erase": (Erased, Objective),
    "trivial": (Trivial, Objective),
    "mixup": (TrainLoader, Mixup),
    "cutmix": (TrainLoader, Cutmix),
}


def run(arm: str, options: dict[str, Any], out: Path) -> dict[str, Any]:
    """The summary of a dense run of an arm, on the CPU; of one that is finished already, as it stands in `out`."""
    loader, objective = ARMS[arm]
    is_done = RunFolder(out).finished_summary() is not None
    if not is_done:
        shutil.rmtree(out, ignore_errors=True)
    with (
        mock.patch.object(loaders, "TrainLoader", loader),
        mock.patch.object(engine, "Objective", objective),
        mock.patch.object(Mixup, "seed", options["seed"]),
    ):
        dense = {"gate": "dense", "device": "cpu", "eval_every": 1000, "out": out}
        return fastast.train(quiet=True, resume=is_done, **dense, **options).summary


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    shown = grids({**result, "cost_at_equal_accuracy": []})
    tables = "\n\n".join(f"{title}:\n\n{markdown_table(head, rows)}" for title, (head, *rows) in shown)
    return f"""\
**{result["title"]}**: {result["train"]:,} pictures for training and {result["val"]:,} for validation, dense, \
{result["pictures_px"]} px.

{tables}

In brackets: 95 % intervals. "better" and "worse" are corrected by Holm over all comparisons.

{result["hardware"]["name"]}, seeds {", ".join(map(str, result["seeds"]))}; {stamp(result)}. `{result["command"]}`
"""


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.augmentation_trials", __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--min-crop", type=float, default=0.6)
    parser.add_argument("--budgets", nargs="+", default=["12ep"])
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("data", "arch", "image_size", "batch_size", "lr", "min_crop")}
    options["train_size"] = f"{args.image_size}:{args.image_size}"
    runs, figures = [], []
    for seed in range(args.seeds):
        for budget in args.budgets:
            for arm in ARMS:
                name, row = f"{arm.replace(' ', '-')}-{budget}-{seed}", {"arm": arm, "budget": budget, "seed": seed}
                summary = run(arm, {**options, "budget": budget, "seed": seed}, args.runs / name)
                runs.append({**row, "summary": summary})
                row |= {"val_top1": summary["accuracy"]["val_top1"], "train_s": summary["time_s"]["train"]}
                figures.append({**row, "forward_units": summary["compute"]["forward_units"]})
                print(figures[-1], file=sys.stderr, flush=True)
    arms = [{"name": arm, "options": {"gate": "dense"}} for arm in ARMS]
    budgets = [{"name": budget, "kind": "ep", "amount": float(budget.removesuffix("ep"))} for budget in args.budgets]
    found, data = summarise(arms, budgets, runs), runs[0]["summary"]["data"]
    result = {
        "title": f"Augmentations with {args.arch.rpartition(':')[2]} on {args.data.name}",
        "command": command_line(parser, args),
        **provenance(torch.device("cpu")),
        **{"train": data["train"], "val": data["val"], "pictures_px": args.image_size},
        **{"arms": arms, "budgets": budgets, "seeds": list(range(args.seeds))},
        "runs": figures,
        **{key: found[key] for key in ("points", "paired")},
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
