"""How much each sample has to teach: one score per sample, larger for the harder ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastast.errors import InputError

NUM_SUMS = 3  # sum of the first term, sum of the second, count
MEMORY = 0.98  # a batch's weight in the running means halves every 34 batches
# With label smoothing no score is below this part of what it would be without. Half of what a network has learnt it is
# surer of than smoothing wants it to be: were all of these 0, no threshold could choose among them.
LEAST_PART = 0.01


class _Scored(NamedTuple):
    """A batch after its forward: what the terms are made of."""

    logits: Tensor  # float32 [B, C]
    labels: Tensor
    images: Tensor | None
    loss: Tensor  # cross entropy, float32 [B]

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, images: Tensor | None) -> _Scored:
        logits = logits.float()
        return cls(logits, labels, images, F.cross_entropy(logits, labels, reduction="none"))


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    return labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)  # F.one_hot reads labels back


def _probabilities(logits: Tensor, smoothing: float) -> Tensor:
    """Of all classes, [B, C], without label smoothing (`fastast.gates.memory.label_probability`)."""
    p = logits.softmax(-1)
    return ((p - smoothing / logits.shape[-1]) / (1 - smoothing)).clamp(0.0, 1.0) if smoothing else p


def _label(batch: _Scored, smoothing: float) -> tuple[Tensor, Tensor]:
    """The probability p of the label without label smoothing, [B], and 1 - p."""
    log_p = -batch.loss
    if not smoothing:
        return log_p.exp(), -log_p.expm1()  # exact where p is near 1 as well
    p = ((log_p.exp() - smoothing / batch.logits.shape[-1]) / (1 - smoothing)).clamp(0.0, 1.0)
    return p, 1 - p


def _loss(batch: _Scored, smoothing: float) -> Tensor:
    """What the cross entropy has beyond that of a network as sure as label smoothing lets it be."""
    if not smoothing:
        return batch.loss
    return (batch.loss + math.log1p(smoothing / batch.logits.shape[-1] - smoothing)).clamp(min=0.0)


def _margin(batch: _Scored, smoothing: float) -> Tensor:
    """Half of 1 - (p of the label - largest p of another class): 0 for a sure hit, 1 for a sure miss."""
    p = _probabilities(batch.logits, smoothing)
    own = _one_hot(batch.logits, batch.labels)
    p_label = (p * own).sum(-1)
    p_other = p.masked_fill(own, 0.0).amax(-1)
    return (1 - (p_label - p_other)) / 2


def _el2n(batch: _Scored, smoothing: float) -> Tensor:
    """Length of the error vector (Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021)."""
    return (_probabilities(batch.logits, smoothing) - _one_hot(batch.logits, batch.labels).float()).norm(dim=-1)


def _variance(batch: _Scored, smoothing: float) -> Tensor:
    """p (1 - p) of the label: small for what is known, and for what contradicts all else, as wrong labels do.

    Chang et al., "Active Bias", NIPS 2017.
    """
    p, rest = _label(batch, smoothing)
    return p * rest


def _uncertainty(batch: _Scored, smoothing: float) -> Tensor:
    """sqrt(p (1 - p)) of the label: the root of the variance."""
    return _variance(batch, smoothing).sqrt()


def _gce(batch: _Scored, smoothing: float) -> Tensor:
    """sqrt(p) (1 - p) of the label: the length of the gradient of the generalised cross entropy with q = 1/2.

    Wrong labels, whose p is near 0, get little of it (Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training
    Deep Neural Networks with Noisy Labels", NeurIPS 2018).
    """
    p, rest = _label(batch, smoothing)
    return p.sqrt() * rest


def _std(batch: _Scored, smoothing: float) -> Tensor:
    """Spatial standard deviation of the pixels, averaged over channels."""
    if batch.images is None:
        raise InputError("significance 'loss+std' needs the images: pass them, or choose another kind")
    pixels = batch.images.permute(0, 2, 3, 1).flatten(1, 2).float()  # [B, HW, C], a view of a channels-last batch
    mean = pixels.mean(1)
    # E[x^2] - E[x]^2: one pass in memory order, ten times faster on a CPU than torch.std over strided dimensions.
    return (pixels.square().mean(1) - mean.square()).clamp(min=0.0).sqrt().mean(-1)


Term = Callable[[_Scored, float], Tensor]

KINDS: dict[str, tuple[tuple[float, Term], ...]] = {
    "loss": ((1.0, _loss),),
    "loss+std": ((0.7, _loss), (0.3, _std)),
    "margin": ((1.0, _margin),),
    "el2n": ((1.0, _el2n),),
    "gce": ((1.0, _gce),),
    "uncertainty": ((1.0, _uncertainty),),
    "variance": ((1.0, _variance),),
}


def significance(
    logits: Tensor,
    labels: Tensor,
    images: Tensor | None = None,
    *,
    kind: str = "loss+std",
    running: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """One score per sample, 0 or more, larger for samples that have more to teach.

    Each kind is a weighted sum of terms, each divided by its mean, so that scores average 1. `loss+std` is
    0.7 loss / mean(loss) + 0.3 std / mean(std); `loss`, `margin` (of the probabilities), `el2n`, `gce`,
    `uncertainty` and `variance` are alone. Label smoothing is taken out of the probabilities and the loss, as `memory`
    does it (`fastast.gates.memory`): what is known would otherwise keep a score.

    Args:
        logits: float [B, classes], any precision; the arithmetic is float32.
        labels: int64 [B].
        images: float [B, C, H, W], only read by `loss+std`.
        kind: one of the keys of `KINDS`.
        running: float32 [2], means to divide the terms by; without it the batch's own.
        label_smoothing: of the loss that the network trains on, in [0, 1).

    Returns:
        float32 [B]; NaN where a term of the sample is NaN or infinite.
    """
    terms = _terms(_Scored.of(logits, labels, images), kind, label_smoothing)
    if running is None:
        running = _means(_sums(terms, torch.ones_like(labels, dtype=torch.bool)))
    return _score(terms, kind, running)


class Significance(nn.Module):
    """`significance` with running means, kept on the device.

    The running means weigh every sample of recent batches alike, and start with the first batch's own.

    Args:
        kind, label_smoothing: as for `significance`.
    """

    totals: Tensor

    def __init__(self, kind: str = "loss+std", *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        _check(kind)
        self.kind, self._label_smoothing = kind, label_smoothing
        self.register_buffer("totals", torch.zeros(NUM_SUMS))

    def forward(
        self, logits: Tensor, labels: Tensor, images: Tensor | None, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores one batch and leaves the running means as they are.

        Args:
            logits, labels, images: as for `significance`.
            valid: bool [B]; rows where it is false have no part in the sums.

        Returns:
            scores: float32 [B], NaN where a term of the sample is NaN or infinite.
            loss: float32 [B], cross entropy, which label smoothing has no part in.
            sums: float32 [NUM_SUMS], this batch's part of the running means, for `update`.
        """
        batch = _Scored.of(logits, labels, images)
        terms = _terms(batch, self.kind, self._label_smoothing)
        sums = _sums(terms, valid)
        # Until the first update the batch has only itself to be compared with.
        running = _means(torch.where(self.totals[-1] > 0, self.totals, sums))
        return _score(terms, self.kind, running), batch.loss, sums

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Folds one batch's sums, or their total over all ranks, into the running means."""
        self.totals.copy_(torch.where(sums[-1] > 0, MEMORY * self.totals + sums, self.totals))


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"significance {kind!r} is unknown: choose one of {', '.join(KINDS)}")


def _terms(batch: _Scored, kind: str, smoothing: float) -> list[Tensor]:
    _check(kind)
    terms = []
    for _, term in KINDS[kind]:
        value = term(batch, smoothing)
        if smoothing and term is not _std:
            value = torch.maximum(value, LEAST_PART * term(batch, 0.0))
        terms.append(value)
    return terms


def _sums(terms: list[Tensor], valid: Tensor) -> Tensor:
    for term in terms:
        valid = valid & torch.isfinite(term)
    sums = [torch.where(valid, term, 0.0).sum() for term in terms]
    sums += [torch.zeros_like(sums[0])] * (NUM_SUMS - 1 - len(terms))
    return torch.stack([*sums, valid.sum().float()])


def _means(sums: Tensor) -> Tensor:
    return sums[:-1] / sums[-1].clamp(min=1e-9)


def _score(terms: list[Tensor], kind: str, running: Tensor) -> Tensor:
    weights = [weight for weight, _ in KINDS[kind]]
    score = torch.zeros_like(terms[0])
    for i, (weight, term) in enumerate(zip(weights, terms, strict=True)):
        score = score + weight * term / running[i].clamp(min=1e-9)
    return torch.where(torch.isfinite(score), score, torch.nan)
