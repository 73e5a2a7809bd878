"""Pictures and damaged files for the tests of data, feed and packing."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB picture with soft areas, edges and grain."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-12, 13, (height, width, 1))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(height: int, width: int, seed: int = 0, **options: Any) -> bytes:
    return encode(picture(height, width, seed), **options)


def segments(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """(begin, end, marker) of each header segment of a JPEG, its first scan's header included."""
    found, offset = [], 2
    while True:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        found.append((offset, end, data[offset + 1]))
        offset = end
        if found[-1][2] == 0xDA:
            return found


def with_junk(data: bytes, place: int = 1, junk: bytes = b"junk") -> bytes:
    """A JPEG with bytes between its header's segments, before the one of this number. libjpeg skips them."""
    begin = segments(data)[place][0]
    return data[:begin] + junk + data[begin:]


def without(data: bytes, *markers: int) -> bytes:
    """A JPEG without some of its header's segments."""
    for begin, end, marker in reversed(segments(data)):
        if marker in markers:
            data = data[:begin] + data[end:]
    return data


def motion_photo(data: bytes) -> bytes:
    """A JPEG with a video behind it, as phones write them."""
    return data + b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(200_000) + bytes(5000)


def deep_png(levels: np.ndarray) -> bytes:
    """A PNG of uint16[H, W, C], which Pillow does not write in colour."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[levels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    data = b"\x89PNG\r\n\x1a\n"
    height, width = levels.shape[:2]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    for body in (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"):
        data += (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data


def with_frame(data: bytes, **changes: int) -> bytes:
    """A baseline JPEG with a changed frame header: marker, precision, height, width or sampling."""
    changed = bytearray(data)
    at = next(begin for begin, _, marker in segments(data) if marker == 0xC0)
    places = {"marker": (1, 1), "precision": (4, 1), "height": (5, 2), "width": (7, 2), "sampling": (11, 1)}
    for name, value in changes.items():
        offset, length = places[name]
        changed[at + offset : at + offset + length] = value.to_bytes(length, "big")
    return bytes(changed)


def cut_entropy(data: bytes, share: float) -> bytes:
    """A JPEG whose picture data ends after `share` of it, though the end marker is there.

    The decoder fills the rest of a baseline picture with gray, as PIL's does; it refuses a progressive one.
    """
    begin = segments(data)[-1][1]
    return data[: begin + int(share * (len(data) - begin - 2))] + b"\xff\xd9"


def cut_png(data: bytes, share: float) -> bytes:
    """A PNG with sound chunks whose picture data ends after `share` of it: only decoding fails."""
    kind = data.index(b"IDAT")
    length = int.from_bytes(data[kind - 4 : kind], "big")
    body = b"IDAT" + data[kind + 4 : kind + 4 + int(share * length)]
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[: kind - 4] + chunk + data[kind + 8 + length :]


def write_tree(root: Path, tree: dict[str, bytes]) -> Path:
    """Files by relative path; returns `root`."""
    for name, data in tree.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return root
