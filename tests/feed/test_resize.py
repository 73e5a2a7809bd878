"""Crop resizing on the CPU: as exact as Pillow, and the same for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastast.feed.resize import CropResizer
from fastast.preprocessing import MEAN, STD
from tests.data.image_files import picture

SIZES = [(64, 64), (65, 63), (200, 100), (31, 400), (700, 500), (1, 1), (3, 90), (150, 150)]
CROPS = [np.array(picture(height, width, height)) for height, width in SIZES]
FLIPS = np.array([0, 1] * 4, np.int32)


def levels(pixels: torch.Tensor) -> np.ndarray:
    return pixels.float().numpy() * np.array(STD) + np.array(MEAN)


@pytest.mark.parametrize("side", [64, 97, 224])
def test_as_exact_as_pillow(side: int) -> None:
    """Twins: torch's float resize, which rounds nothing, and Pillow's, which rounds as this one does."""
    resizer = CropResizer(torch.float32, MEAN, STD, 1)
    got = levels(resizer(CROPS, FLIPS, side))
    assert got.shape == (8, side, side, 3)
    for row, crop in enumerate(CROPS):
        pillow = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        planes = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
        exact = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
        exact = exact[0].permute(1, 2, 0).numpy()
        if FLIPS[row]:
            pillow, exact = pillow[:, ::-1], exact[:, ::-1]
        assert np.abs(got[row] - exact).max() < 1.01, SIZES[row]
        assert np.abs(got[row] - exact).mean() < np.abs(pillow - exact).mean() + 0.01, SIZES[row]
        assert np.abs(got[row] - pillow).max() < 2.01, SIZES[row]
        assert np.abs(got[row] - pillow).mean() < 0.3, SIZES[row]


def test_independent_of_threads_and_batch() -> None:
    alone = CropResizer(torch.float32, MEAN, STD, 1)
    together = CropResizer(torch.float32, MEAN, STD, 3)
    expected = torch.cat([alone([crop], FLIPS[row : row + 1], 80) for row, crop in enumerate(CROPS)])
    assert torch.equal(together(CROPS, FLIPS, 80), expected)
    assert torch.equal(together(CROPS[:2], FLIPS[:2], 80), expected[:2])
    together.close()
    alone.close()


def test_fp16_is_rounded_fp32() -> None:
    full, half = (CropResizer(dtype, MEAN, STD, 2) for dtype in (torch.float32, torch.float16))
    assert torch.equal(half(CROPS, FLIPS, 64), full(CROPS, FLIPS, 64).half())
    full.close()
    half.close()
