"""Importance weights, which make the gradient of the selected samples an unbiased estimate of that of all."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def importance_weights(
    mask: Tensor, probability: Tensor, rate: Tensor | float, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """The weight rate / p of each selected sample (Horvitz and Thompson, 1952).

    A sample is selected with probability p, so the weighted sum over the selected has `rate` times the sum over all
    as its mean, and the weights of the selected average 1 when `rate` is the mean p: the learning rate keeps its
    meaning. An explore share e bounds every weight by rate / e.

    Args:
        mask: bool [B], the selected samples.
        probability: float32 [B], in (0, 1] where selected: `PIController.probability`.
        rate: mean probability of the gated stream, such as `PIController.mean_probability`.
        clip: largest weight; None for no limit. Clipping trades bias for less variance.

    Returns:
        weights: float32 [B], 0 for samples that are not selected.
        num_clipped: int64 0-dim, weights that were cut.
    """
    weights = torch.where(mask, rate / probability.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    if clip is None:
        return weights, torch.zeros((), dtype=torch.int64, device=mask.device)
    return weights.clamp(max=clip), (weights > clip).sum()
