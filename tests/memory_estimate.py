"""An estimate of the device memory of a training step in half precision, from the network's shapes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


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
