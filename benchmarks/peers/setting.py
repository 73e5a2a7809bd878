"""What all peers share: pictures, network, optimizer, schedule, and how time and work are counted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from fastast.feed.loader_options import MEAN, STD
from fastast.models.build import build_model
from fastast.train.schedule import lr_at

MIN_CROP, MOMENTUM, WEIGHT_DECAY, LR_WARMUP = 0.25, 0.9, 1e-4, 0.05  # fastast's defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run's task.

    Attributes:
        data: folder with train/ and val/ class folders.
        arch: as of `fastast train`.
        image_size: side of a picture, pixels.
        epochs: passes over the pictures.
        batch_size: pictures of a batch.
        lr: peak learning rate.
        target: share to train, of the rules that take one.
        seed: of weights, order, crops and choices.
        workers: processes that decode for a DataLoader.
    """

    data: str
    arch: str
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    target: float
    seed: int
    workers: int = 2


@dataclass(slots=True)
class Work:
    """Counts what really goes through a network, picture by picture, by hooks on it.

    A picture of another size counts by its area. Nothing is counted while paused, as in an evaluation.

    Attributes:
        image_size: the full side, pixels.
        forward: forward passes of full-size pictures, with or without gradient.
        backward: pictures in backward passes, those that a mask had zeroed included: they cost as much.
        unseen_s: seconds spent paused.
    """

    image_size: int
    forward: float = 0.0
    backward: float = 0.0
    unseen_s: float = 0.0
    _paused: int = field(default=0, repr=False)

    @property
    def units(self) -> float:
        """Forward units: 1 for a forward, 2 for a backward."""
        return self.forward + 2 * self.backward

    def count(self, network: nn.Module) -> nn.Module:
        """Counts `network` and every copy that is made of it; returns it."""

        # A function, not a method: copying a network copies the object of a method with it.
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._paused:
                return
            rows, side = len(inputs[0]), inputs[0].shape[-1]
            share = (side / self.image_size) ** 2
            self.forward += rows * share
            if output.requires_grad:
                output.register_hook(lambda gradient: self._back(len(gradient) * share))

        network.register_forward_hook(seen)
        return network

    def _back(self, pictures: float) -> None:
        self.backward += pictures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing within the block, or in the function that it decorates."""
        began = time.perf_counter()
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.unseen_s += time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class UnseenBatches:
    """A loader whose batches are not counted, neither their work nor their time: for evaluation."""

    batches: Iterable[Any]
    work: Work

    def __iter__(self) -> Iterator[Any]:
        with self.work.paused():
            yield from self.batches


class Numbered(Dataset[tuple[Any, int, int]]):
    """Pictures with their label and their number."""

    def __init__(self, pictures: datasets.ImageFolder) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, int, int]:
        return (*self.pictures[number], number)


def train_pictures(setting: Setting) -> datasets.ImageFolder:
    """Training pictures with torchvision's random resized crop and flip, at fastast's smallest crop."""
    size = setting.image_size
    steps = [transforms.RandomResizedCrop(size, scale=(MIN_CROP, 1.0)), transforms.RandomHorizontalFlip()]
    return datasets.ImageFolder(str(Path(setting.data, "train")), transforms.Compose([*steps, *_to_numbers()]))


def val_loader(setting: Setting) -> DataLoader[Any]:
    """Validation pictures with torchvision's resize and centre crop."""
    size = setting.image_size
    steps = [transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size)]
    pictures = datasets.ImageFolder(str(Path(setting.data, "val")), transforms.Compose([*steps, *_to_numbers()]))
    return DataLoader(pictures, batch_size=setting.batch_size, num_workers=setting.workers)


def _to_numbers() -> list[Any]:
    mean, std = ([level / 255 for level in levels] for levels in (MEAN, STD))
    return [transforms.ToTensor(), transforms.Normalize(mean, std)]


def network_of(setting: Setting, num_classes: int, work: Work) -> nn.Module:
    """The network with the seed's weights, counted."""
    torch.manual_seed(setting.seed)
    return work.count(build_model(setting.arch, num_classes)[0])


def optimizer_of(setting: Setting, network: nn.Module) -> SGD:
    """SGD as fastast's: Nesterov momentum, no weight decay on norms and biases."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for tensor in network.parameters():
        groups[tensor.ndim > 1].append(tensor)
    decays = ((groups[True], WEIGHT_DECAY), (groups[False], 0.0))
    parts = [{"params": tensors, "weight_decay": decay} for tensors, decay in decays]
    return SGD(parts, lr=setting.lr, momentum=MOMENTUM, nesterov=True)


def set_lr(setting: Setting, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """The learning rate at a share of the run, in [0, 1]: a short rise, then a cosine to zero."""
    for group in optimizer.param_groups:
        group["lr"] = lr_at(progress, peak=setting.lr, warmup=LR_WARMUP)


@torch.no_grad()
def top1(network: nn.Module, setting: Setting, work: Work) -> float:
    """Share of the validation pictures that the network names."""
    network.eval()
    hits = total = 0
    for images, labels in UnseenBatches(val_loader(setting), work):
        hits += int((network(images).argmax(1) == labels).sum())
        total += len(labels)
    return hits / total


def outcome(
    setting: Setting, work: Work, *, top1: float, seconds: float, offered: int, claim: str = ""
) -> dict[str, Any]:
    """A run's figures.

    Args:
        setting, work: of the run.
        top1: share of the validation pictures named at its end.
        seconds: of training; start-up and evaluation are left out.
        offered: pictures that its epochs offered.
        claim: what it says of its own savings.
    """
    return {
        "seed": setting.seed,
        "top1": top1,
        "seconds": seconds,
        "offered": offered,
        "offered_per_s": offered / seconds,
        "forward": work.forward,
        "backward": work.backward,
        "forward_units": work.units,
        "claim": claim,
    }
