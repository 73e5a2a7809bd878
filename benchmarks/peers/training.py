"""What all peers share: pictures, network, optimizer, schedule, budget, and the summary of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.peers.work import Spending, Work
from fastast.code_version import code_version
from fastast.cost_model import DENSE_COST
from fastast.device import device_name, open_runtime
from fastast.energy.reading import Reading
from fastast.engine.optimizer import has_weight_decay
from fastast.errors import InputError
from fastast.models.build import build_model
from fastast.plan.schedule import lr_at
from fastast.preprocessing import MEAN, STD, eval_resize

CHANNEL_MEAN, CHANNEL_STD = (tuple(level / 255 for level in levels) for levels in (MEAN, STD))
TIMED_BATCHES = 4  # of an evaluation, to know how much of a time budget it needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of a peer.

    Attributes:
        peer: which.
        kind, amount: of the budget: "ep", dense epochs' worth of forward units, or "time", seconds.
        seed: of weights, order, crops and choices.
        lr: peak learning rate.
        data: folder with train/ and val/ class folders, of `benchmarks.peers.pictures`, named by their fingerprint.
        arch, weights, image_size, batch_size, lr_warmup, momentum, weight_decay, label_smoothing, min_crop, no_flip,
            device, precision: as of `fastast train`.
        workers: processes that decode for a DataLoader.
    """

    peer: str
    kind: str
    amount: float
    seed: int
    lr: float
    data: str
    arch: str
    image_size: int
    batch_size: int
    weights: str = "none"
    lr_warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    min_crop: float = 0.25
    no_flip: bool = False
    device: str = "auto"
    precision: str = "auto"
    workers: int = 2


class Training:
    """A run: its network with the seed's weights and counted work, its pictures, and what it has spent.

    Args:
        task: of the run.
        began_s: when its command started, by `time.monotonic`; a budget of time counts from there.

    Attributes:
        device: where it trains.
        network: on the device, in training mode.
        spending: how far it is through its budget; `batches` keeps it.
    """

    def __init__(self, task: Task, began_s: float) -> None:
        self.task = task
        self.runtime = open_runtime(task.device, task.precision)
        self.device = self.runtime.device
        self.pictures = datasets.ImageFolder(str(Path(task.data, "train")), self._train_transforms())
        self.work = Work(task.image_size)
        torch.manual_seed(task.seed)
        network, _ = build_model(task.arch, len(self.pictures.classes), task.weights)
        self.network = self.work.count(network.to(self.device).train())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.runtime.dtype == torch.float16)
        self.offered = self.decoded = self.steps = self.num_val = 0
        self._reserved_s = 0.0  # of a budget of time, for the evaluation
        self.spending = self._spending(began_s)

    def _spending(self, began_s: float) -> Spending:
        if self.task.kind == "ep":
            return Spending(self.task.amount * DENSE_COST * len(self.pictures), lambda: self.work.units)
        self._reserved_s = self._evaluation_s()
        return Spending(self.task.amount, lambda: time.monotonic() - began_s + self._reserved_s)

    def _train_transforms(self) -> transforms.Compose:
        size, smallest = self.task.image_size, self.task.min_crop
        steps: list[Any] = [transforms.RandomResizedCrop(size, scale=(smallest, 1.0))]
        steps += [] if self.task.no_flip else [transforms.RandomHorizontalFlip()]
        return transforms.Compose([*steps, *_to_numbers()])

    @property
    def loader_options(self) -> dict[str, Any]:
        """Options of a DataLoader."""
        workers, on_gpu = self.task.workers, self.device.type == "cuda"
        return {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": on_gpu}

    def batches(self, loader: Any, *, left_out: int = 0) -> Iterator[Any]:
        """The batches of one pass over a loader, on the device, each for one step; fewer if the budget is spent.

        Args:
            loader: of images [B, 3, S, S], labels [B] and whatever else.
            left_out: pictures that the pass leaves out of those it offers.
        """
        num_batches = len(loader)
        for number, batch in enumerate(loader, 1):
            yield [part.to(self.device, non_blocking=True) for part in batch]
            self.steps += 1
            self.decoded += len(batch[0])
            self.offered += len(batch[0]) + left_out * number // num_batches - left_out * (number - 1) // num_batches
            self.spending.finish_step()
            if self.spending.is_over:
                return

    def autocast(self) -> torch.autocast:
        """The number format of the forward and the loss."""
        enabled = self.runtime.dtype != torch.float32
        return torch.autocast(self.device.type, self.runtime.dtype if enabled else None, enabled=enabled)

    def sgd(self) -> SGD:
        """The optimizer of `fastast train`: Nesterov momentum, no weight decay on norms and biases."""
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, tensor in self.network.named_parameters():
            groups[has_weight_decay(self.network, name, tensor)].append(tensor)
        decays = ((groups[True], self.task.weight_decay), (groups[False], 0.0))
        parts = [{"params": tensors, "weight_decay": decay} for tensors, decay in decays]
        return SGD(parts, lr=self.task.lr, momentum=self.task.momentum, nesterov=True)

    def set_lr(self, optimizer: torch.optim.Optimizer) -> None:
        """The learning rate at this point of the budget: a short rise, then a cosine to zero."""
        for group in optimizer.param_groups:
            group["lr"] = lr_at(self.spending.progress, peak=self.task.lr, warmup=self.task.lr_warmup)

    def val_loader(self) -> DataLoader[Any]:
        """Validation pictures with torchvision's resize and centre crop, which `fastast` evaluates with, too."""
        size = self.task.image_size
        steps = [transforms.Resize(eval_resize(size)), transforms.CenterCrop(size), *_to_numbers()]
        pictures = datasets.ImageFolder(str(Path(self.task.data, "val")), transforms.Compose(steps), allow_empty=True)
        return DataLoader(pictures, self.task.batch_size, **self.loader_options)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Top-1 and top-5 of the finished network: shares of the validation pictures."""
        self.network.eval()
        hits, self.num_val = torch.zeros(2, dtype=torch.int64), 0
        for logits, labels in self._val_logits(self.val_loader()):
            best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits += torch.stack([best[:, 0].sum(), best.sum()]).cpu()
            self.num_val += len(labels)
        self._reserved_s = 0.0
        first, among = (hits / self.num_val).tolist()
        return first, among

    def _val_logits(self, batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
        with self.work.paused():
            for images, labels in batches:
                with self.autocast():
                    logits = self.network(images.to(self.device))
                yield logits.float(), labels.to(self.device)

    @torch.no_grad()
    def _evaluation_s(self) -> float:
        """Seconds of an evaluation, estimated from its first batches."""
        began, loader = time.monotonic(), self.val_loader()
        self.network.eval()
        num_timed = len(list(self._val_logits(islice(loader, TIMED_BATCHES))))
        self.network.train()
        self.synchronize()
        return (time.monotonic() - began) / num_timed * len(loader)

    def synchronize(self) -> None:
        """Waits until the device has done all it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def summary(
        self, *, top1: float, top5: float, total_s: float, eval_s: float, energy: Reading, train_gpu_j: float | None
    ) -> dict[str, Any]:
        """The figures of the finished run under the names of a `summary.json` of `fastast train`.

        Args:
            top1, top5: at its end, as of `evaluate`.
            total_s, eval_s: seconds of training and evaluation, and of the latter; start-up is left out.
            energy: of both.
            train_gpu_j: GPU joules of training; None where they were not measured.
        """
        task, work, train_s = self.task, self.work, total_s - eval_s
        version, commit = code_version()
        return {
            "schema": 1,
            "version": version,
            "commit": commit,
            "seed": task.seed,
            "hardware": {
                "device": self.device.type,
                "names": [device_name(self.device)],
                "world_size": 1,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
            "data": {
                "train": len(self.pictures),
                "val": self.num_val,
                "classes": len(self.pictures.classes),
                "fingerprint": Path(task.data).name,
            },
            "model": {
                "arch": task.arch,
                "params": sum(p.numel() for p in self.network.parameters()),
                "image_size": task.image_size,
                "precision": str(self.runtime.dtype).removeprefix("torch."),
            },
            "gate": {"name": task.peer, "activation_rate": work.backward / self.offered},
            "budget": {
                "kind": task.kind,
                "given": task.amount,
                "spent": self.spending.spent() / self.spending.limit * task.amount,
            },
            "samples": {
                "offered": self.offered,
                "decoded": self.decoded,
                "forward": work.forward,
                "backward": work.backward,
                "steps": self.steps,
            },
            "accuracy": {"val_top1": top1, "val_top5": top5},
            "time_s": {"total": total_s, "train": train_s, "eval": eval_s},
            "throughput": {"offered_per_s": self.offered / train_s, "backward_per_s": work.backward / train_s},
            "compute": {"forward_units": work.units},
            "energy": {
                "gpu_j": energy.joules,
                "train_gpu_j": train_gpu_j,
                "cpu_j": energy.cpu_j,
                "source": energy.source,
                "notes": list(energy.notes),
            },
        }


def _to_numbers() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(CHANNEL_MEAN, CHANNEL_STD)]


def require_package(name: str, error: ImportError) -> InputError:
    """The error of a package that is not installed."""
    return InputError(f"{error}; pip install {name}")
