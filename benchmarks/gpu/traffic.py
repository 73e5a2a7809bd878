"""The least work of a training step: operations and bytes, counted from the network's shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

HALF_BYTES = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What one picture costs in training, at least.

    Attributes:
        forward_flops, train_flops: floating-point operations (a multiply-add is two) of the forward, and of forward and
            backward, those of convolutions and matrix products.
        train_bytes: of forward and backward through device memory, in half precision.
    """

    forward_flops: float
    train_flops: float
    train_bytes: float

    def bound_per_s(self, flops_per_s: float, bytes_per_s: float) -> dict[str, float]:
        """Pictures a second that arithmetic alone and memory traffic alone would allow."""
        return {"arithmetic": flops_per_s / self.train_flops, "memory": bytes_per_s / self.train_bytes}


def count_work(model: nn.Module, image_size: int, batch_size: int = 2) -> Work:
    """Counts a network on the meta device; the parameters' own traffic is left out, as a batch shares it.

    Bytes are those of kernels that fuse all that can be fused without changing the result: each convolution or matrix
    product reads its input and writes its output, and in the backward reads the output's gradient twice and the input
    once and writes the input's gradient; each batch normalisation (with the ReLU and the addition behind it) reads its
    input twice and writes once, and in the backward reads input and gradient twice and writes once. That is
    3 I + 3 O values for a convolution of I inputs and O outputs, and 8 O for a normalisation.

    Args:
        model: on the meta device, or any other: a copy is not made, and nothing is trained.
        image_size: side, pixels.
        batch_size: pictures that the counts are averaged over.
    """
    values = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            values += 8 * output.numel()
        else:
            values += 3 * inputs[0].numel() + 3 * output.numel()

    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    hooks = [part.register_forward_hook(count) for part in model.modules() if isinstance(part, kinds)]
    device = next(model.parameters()).device
    images = torch.empty(batch_size, 3, image_size, image_size, device=device)
    try:
        with FlopCounterMode(display=False) as forward:
            output = model(images)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    forward_flops = forward.get_total_flops() / batch_size
    return Work(
        forward_flops, forward_flops + backward.get_total_flops() / batch_size, HALF_BYTES * values / batch_size
    )


def estimate_memory(model: nn.Module, image_size: int, batch_size: int) -> dict[str, float]:
    """Estimates the device memory of a training step in half precision, in bytes, without a device.

    "parameters", "gradients" and "momentum" are float32; "weights_half" is what autocast keeps of them; "saved" is what
    autograd holds between forward and backward, each storage once, at half precision unless it is an index or a mask;
    "transient" is room for the largest input and output with their gradients. The allocator's slack, cuDNN's
    workspaces, decoded pictures and the context (about 1 GB in all) come on top.

    Args:
        model: on the meta device.
        image_size: side, pixels.
        batch_size: rows.
    """
    seen: dict[Any, int] = {}
    parameters = {id(p) for p in model.parameters()}
    kept: list[Tensor] = []  # a storage's identity lasts as long as it does
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        if id(tensor) not in parameters and not isinstance(tensor, nn.Parameter):
            kept.append(tensor)
            storage = tensor.untyped_storage()
            num_bytes = storage.nbytes()
            if tensor.dtype == torch.float32 and tensor.ndim > 1:
                num_bytes //= 2
            seen[storage._cdata] = num_bytes
            largest = max(largest, num_bytes)
        return tensor

    device = next(model.parameters()).device
    model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(torch.empty(batch_size, 3, image_size, image_size, device=device))
        F.log_softmax(logits.float(), dim=1).mean()
    num = sum(p.numel() for p in model.parameters())
    return {
        "parameters": 4.0 * num,
        "gradients": 4.0 * num,
        "momentum": 4.0 * num,
        "weights_half": 2.0 * num,
        "saved": float(sum(seen.values())),
        "transient": 4.0 * largest,
    }
