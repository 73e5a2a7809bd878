"""Parts of a network that do not train, and what training the rest costs."""

from __future__ import annotations

import difflib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from fastast.cost_model import DENSE_COST
from fastast.errors import InputError
from fastast.models.build import scoring_twin


def freeze(model: nn.Module, stage: str | None, *, statistics: bool) -> None:
    """Stops the training of a network's first layers, and the moving statistics of its batch normalisation.

    Call it on a network in training mode, whose mode then stays as it is.

    Args:
        model: changed in place.
        stage: name of a module: all that is registered up to its end is frozen, its batch statistics too, and what the
            modules around it hold themselves, such as tokens and position embeddings; None for nothing.
        statistics: all batch normalisation uses the moving statistics that it has, and leaves them.

    Raises:
        InputError: there is no such stage, or nothing but it.
    """
    if stage is not None:
        frozen, around = _up_to(model, stage)
        for module in frozen:
            module.eval()
        for module in (*frozen, *around):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
    if statistics:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _up_to(model: nn.Module, stage: str) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules that are registered up to the end of a stage, and those around it, which go on after it."""
    names = [name for name, _ in model.named_modules()]
    if stage not in names or not stage:
        shown = difflib.get_close_matches(stage, names, n=3) or [name for name, _ in model.named_children()]
        raise InputError(f"--freeze {stage}: the network has no such part; for example {', '.join(shown[:8])}")
    last = max(place for place, name in enumerate(names) if name == stage or name.startswith(f"{stage}."))
    frozen: list[nn.Module] = []
    around: list[nn.Module] = []
    for name, module in list(model.named_modules())[: last + 1]:
        goes_on = not name or stage.startswith(f"{name}.")
        (around if goes_on else frozen).append(module)
    own = {id(parameter) for module in (*frozen, *around) for parameter in module.parameters(recurse=False)}
    if all(id(parameter) in own for parameter in model.parameters()):
        raise InputError(f"--freeze {stage}: leaves nothing to train; name an earlier part")
    return frozen, around


def train_cost(model: nn.Module, size: int) -> float:
    """Cost of training one sample, in forwards, by counted operations: 3 where nothing is frozen.

    Args:
        model: the network, on its device.
        size: side of the pictures, pixels.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return DENSE_COST
    twin = scoring_twin(model)
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    part = _backward_flops(twin, trained, size)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    try:
        whole = _backward_flops(twin, list(twin.parameters()), size)
    finally:
        is_trained = {id(parameter) for parameter in trained}
        for parameter in twin.parameters():
            parameter.requires_grad_(id(parameter) in is_trained)
    return 1 + (DENSE_COST - 1) * (part / whole if whole else 1.0)


def _backward_flops(network: nn.Module, parameters: list[nn.Parameter], size: int) -> int:
    """Operations of the backward of one picture."""
    picture = torch.zeros(1, 3, size, size, device=parameters[0].device)
    output = network(picture)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(getattr(output, "logits", output).sum(), parameters, allow_unused=True)
    return counter.get_total_flops()
