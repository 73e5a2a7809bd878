"""Crop windows and flips as pure functions of (seed, epoch, id), and torchvision's evaluation geometry."""

from __future__ import annotations

import math

import numpy as np

from fastast.philox import STREAM_CROP, STREAM_FLIP, random_words, to_uniform
from fastast.preprocessing import eval_resize

_TRIES = 10
# Drawn in one call, whose overhead is most of the cost for a batch.
_STREAMS = np.append(STREAM_CROP + np.arange(_TRIES, dtype=np.int64), STREAM_FLIP)


def crop_windows(
    sizes: np.ndarray,
    ids: np.ndarray,
    seed: int,
    epoch: int,
    *,
    min_area: float = 0.25,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random resized crops, distributed as torchvision's `RandomResizedCrop.get_params`.

    Of ten draws of an area, uniform in [min_area, 1], and an aspect, log-uniform in `ratio`, the first that fits is
    placed uniformly; if none fits, the result is the largest centred window of a permitted aspect. (Szegedy et al.,
    "Going deeper with convolutions", 2015, section 6.)

    Args:
        sizes: int[B, 2], height and width in pixels.
        ids: int64[B].
        seed: any integer.
        epoch: integer >= 0.
        min_area: smallest share of the picture's area, in (0, 1].
        ratio: smallest and largest width / height.

    Returns:
        anchors int32[B, 2] (top, left), shapes int32[B, 2] (height, width), flips int32[B] (1: mirrored).
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)  # [B, 1]
    words = random_words(seed, epoch, ids.astype(np.int64)[:, None], _STREAMS)  # four of [B, 10 + 1]
    area_draw, aspect_draw, top_draw, left_draw = (to_uniform(word[:, :_TRIES]) for word in words)
    area = height * width * (min_area + (1 - min_area) * area_draw)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * aspect_draw)
    crop_w = np.rint(np.sqrt(area * aspect))
    crop_h = np.rint(np.sqrt(area / aspect))
    fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
    top = np.floor(top_draw * (height - crop_h + 1))
    left = np.floor(left_draw * (width - crop_w + 1))
    tried = np.stack([top, left, crop_h, crop_w], axis=-1)  # [B, 10, 4]
    first = fits.argmax(axis=1)
    drawn = tried[np.arange(len(ids)), first]
    window = np.where(fits.any(axis=1)[:, None], drawn, _centred_window(sizes, ratio)).astype(np.int32)
    flips = (words[0][:, _TRIES] & 1).astype(np.int32)
    return window[:, :2].copy(), window[:, 2:].copy(), flips


def _centred_window(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """float64[B, 4]: top, left, height, width of the largest centred window of a permitted aspect."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    crop_w = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width)
    crop_h = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height)
    crop_w, crop_h = np.clip(crop_w, 1, width), np.clip(crop_h, 1, height)
    return np.stack([(height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w], axis=-1)


def eval_geometry(sizes: np.ndarray, image_size: int, crop_ratio: float = 0.875) -> tuple[np.ndarray, np.ndarray]:
    """Size and crop position of torchvision's `Resize(int(S / crop_ratio))`, `CenterCrop(S)`, to the pixel.

    Args:
        sizes: int[B, 2], height and width in pixels.
        image_size: side of the crop, S.
        crop_ratio: in (0, 1], so that the crop always lies inside the resized picture.

    Returns:
        resized int64[B, 2] (height, width after the resize), anchors int64[B, 2] (top, left of the crop).
    """
    side = eval_resize(image_size, crop_ratio)
    short = sizes.min(axis=1, keepdims=True)
    # torchvision truncates side * long / short, computed as a double.
    resized = np.where(sizes == short, side, (side * sizes.astype(np.float64) / short).astype(np.int64))
    # Python's round and np.rint both take halves to the even number.
    anchors = np.rint((resized - image_size) / 2).astype(np.int64)
    return resized, anchors
