"""SGD or AdamW; whether a step counts is decided on the device."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastast.device import compile_step
from fastast.errors import InputError

# Scales, tokens and position embeddings by the names of torchvision and timm.
_NO_DECAY = re.compile(r"(^|\.)(layer_scale\w*|\w+_token|pos_embed\w*|relative_position_bias_table)(\.|$)")
# As `torch.amp.GradScaler` begins.
FIRST_SCALE = 2.0**16


def build_optimizer(model: nn.Module, *, momentum: float, weight_decay: float, kind: str = "sgd") -> Optimizer:
    """A fused optimizer; `has_weight_decay` says which parameters are decayed.

    The learning rate is a tensor on the model's device: it changes without a recompile or a new CUDA graph.

    Args:
        model: the network.
        momentum: Nesterov momentum of SGD, the first beta of AdamW (the second is 0.999).
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
        kind: "sgd" or "adamw".

    Raises:
        InputError: the network has no parameter that trains.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InputError("the network has no parameter that trains: every requires_grad is off")
    decayed = {name for name, p in parameters.items() if has_weight_decay(model, name, p)}
    groups = [
        {"params": [p for name, p in parameters.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=True, fused=True)
        for p in parameters.values():
            # torch leaves a new momentum buffer unwritten when the first step is skipped. With zero dampening a
            # zero buffer gives the same first step as none.
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    lr = torch.zeros((), device=next(iter(parameters.values())).device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def has_weight_decay(model: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a parameter is decayed: not norms, biases and scales, nor tokens and position embeddings.

    Args:
        model: the network; what its own `no_weight_decay()` lists, as timm's networks have it, is not decayed either.
        name: of the parameter within it.
        parameter: a scale may have more dimensions than one, such as [C, 1, 1]; a weight has not.
    """
    own: set[str] = getattr(model, "no_weight_decay", set)()
    return not (name in own or _NO_DECAY.search(name) or max(parameter.shape[1:], default=1) == 1)


class GuardedStep(nn.Module):
    """Backward and one optimizer step that leaves no trace when the loss or a gradient is not finite.

    The decision stays on the device. Parameters and averages are kept by the fused optimizer's `found_inf`;
    BatchNorm's (and any other) buffers, which the forward has already changed, are put back. In fp16 the loss is
    scaled as `torch.amp.GradScaler` does it (growth 2x every 2000 good steps, backoff 0.5), without its host sync.

    Attributes:
        counts: int64[4]: steps taken, non-finite steps, non-finite steps in a row, loss-scaler skips. A step whose
            loss is finite while scaled fp16 gradients overflow is the scaler's own skip: it counts apart, and neither
            lengthens nor ends a row. The scale stays at 1 or above, where an overflow is no longer its own.
    """

    STEPS, NONFINITE, NONFINITE_RUN, SCALER_SKIPS = range(4)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        scale_loss: bool,
        compiled: bool | str,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.lr = 0.0
        self.scale_loss = scale_loss
        self._parameters_list = [p for group in optimizer.param_groups for p in group["params"]]
        self._buffers_list = sorted(model.buffers(), key=lambda buffer: str(buffer.dtype))
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers_list]
        device = self._parameters_list[0].device
        self.register_buffer("counts", torch.zeros(4, dtype=torch.int64, device=device))
        self.register_buffer("scale", torch.full((), FIRST_SCALE if scale_loss else 1.0, device=device))
        self.register_buffer("growth_tracker", torch.zeros((), dtype=torch.int32, device=device))
        # One copy kernel takes tensors of one type.
        pairs = list(zip(self._saved, self._buffers_list, strict=True))
        self._by_type = [list(zip(*group, strict=True)) for _, group in groupby(pairs, lambda pair: pair[0].dtype)]
        if compiled:
            for tensor in (*self._buffers_list, *self._saved):
                # The compiler takes tensors in a list for inputs that move, and CUDA graphs may not change those.
                torch._dynamo.mark_static_address(tensor, guard=False)
        self._restore = compile_step(restore_where, compiled)

    counts: Tensor
    scale: Tensor
    growth_tracker: Tensor

    def set_lr(self, value: float) -> None:
        """Sets the learning rate of the next steps, without a sync."""
        self.lr = value
        for group in self.optimizer.param_groups:
            group["lr"].fill_(value)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Takes over the optimizer's averages; its options, weight decay and others, stay those of this run."""
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": own})

    def reset_scale(self) -> None:
        """Resets the loss scale."""
        self.scale.fill_(FIRST_SCALE if self.scale_loss else 1.0)
        self.growth_tracker.zero_()

    def save_buffers(self) -> None:
        """Remembers the model's buffers; call before the training forward."""
        for saved, buffers in self._by_type:
            torch._foreach_copy_(saved, buffers)

    def backward_and_step(self, loss: Tensor) -> Tensor:
        """Runs backward on `loss` (float32, 0-dim) and one optimizer step.

        Returns:
            bool, 0-dim, on the device: True if the step was skipped.
        """
        # A loss that is not finite makes every gradient NaN, so that all ranks learn of it from their mean.
        bad_loss = ~torch.isfinite(loss.detach())
        loss.backward(torch.where(bad_loss, torch.nan, self.scale))
        grads = [p.grad for p in self._parameters_list if p.grad is not None]
        found_inf = torch.zeros((), device=loss.device)
        torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, self.scale.reciprocal())
        skipped = bad_loss | (found_inf > 0)
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._saved:
            self._restore(self._buffers_list, self._saved, skipped)
        nonfinite = skipped
        if self.scale_loss:
            # A gradient that overflows although the loss is hardly scaled is not the scaler's doing.
            nonfinite = bad_loss | (skipped & (self.scale <= 1.0))
            torch._amp_update_scale_(self.scale, self.growth_tracker, found_inf, 2.0, 0.5, 2000)
            self.scale.clamp_(min=1.0)
        run = torch.where(nonfinite, self.counts[self.NONFINITE_RUN] + 1, self.counts[self.NONFINITE_RUN] * skipped)
        ones = torch.ones_like(run)
        self.counts.copy_(
            torch.stack(
                [
                    self.counts[self.STEPS] + ones,
                    self.counts[self.NONFINITE] + nonfinite,
                    run,
                    self.counts[self.SCALER_SKIPS] + (skipped & ~nonfinite),
                ]
            )
        )
        return skipped


def restore_where(tensors: list[Tensor], saved: list[Tensor], condition: Tensor) -> None:
    """Copies `saved` into `tensors` where the 0-dim bool `condition` holds; on the device, no branch."""
    for tensor, old in zip(tensors, saved, strict=True):
        tensor.copy_(torch.where(condition, old, tensor))
