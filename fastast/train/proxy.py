"""The proxy gate's scorer in training: kept up as the network learns, its ranking checked now and then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastast.config import TrainConfig
from fastast.data import Batch
from fastast.errors import InputError
from fastast.gate import ProxyTwin, RankCorrelation, Significance
from fastast.train.compiler import compile_step
from fastast.train.distributed import Ranks
from fastast.train.model import check_fits
from fastast.train.proxy_net import ProxyNet, build_proxy, forward_flops
from fastast.train.steps import logits_of

# Peak learning rate of a proxy network for a batch of 256. It always starts from scratch, whatever the trained network
# starts from, so `--lr` has no part in it; the schedule's shape is the same. In a pilot (3,200 Imagenette pictures at
# 56 px, batch 64, 8 passes, one seed) `tiny` reached 57 % with 0.2, 53 % with 0.1 and 56 % with 0.4 and with 1.
PROXY_LR = 0.2


class ProxyScorer(nn.Module):
    """Scores small pictures: the base of `TwinScorer` and `NetScorer`.

    Work is returned in forwards of the full-size network, padding rows included.

    Args:
        scorer: takes images [B, 3, S, S] or smaller; its own state is this module's.
        full: the trained network in eval mode at full size.
        config: completed options.
        size: side s of the scored pictures.
        score_units: cost of scoring one picture.
        dtype: compute type of the forwards.
        compiled: whether, or in which mode, they go through `torch.compile`.

    Attributes:
        scorer: as given.
        size, score_units: as given.
        upkeep: work on an offered picture beyond scoring it, over that of scoring it.
        correlation: rank correlation with the scores at full size, over the checks so far.
    """

    upkeep = 0.0

    def __init__(
        self,
        scorer: nn.Module,
        full: nn.Module,
        config: TrainConfig,
        *,
        size: int,
        score_units: float,
        dtype: torch.dtype,
        compiled: bool | str,
    ) -> None:
        super().__init__()
        device = next(full.parameters()).device
        self.scorer = scorer
        self.size, self.score_units = size, score_units
        self.correlation = RankCorrelation().to(device)
        self._full = [full]  # the model's tensors stay out of this module's state
        self._significance = Significance(config.significance).to(device)
        self._dtype = dtype
        self._every = config.proxy_bn_every
        assert config.batch_size is not None, "complete_config was not called"
        self._peak_lr = PROXY_LR * config.batch_size / 256
        self._num_steps = 0
        self._compare = compile_step(self._add_correlation, compiled)

    @property
    def upkeep_units(self) -> float:
        """Work on each offered picture beyond scoring it; refreshes and checks, which are few, left out."""
        return self.upkeep * self.score_units

    def begin(self, batch: Batch) -> float:
        """Call before a batch is scored. Returns the work done."""
        self._num_steps += 1
        return 0.0

    def learn(self, batch: Batch) -> float:
        """Call after a batch was scored, and on every batch of a dense warm-up. Returns the work done."""
        return 0.0

    def set_lr(self, share: float) -> None:
        """Sets the learning rate, as a share of its peak."""

    def reset_scale(self) -> None:
        """Starts the fp16 loss scale of a network of its own anew."""

    def check_due(self) -> bool:
        """Whether the ranking of the batch that is scored next is to be checked: one in `--proxy-bn-every`."""
        return self._num_steps % self._every == self._every // 2

    def check(self, small: Batch, full: Batch) -> float:
        """Compares the scores of the same samples. Returns the work done.

        Args:
            small: images [B, 3, s, s], or larger ones, which are shrunk.
            full: images [B, 3, S, S] of the same ids, in any order; rows without a counterpart have no part.
        """
        self._compare(*small[:4], *full[:4])
        return self.score_units * len(small.valid) + len(full.valid)

    @torch.no_grad()
    def _add_correlation(
        self,
        small_images: Tensor,
        small_labels: Tensor,
        small_ids: Tensor,
        small_valid: Tensor,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        valid: Tensor,
    ) -> None:
        small_logits = logits_of(self.scorer, small_images, self._dtype)
        small, _, _ = self._significance(small_logits, small_labels, small_images, small_valid)
        full, _, _ = self._significance(logits_of(self._full[0], images, self._dtype), labels, images, valid)
        same = (small_ids[:, None] == ids[None, :]) & small_valid[:, None] & valid[None, :]  # [B, B]
        self.correlation.add(small, full[same.long().argmax(1)], same.any(1))

    def read_correlation(self) -> dict[str, Any]:
        """Mean rank correlation and the number of batches behind it; waits for the device."""
        num_batches = int(self.correlation.num_batches)
        return {
            "rank_correlation": float(self.correlation.mean) if num_batches else None,
            "num_batches": num_batches,
        }

    def get_extra_state(self) -> int:
        """Batches scored."""
        return self._num_steps

    def set_extra_state(self, state: int) -> None:
        self._num_steps = state


class TwinScorer(ProxyScorer):
    """Scores with the trained network itself, which has batch statistics of its own at side s (`ProxyTwin`).

    Refreshes fall in the first score steps and then in one of `--proxy-bn-every`; a check of the ranking falls midway
    between two refreshes.
    """

    scorer: ProxyTwin

    @torch.no_grad()
    def begin(self, batch: Batch) -> float:
        super().begin(batch)
        rows = len(batch.valid)
        if not self.scorer.due() or batch.num_valid < rows:
            return 0.0
        if self._dtype == torch.float32:
            self.scorer.refresh(batch.images.float())
        else:
            with torch.autocast(batch.images.device.type, self._dtype):
                self.scorer.refresh(batch.images)
        return self.score_units * rows


class NetScorer(ProxyScorer):
    """Scores with a network of its own (`ProxyNet`), trained on every batch: three times the work of scoring it.

    Padding would enter the batch statistics, so a partial batch is filled up with its own rows again. All ranks step
    together, so one without a row takes part with rows of zeros.
    """

    scorer: ProxyNet
    upkeep = 3.0

    def learn(self, batch: Batch) -> float:
        rows = len(batch.valid)
        images, labels = batch.images, batch.labels
        if 0 < batch.num_valid < rows:
            again = torch.arange(rows, device=labels.device) % batch.num_valid
            images, labels = images[again].contiguous(memory_format=torch.channels_last), labels[again]
        self.scorer.learn(images, labels)
        return self.upkeep_units * rows

    def set_lr(self, share: float) -> None:
        self.scorer.guard.set_lr(share * self._peak_lr)

    def reset_scale(self) -> None:
        self.scorer.guard.reset_scale()


def build_scorer(
    model: nn.Module,
    full: nn.Module,
    config: TrainConfig,
    *,
    num_classes: int,
    thumbnail_side: int | None,
    dtype: torch.dtype,
    compiled: bool | str,
    ranks: Ranks,
) -> tuple[ProxyScorer, list[str]]:
    """The scorer that the options ask for, and notes for the user.

    The same network at side s of S costs (s/S)^2 forwards; another one the ratio of both networks' floating-point
    operations.

    Args:
        model: the network that trains.
        full: the same in eval mode.
        config: completed options.
        num_classes: outputs of the networks.
        thumbnail_side: short side of the thumbnails that are scored, pixels; None if full pictures are.
        dtype: compute type of the forwards.
        compiled: whether, or in which mode, they go through `torch.compile`.
        ranks: who trains a network of its own together.

    Raises:
        InputError: unknown --proxy-arch, or a network that takes no pictures of the proxy size.
    """
    size = proxy_size(config, thumbnail_side)
    if config.proxy_arch is None:
        _check_small(full, "--arch", config.arch, size, num_classes)
        twin = ProxyTwin(model, size, refresh_every=config.proxy_bn_every)
        units = (size / config.image_size) ** 2
        return TwinScorer(twin, full, config, size=size, score_units=units, dtype=dtype, compiled=compiled), []
    network = build_proxy(config.proxy_arch, num_classes).to(next(full.parameters()).device).eval()
    _check_small(network, "--proxy-arch", config.proxy_arch, size, num_classes)
    units = forward_flops(network, size) / forward_flops(full, config.image_size)
    net = ProxyNet(
        network,
        size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        dtype=dtype,
        compiled=compiled,
        ranks=ranks,
    )
    scorer = NetScorer(net, full, config, size=size, score_units=units, dtype=dtype, compiled=compiled)
    note = (
        f"proxy network {config.proxy_arch} at {size} px: scoring a picture costs {units:.3g} of a forward of "
        f"{config.arch}, training on it {scorer.upkeep_units:.3g}"
    )
    if units + scorer.upkeep_units > 1:
        note += "; --gate forward would cost less"
    return scorer, [note]


def proxy_size(config: TrainConfig, thumbnail_side: int | None = None) -> int:
    """Side of the pictures that `proxy` scores, pixels.

    Unless it was chosen: half the image size, and no more than the thumbnails have. A chosen size holds, so thumbnails
    may be enlarged: a network finds things at the scale that it was trained for.
    """
    if config.proxy_size is not None:
        return config.proxy_size
    half = config.image_size // 2
    return half if thumbnail_side is None else min(half, thumbnail_side)


def _check_small(network: nn.Module, option: str, arch: str, size: int, num_classes: int) -> None:
    try:
        check_fits(network, arch, size, num_classes)
    except InputError as error:
        reason = str(error).replace("--arch", option).replace("--image-size", "--proxy-size")
        raise InputError(reason) from error
