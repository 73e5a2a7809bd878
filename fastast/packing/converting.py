"""Converts one picture for a pack: kept byte for byte if every decoder reads it, else re-encoded, or refused."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastast.data.image_scan import MAX_PIXELS, scan_bytes

# What Pillow may try on untrusted bytes: picture formats in use, no document or vector formats.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SHRINK_GAP = 3.0  # a JPEG is decoded to at least this many times the wanted side, for the filter's sake
_MAX_JPEG_SIDE = 65535


class RefusedError(Exception):
    """A picture cannot go into a pack; the text is the one-phrase reason."""


@dataclass(frozen=True)
class PackOptions:
    """How pictures are converted for a pack.

    Attributes:
        max_side: pictures with a longer side than this, pixels, are scaled down to it; None: none are.
        quality: of the JPEGs written, 1 to 100 (libjpeg's scale); colour is kept at full resolution (4:4:4).
    """

    max_side: int | None = None
    quality: int = 95


class Picture(NamedTuple):
    """An encoded JPEG with its size in pixels, and why it was re-encoded (None if it was not)."""

    data: bytes
    height: int
    width: int
    change: str | None


def prepare(data: bytes, options: PackOptions) -> Picture:
    """Makes a JPEG that is safe to decode from the bytes of any picture file.

    Grayscale and colour JPEGs that pass the scan are kept as they are; JPEGs that it refuses are refused here too.
    Whatever else Pillow reads (PNG, WebP, GIF, CMYK, 16 bits, ...) becomes an RGB JPEG: of an animation the first
    frame, of 16 bits the upper 8, transparency and colour profiles dropped, a stored rotation not applied.

    Raises:
        RefusedError: neither works.
    """
    header = scan_bytes(data)
    is_jpeg = data[:3] == b"\xff\xd8\xff"
    if is_jpeg and header.reason is not None:
        # What Pillow makes of it need not be the original picture.
        raise RefusedError(header.reason)
    change = None
    if not is_jpeg:
        change = "not a JPEG"
    elif header.components == 4:
        change = "CMYK"
    elif options.max_side is not None and max(header.height, header.width) > options.max_side:
        change = "scaled down"
    if change is None:
        return Picture(data, header.height, header.width, None)
    try:
        return _convert(data, change, options)
    except RefusedError:
        raise
    except Exception as error:  # on hostile bytes Pillow's parsers raise anything, from struct.error to SyntaxError
        phrase = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise RefusedError(header.reason or f"damaged picture data: {ascii(phrase)[1:-1]}") from error


def _convert(data: bytes, change: str, options: PackOptions) -> Picture:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            megapixels = f"over {MAX_PIXELS // 10**6} megapixels"
            raise RefusedError(f"{image.width} x {image.height} pixels, {megapixels}; scale it down")
        rgb = _shrink(image, 1.0 if options.max_side is None else options.max_side / max(image.size))
    if max(rgb.size) > _MAX_JPEG_SIDE:
        raise RefusedError(f"{rgb.width} x {rgb.height} pixels: too long for a JPEG; scale it down")
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return Picture(buffer.getvalue(), rgb.height, rgb.width, change)


def _shrink(image: Image.Image, scale: float) -> Image.Image:
    """An RGB picture, smaller if `scale` is below 1. A JPEG is decoded at a reduced size where that is enough."""
    if image.mode not in ("RGB", "L"):
        image = _to_rgb(image)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        drafted = image.draft(None, (int(width * _SHRINK_GAP), int(height * _SHRINK_GAP)))
        box = None if drafted is None else drafted[1]
        image = image.resize((width, height), Image.Resampling.LANCZOS, box, _SHRINK_GAP)
    return image.convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise RefusedError("32-bit picture of unknown range; re-encode it with 8 or 16 bits")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise RefusedError("floating-point picture of unknown range; re-encode it with 8 or 16 bits")
    return image.convert("RGB")
