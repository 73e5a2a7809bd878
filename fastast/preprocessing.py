"""What evaluation does to a picture, as torchvision's pretrained networks expect it."""

from __future__ import annotations

# ImageNet's statistics in 8-bit levels, red, green, blue.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def eval_resize(image_size: int, crop_ratio: float = 0.875) -> int:
    """The shorter side of a picture before the centre crop of evaluation, pixels: 256 for a crop of 224."""
    return int(image_size / crop_ratio)
