"""Importance weights, which make the gradient of the selected samples an unbiased estimate of that of all."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def importance_weights(mask: Tensor, probability: Tensor, rate: Tensor | float) -> Tensor:
    """The weight rate / p of each selected sample (Horvitz and Thompson, 1952).

    A sample is selected with probability p, so the weighted sum over the selected has `rate` times the sum over all
    as its mean, and the weights of the selected average 1 when `rate` is the mean p: the learning rate keeps its
    meaning. An explore share e bounds every weight by rate / e.

    Args:
        mask: bool [B], the selected samples.
        probability: float32 [B], in (0, 1] where selected: `PIController.probability`.
        rate: mean probability of the gated samples, such as `PIController.mean_probability`.

    Returns:
        float32 [B], 0 for samples that are not selected.
    """
    return torch.where(mask, rate / probability.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
