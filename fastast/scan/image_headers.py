"""Headers of JPEG and PNG pictures: decides from a few bytes whether a decoder may see a file.

The decoder libraries under DALI can crash the process (SIGSEGV) on bytes that they cannot parse, and decode a
20000 x 20000 header without complaint (23 s, 1.2 GB). So the scan walks the markers of a JPEG up to its first scan, or
every chunk header of a PNG, and reads nothing else but the tail; the picture data only where much follows it. Layouts:
ITU-T T.81 annex B (JPEG), the W3C PNG specification, third edition.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, pixels: 300 MB of RGB in each decoder thread, some seconds of work."""

_MAX_SEGMENTS = 4096  # a real header has tens; without a limit a crafted one could cost minutes
_MAX_CHUNKS = 100_000  # a PNG of MAX_PIXELS in chunks of 8 KiB has about half as many
_TAIL_BYTES = 4096  # the end marker of most files lies here
_BLOCK_BYTES = 65536  # read at a time where it does not

PACK_MENDS = "`fastast pack SRC OUT` mends most such files; else re-encode it"
"""Remedy for JPEGs with a header that libjpeg reads and DALI does not."""

_NO_END = "cut off: no end-of-image marker; copy or download it again"

ReadAt = Callable[[int, int], bytes]


class Header(NamedTuple):
    """What the scan found: height and width in pixels, channels in the file, and the reason if it is refused."""

    height: int
    width: int
    components: int
    reason: str | None


class Refused(Exception):
    """No decoder may see the file: the reason as one phrase, with its remedy."""


def _check_size(height: int, width: int) -> None:
    if height == 0 or width == 0:
        raise Refused(f"header says {width} x {height} pixels; re-encode it")
    if height * width > MAX_PIXELS:
        raise Refused(f"{width} x {height} pixels, over {MAX_PIXELS // 10**6} megapixels; scale it down")


# ---------------------------------------------------------------------------------------------------- JPEG

_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended with Huffman codes, progressive
_OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xCB, 0xF7), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA, 0xCC), "arithmetic-coded JPEG"),
}


def scan_jpeg(read_at: ReadAt, size: int) -> Header:
    """Scans a JPEG.

    Args:
        read_at: reads so many bytes from an offset, fewer at the end.
        size: of the file, bytes.

    Raises:
        Refused: no decoder may see it.
    """
    frame: tuple[int, int, dict[int, int]] | None = None  # height, width, component id -> quantization table
    quantization: set[int] = set()
    huffman: set[int] = set()  # class << 4 | slot
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        head = read_at(offset, 4)
        while len(head) == 4 and head[0] == 0xFF and head[1] == 0xFF:  # fill bytes
            offset += 1
            head = read_at(offset, 4)
        if len(head) < 4:
            raise Refused(_NO_END)
        if head[0] != 0xFF:
            # libjpeg skips the junk; DALI's parser crashes on it.
            raise Refused(f"damaged header: no marker at byte {offset}; {PACK_MENDS}")
        marker = head[1]
        if marker in _OTHER_FRAMES:
            raise Refused(f"{_OTHER_FRAMES[marker]}; re-encode it as baseline or progressive")
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # markers without a segment are not allowed here
            raise Refused(f"damaged header: marker 0x{marker:02X} before the picture; {PACK_MENDS}")
        length = int.from_bytes(head[2:], "big")
        end = offset + 2 + length
        if length < 2 or end > size:
            raise Refused(_NO_END if length >= 2 else "damaged header: segment of no length; re-encode it")
        if marker in (0xC4, 0xDA, 0xDB, 0xDD) or marker in _FRAMES:
            body = read_at(offset + 4, length - 2)
            if len(body) != length - 2:
                raise Refused(_NO_END)
            if marker == 0xDB:
                quantization |= _read_quantization(body)
            elif marker == 0xC4:
                huffman |= _read_huffman(body)
            elif marker == 0xDD:
                if len(body) != 2:
                    raise Refused("damaged header: restart interval; re-encode it")
            elif marker == 0xDA:
                if frame is None:
                    raise Refused("damaged header: picture data before its size; re-encode it")
                height, width, components = frame
                _check_scan(body, components, quantization, huffman)
                _check_end(read_at, end, size)
                return Header(height, width, len(components), None)
            else:
                if frame is not None:
                    raise Refused("damaged header: two frames; re-encode it")
                frame = _read_frame(body)
        offset = end
    raise Refused("damaged header: too many segments; re-encode it")


def _read_frame(body: bytes) -> tuple[int, int, dict[int, int]]:
    if len(body) < 6:
        raise Refused("damaged header: frame; re-encode it")
    precision, height, width, count = body[0], body[1] << 8 | body[2], body[3] << 8 | body[4], body[5]
    if precision != 8:
        raise Refused(f"{precision}-bit JPEG; re-encode it with 8 bits")
    if count not in (1, 3, 4):
        raise Refused(f"JPEG with {count} components; re-encode it as RGB or grayscale")
    _check_size(height, width)
    if len(body) != 6 + 3 * count:
        raise Refused("damaged header: frame; re-encode it")
    components = {}
    for index in range(count):
        name, sampling, table = body[6 + 3 * index : 9 + 3 * index]
        if not (1 <= sampling >> 4 <= 4 and 1 <= sampling & 15 <= 4) or table > 3:
            raise Refused("damaged header: sampling factors; re-encode it")
        components[name] = table
    if len(components) != count:
        raise Refused("damaged header: two components of one name; re-encode it")
    return height, width, components


def _read_quantization(body: bytes) -> set[int]:
    slots, offset = set(), 0
    while offset < len(body):
        precision, slot = body[offset] >> 4, body[offset] & 15
        offset += 1 + 64 * (1 + precision)
        if precision > 1 or slot > 3 or offset > len(body):
            raise Refused("damaged header: quantization table; re-encode it")
        slots.add(slot)
    return slots


def _read_huffman(body: bytes) -> set[int]:
    slots, offset = set(), 0
    while offset < len(body):
        name, counts = body[offset], body[offset + 1 : offset + 17]
        num_codes = sum(counts)
        offset += 17 + num_codes
        # Kraft's inequality: there cannot be more codes of a length than the tree has leaves.
        room = 1 << 16
        for bits, count in enumerate(counts, 1):
            room -= count << (16 - bits)
        if name & 0xEF > 3 or num_codes > 256 or offset > len(body) or room < 0:
            raise Refused("damaged header: Huffman table; re-encode it")
        slots.add(name)
    return slots


def _check_scan(body: bytes, components: dict[int, int], quantization: set[int], huffman: set[int]) -> None:
    count = body[0] if body else 0
    if not 1 <= count <= len(components) or len(body) != 4 + 2 * count:
        raise Refused("damaged header: scan; re-encode it")
    for index in range(count):
        name, tables = body[1 + 2 * index : 3 + 2 * index]
        if name not in components or tables >> 4 > 3 or tables & 15 > 3:
            raise Refused("damaged header: scan; re-encode it")
        # The first scan of every process carries DC coefficients, so their table must be there by now.
        if components[name] not in quantization or tables >> 4 not in huffman:
            raise Refused(f"damaged header: a table is missing; {PACK_MENDS}")


# A marker in or after the picture data, where FF 00 is a byte of data and FF D0 to FF D7 separate its intervals.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _check_end(read_at: ReadAt, begin: int, size: int) -> None:
    """Looks for the end marker near the end, else behind the picture data, where every decoder stops.

    Padding of any length may follow it, or another picture, or the video of a motion photo. After `begin` it cannot be
    part of the picture data (T.81 B.1.1.5).
    """
    start = max(begin, size - _TAIL_BYTES)
    if read_at(start, size - start).rfind(b"\xff\xd9") >= 0:
        return
    offset, num_left = begin, _MAX_SEGMENTS
    while num_left and len(block := read_at(offset, _BLOCK_BYTES)) > 1:
        found = _MARKER.search(block)
        if found is None:
            offset += len(block) - 1  # the last byte may be the first of a marker
            continue
        marker, offset = block[found.end() - 1], offset + found.end()
        if marker == 0xD9:
            return
        if marker == 0xD8:  # another picture begins
            break
        offset += max(2, int.from_bytes(read_at(offset, 2), "big"))  # tables, or the header of a further scan
        num_left -= 1
    raise Refused(_NO_END)


# ----------------------------------------------------------------------------------------------------- PNG

# Channels and permitted bits per sample of each colour type (table 11.1 of the specification).
_PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (3, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}


def scan_png(read_at: ReadAt, size: int) -> Header:
    """Scans a PNG; arguments and errors as those of `scan_jpeg`."""
    header: Header | None = None
    seen: set[bytes] = set()
    offset = 8
    for _ in range(_MAX_CHUNKS):
        head = read_at(offset, 8)
        if len(head) < 8:
            raise Refused(_NO_END)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = offset + 12 + length  # length, kind, body, checksum
        if not kind.isalpha():
            raise Refused(f"damaged PNG: no chunk at byte {offset}; re-encode it")
        if length >= 2**31 or end > size:
            raise Refused(_NO_END)
        if (kind == b"IHDR") != (header is None):
            raise Refused("damaged PNG: header; re-encode it")
        if kind == b"IHDR":
            header = _read_png_header(read_at(offset + 8, length))
        elif kind == b"PLTE" and (length == 0 or length > 768 or length % 3):
            raise Refused("damaged PNG: palette; re-encode it")
        elif kind == b"IEND":
            if b"IDAT" not in seen:
                raise Refused("damaged PNG: no picture data; re-encode it")
            assert header is not None
            return header
        seen.add(kind)
        offset = end
    raise Refused("damaged PNG: too many chunks; re-encode it")


def _read_png_header(body: bytes) -> Header:
    if len(body) != 13:
        raise Refused("damaged PNG: header; re-encode it")
    width, height = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
    depth, colour, compression, filtering, interlace = body[8:]
    channels, depths = _PNG_COLOURS.get(colour, (0, ()))
    if depth not in depths or compression or filtering or interlace > 1:
        raise Refused("damaged PNG: header; re-encode it")
    _check_size(height, width)
    if depth == 16:
        # DALI would keep the upper 8 bits, which leaves 16 levels of a picture of 12 bits.
        raise Refused("16-bit PNG; `fastast pack SRC OUT` converts all by one range")
    return Header(height, width, channels, None)
