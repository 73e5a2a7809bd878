"""A proxy network: a small one of its own that scores small pictures and is trained on all of them as the run goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastast.errors import InputError
from fastast.gate import shrink
from fastast.train.averaging import averaged
from fastast.train.compiler import compile_step
from fastast.train.distributed import Ranks
from fastast.train.model import build_model, check_names, scoring_twin
from fastast.train.optimizer import GuardedStep, build_sgd
from fastast.train.steps import logits_of

BUILT_IN = {"tiny": "fastast.train.proxy_net:tiny"}


def tiny(num_classes: int) -> nn.Module:
    """Three strided convolutions with batch normalisation and a linear head: 75,000 parameters before the head.

    At 64 px a forward takes 9 million multiply-adds, 1/450 of a ResNet-50's at 224 px.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 96)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, num_classes))


def check_proxy_arch(arch: str) -> None:
    """Refuses an unknown proxy network, before anything slow is done.

    Raises:
        InputError: with a name that would work.
    """
    with _as_proxy():
        check_names(BUILT_IN.get(arch, arch), "none")


def build_proxy(arch: str, num_classes: int) -> nn.Module:
    """Builds a proxy network and leaves torch's random numbers as they were.

    Args:
        arch: "tiny", or what `build_model` takes.
        num_classes: outputs of the head.

    Raises:
        InputError: unknown arch.
    """
    with torch.random.fork_rng(devices=[]), _as_proxy():
        return build_model(BUILT_IN.get(arch, arch), num_classes)[0]


@contextlib.contextmanager
def _as_proxy() -> Iterator[None]:
    """Names the right option in what the model's builder has to say."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--arch", "--proxy-arch")) from error


def forward_flops(network: nn.Module, size: int) -> int:
    """Floating-point operations of one forward of one picture of side `size`, without the element-wise ones.

    Args:
        network: in eval mode.
        size: pixels.
    """
    blank = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    # With gradients on: the counter does not know the operator that attention uses without them.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        network(blank)
    return counter.get_total_flops()


class _Loss(nn.Module):
    """The training forward: plain cross entropy."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, compiled: bool | str) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        self._run = compile_step(self._compute, compiled)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._run(images, labels)

    def _compute(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(self.network, images, self._dtype), labels)


class ProxyNet(nn.Module):
    """A network that scores in eval mode and trains in train mode, both on small pictures.

    Trained with plain cross entropy and its own optimizer; a step with a non-finite loss or gradient leaves no trace.

    Args:
        network: what is trained, on its device.
        size: side s of the pictures.
        momentum, weight_decay: of its SGD.
        dtype: compute type of the training forward.
        compiled: whether, or in which mode, it goes through `torch.compile`.
        ranks: who trains it together.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        *,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
        compiled: bool | str,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.size = size
        self.network = network.train()
        self._scorer = [scoring_twin(network)]
        optimizer = build_sgd(network, momentum=momentum, weight_decay=weight_decay)
        self.guard = GuardedStep(network, optimizer, scale_loss=dtype == torch.float16, compiled=compiled)
        # In a list, so that the network is in this module's state once.
        self._objective = [averaged(_Loss(network, dtype, compiled), network, size, ranks)]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """The network's output for images [B, C, S, S], in eval mode at side s."""
        return self._scorer[0](shrink(images, self.size))

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """One training step on images [B, C, S, S] at side s, all of whose rows must be pictures; labels int64 [B]."""
        self.guard.save_buffers()
        # Made small outside of the graph, so that one graph serves pictures of all sizes.
        self.guard.backward_and_step(self._objective[0](shrink(images, self.size), labels))

    def get_extra_state(self) -> dict[str, Any]:
        """State of the optimizer."""
        return self.guard.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.guard.load_optimizer(state)
