"""Converts one picture for a pack: kept byte for byte if every decoder reads it, else re-encoded, or refused."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastast.scan.image_headers import MAX_PIXELS, PACK_MENDS
from fastast.scan.image_scan import scan_bytes

# What Pillow may try on untrusted bytes: picture formats in use, no document or vector formats.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SHRINK_GAP = 3.0  # a JPEG is decoded to at least this many times the wanted side, for the filter's sake
_MAX_JPEG_SIDE = 65535
_JPEG = b"\xff\xd8\xff"
MENDED = "header mended"
"""The one change that leaves the picture data as it is."""


class RefusedError(Exception):
    """A picture cannot go into a pack; the text is the one-phrase reason."""


@dataclass(frozen=True)
class PackOptions:
    """How pictures are converted for a pack.

    Attributes:
        max_side: pictures with a longer side than this, pixels, are scaled down to it; None: none are.
        quality: of the JPEGs written, 1 to 100 (libjpeg's scale); colour is kept at full resolution (4:4:4).
        bits: of pictures with 16 bits a channel, this many from the lowest become 0 to 255, for all of a set alike;
            None: there are no such pictures.
    """

    max_side: int | None = None
    quality: int = 95
    bits: int | None = None


class Picture(NamedTuple):
    """An encoded JPEG with its size in pixels, and how it differs from the file (None: not at all)."""

    data: bytes
    height: int
    width: int
    change: str | None


def prepare(data: bytes, options: PackOptions) -> Picture:
    """Makes a JPEG that is safe to decode from the bytes of any picture file.

    Grayscale and colour JPEGs that pass the scan are kept as they are, those with junk in their header without the
    junk; JPEGs that it refuses for another reason are refused here too. Whatever else Pillow reads (PNG, WebP, GIF,
    CMYK, 16 bits, ...) becomes an RGB JPEG: of an animation the first frame, of 16 bits those that `options` names,
    transparency and colour profiles dropped, a stored rotation not applied.

    Raises:
        RefusedError: neither works.
    """
    header = scan_bytes(data)
    is_jpeg = data.startswith(_JPEG)
    change: str | None = None
    if is_jpeg and header.reason is not None:
        reason, data = header.reason, _mend_header(data)
        header, change = scan_bytes(data), MENDED
        if header.reason is not None:
            # What Pillow makes of it need not be the original picture.
            raise RefusedError(reason.replace(PACK_MENDS, "re-encode it"))
    if not is_jpeg:
        change = "not a JPEG"
    elif header.components == 4:
        change = "CMYK"
    elif options.max_side is not None and max(header.height, header.width) > options.max_side:
        change = "scaled down"
    if change in (None, MENDED):
        return Picture(data, header.height, header.width, change)
    try:
        return _convert(data, change, options)
    except RefusedError:
        raise
    except Exception as error:  # on hostile bytes Pillow's parsers raise anything, from struct.error to SyntaxError
        phrase = str(error).splitlines()[0].split(" <")[0][:80] if str(error) else type(error).__name__
        known = header.reason or "damaged picture data"
        if "fastast pack" in known:
            known = f"damaged {re.split('[,;]', known)[0]}"
        elif header.reason is not None:
            raise RefusedError(known) from error
        raise RefusedError(f"{known}: {ascii(phrase)[1:-1]}") from error


def used_bits(data: bytes) -> int:
    """Bits that the brightest pixel of a picture with 16 bits a channel takes, at least 8; 0 for any other file."""
    try:
        with _open(data) as image:
            if _is_deep_colour(data, image):
                return 16
            levels = _deep_levels(image)
    except Exception:  # as in `prepare`, which will say why
        return 0
    return 0 if levels is None else max(8, int(levels.max()).bit_length())


# A marker that begins a segment. libjpeg skips what comes before: FF 00, restart markers, and what is no marker.
_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")


def _mend_header(data: bytes) -> bytes:
    """A JPEG without the junk between its header's segments, and with the standard Huffman tables if it has none.

    That is how libjpeg reads it, so the picture stays the same. Motion JPEG leaves the tables out.
    """
    pieces, offset, markers = [data[:2]], 2, set[int]()
    while (found := _SEGMENT.search(data, offset)) and found[1] not in b"\xd8\xd9":
        begin, marker = found.start(), found[1][0]
        offset = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
        if marker == 0xDA:
            if 0xC4 not in markers and markers.intersection((0xC0, 0xC1)):
                pieces.append(_standard_tables())
            return b"".join([*pieces, data[begin:]])
        markers.add(marker)
        pieces.append(data[begin:offset])
    return data


def _standard_tables() -> bytes:
    """The Huffman tables of T.81 annex K, as segments."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    written = buffer.getvalue()
    return written[written.index(b"\xff\xc4") : written.index(b"\xff\xda")]


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        megapixels = f"over {MAX_PIXELS // 10**6} megapixels"
        raise RefusedError(f"{image.width} x {image.height} pixels, {megapixels}; scale it down")
    return image


def _convert(data: bytes, change: str, options: PackOptions) -> Picture:
    with _open(data) as image:
        is_deep = _is_deep_colour(data, image)
        levels = _deep_levels(image)
        if levels is not None:
            image = Image.fromarray(_upper_bits(levels, options.bits))
        if is_deep and (options.bits != 16 or max(high for _, high in image.convert("RGB").getextrema()) < 16):
            raise RefusedError("16-bit colour in another range than 0 to 65535; re-encode it with 8 bits a channel")
        rgb = _shrink(image, 1.0 if options.max_side is None else options.max_side / max(image.size))
    if max(rgb.size) > _MAX_JPEG_SIDE:
        raise RefusedError(f"{rgb.width} x {rgb.height} pixels: too long for a JPEG; scale it down")
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return Picture(buffer.getvalue(), rgb.height, rgb.width, change)


def _shrink(image: Image.Image, scale: float) -> Image.Image:
    """An RGB picture, smaller if `scale` is below 1. A JPEG is decoded at a reduced size where that is enough."""
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGB")
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        drafted = image.draft(None, (int(width * _SHRINK_GAP), int(height * _SHRINK_GAP)))
        box = None if drafted is None else drafted[1]
        image = image.resize((width, height), Image.Resampling.LANCZOS, box, _SHRINK_GAP)
    return image.convert("RGB")


def _is_deep_colour(data: bytes, image: Image.Image) -> bool:
    """Whether it has several channels of 16 bits, of which Pillow reads the upper 8."""
    if len(image.getbands()) == 1:
        return False
    if image.format == "PNG":
        return data[24] == 16
    return image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) == 16  # type: ignore[attr-defined]


def _deep_levels(image: Image.Image) -> np.ndarray | None:
    """Pixels of a gray picture with 16 bits, [H, W] of 0 to 65535; None of any other picture."""
    if image.mode == "F":
        raise RefusedError("floating-point picture of unknown range; re-encode it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise RefusedError("32-bit picture of unknown range; re-encode it with 8 or 16 bits")
    return levels


def _upper_bits(levels: np.ndarray, bits: int | None) -> np.ndarray:
    """uint8 levels: 0 to 2^bits - 1 becomes 0 to 255, and what is above becomes 255."""
    if bits is None:  # the range of a set is looked for in files that are not named as JPEGs
        raise RefusedError("16-bit picture under a JPEG's name; name it by its kind")
    return (levels >> (bits - 8)).clip(max=255).astype(np.uint8)
