"""The header scan: what it accepts, and the reasons for what it refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastast.scan import image_scan
from fastast.scan.image_headers import MAX_PIXELS
from fastast.scan.image_scan import scan_bytes, scan_file
from tests.data.image_files import encode, jpeg, motion_photo, picture, segments, with_frame, with_junk, without

RGB = picture(37, 53)


@pytest.mark.parametrize(
    ("data", "components"),
    [
        (encode(RGB), 3),
        (encode(RGB, progressive=True), 3),
        (encode(RGB, subsampling=0, optimize=True), 3),
        (encode(RGB, restart_marker_blocks=2), 3),
        (encode(RGB.convert("L")), 1),
        (encode(RGB.convert("CMYK")), 4),
        (encode(RGB, exif=b"Exif\0\0" + bytes(60000), icc_profile=bytes(100_000)), 3),
        (encode(RGB) + bytes(3000), 3),
        (encode(RGB) + bytes(10_000), 3),
        (encode(picture(37, 53), quality=100) + b"\xff" * 200_000, 3),
        (motion_photo(encode(RGB)), 3),
        (motion_photo(encode(RGB, progressive=True)), 3),
        (motion_photo(encode(RGB, restart_marker_blocks=2)), 3),
        (encode(RGB) + encode(RGB)[:-2] + bytes(5000), 3),
        (encode(RGB, "PNG"), 3),
        (encode(RGB.convert("L"), "PNG"), 1),
        (encode(RGB.convert("LA"), "PNG"), 2),
        (encode(RGB.convert("RGBA"), "PNG"), 4),
        (encode(RGB.convert("P"), "PNG"), 3),
        (encode(RGB.convert("1"), "PNG"), 1),
    ],
)
def test_accepts_and_measures(data: bytes, components: int, tmp_path: Path) -> None:
    assert scan_bytes(data) == (37, 53, components, None)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert scan_file(str(path)) == scan_file(os.fsencode(path)) == (37, 53, components, None)


def with_byte(marker: int, offset: int, value: int) -> bytes:
    """Changes one byte of the first segment of this marker; offset 0 is its first byte after the length."""
    data = bytearray(encode(RGB))
    at = next(begin for begin, _, found in segments(data) if found == marker)
    data[at + 4 + offset] = value
    return bytes(data)


def png_with(offset: int, value: int) -> bytes:
    data = bytearray(encode(RGB, "PNG"))
    data[offset] = value
    return bytes(data)


WHOLE = encode(RGB)
REFUSED = {
    "empty": (b"", "empty"),
    "stub": (WHOLE[:100], "cut off"),
    "no end": (WHOLE[:-2], "cut off"),
    "half": (WHOLE[: len(WHOLE) // 2], "cut off"),
    "no end, padded": (WHOLE[:-2] + bytes(10_000), "cut off"),
    "no end, text behind": (WHOLE[:-2] + b"text" * 5000, "cut off"),
    "no end, a cut picture behind": (WHOLE[:-2] + encode(RGB)[:-2] + bytes(5000), "cut off"),
    "half of a progressive, padded": (encode(RGB, progressive=True)[:900] + bytes(10_000), "cut off"),
    "endless markers behind": (WHOLE[:-2] + b"\xff\xfe\0\2" * 50_000, "cut off"),
    "end marker only in a thumbnail": (encode(RGB, exif=b"Exif\0\0" + jpeg(16, 16))[:-2], "cut off"),
    "end marker before the picture": (b"\xff\xd8\xff\xd9" + bytes(99), "before the picture"),
    "soi only": (b"\xff\xd8\xff", "cut off"),
    "soi eoi": (b"\xff\xd8\xff\xd9", "cut off"),
    "text": (b"This is not a picture at all." * 9, "text"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page.*fetch it again"),
    **{
        kind: (encode(RGB, kind), f"{name}, not JPEG or PNG; `fastast pack SRC OUT` converts it")
        for kind, name in {
            **{"GIF": "GIF", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF", "AVIF": "AVIF"},
            **{"PPM": "PPM, PGM or PBM", "JPEG2000": "JPEG 2000"},
        }.items()
    },
    "heic": (b"\0\0\0\x1cftypheic" + bytes(50), "HEIC.*; convert it"),
    "jpeg xl": (b"\xff\x0a" + bytes(50), "JPEG XL.*; convert it"),
    "zeros": (bytes(5000), "zero bytes"),
    "noise": (bytes(range(128, 256)) * 4, "not a JPEG or PNG"),
    "lossless": (with_frame(WHOLE, marker=0xC3), "lossless"),
    "arithmetic": (with_frame(WHOLE, marker=0xC9), "arithmetic"),
    "arithmetic progressive": (with_frame(WHOLE, marker=0xCA), "arithmetic"),
    "hierarchical": (with_frame(WHOLE, marker=0xC5), "hierarchical"),
    "12 bits": (with_frame(WHOLE, marker=0xC1, precision=12), "12-bit"),
    "no height": (with_frame(WHOLE, height=0), "53 x 0 pixels"),
    "no width": (with_frame(WHOLE, width=0), "0 x 37 pixels"),
    "20000 x 20000": (with_frame(WHOLE, height=20000, width=20000), "20000 x 20000 pixels, over 100 megapixels"),
    "65500 x 65500": (with_frame(WHOLE, height=65500, width=65500), "over 100 megapixels"),
    "sampling 0": (with_frame(WHOLE, sampling=0x01), "sampling"),
    "sampling 5": (with_frame(WHOLE, sampling=0x51), "sampling"),
    "no quantization table": (without(WHOLE, 0xDB), "table is missing"),
    "no Huffman table": (without(WHOLE, 0xC4), "table is missing"),
    "no frame": (without(WHOLE, 0xC0), "before its size"),
    "no scan": (without(WHOLE, 0xDA), "damaged header: no marker"),
    "two frames": (WHOLE[:2] + WHOLE[slice(*segments(WHOLE)[3][:2])] * 2 + WHOLE[2:], "two frames|damaged"),
    "quantization slot": (with_byte(0xDB, 0, 0x07), "quantization"),
    "quantization precision": (with_byte(0xDB, 0, 0x20), "quantization"),
    "Huffman slot": (with_byte(0xC4, 0, 0x0F), "Huffman"),
    "Huffman counts": (with_byte(0xC4, 3, 0xFF), "Huffman"),
    "Huffman over-full": (with_byte(0xC4, 1, 3), "Huffman"),
    "scan of nobody": (with_byte(0xDA, 1, 99), "scan"),
    "scan table": (with_byte(0xDA, 2, 0x33), "table is missing"),
    "scan count": (with_byte(0xDA, 0, 0), "scan"),
    "segment of length 1": (WHOLE[:4] + b"\0\1" + WHOLE[6:], "no length"),
    "segment beyond the end": (WHOLE[:4] + b"\xff\xff" + WHOLE[6:], "cut off"),
    "junk between segments": (with_junk(WHOLE), "no marker at byte 20; `fastast pack SRC OUT` mends"),
    "restart marker between segments": (with_junk(WHOLE, 2, b"\xff\xd3"), "0xD3 before.*fastast pack SRC OUT"),
    "endless segments": (WHOLE[:2] + b"\xff\xfe\0\2" * 5000 + WHOLE[2:], "too many"),
    "png cut": (encode(RGB, "PNG")[:-12], "cut off"),
    "png half": (encode(RGB, "PNG")[:200], "cut off"),
    "png without width": (encode(RGB, "PNG").replace((53).to_bytes(4, "big"), bytes(4), 1), "0 x 37"),
    "png too large": (encode(RGB, "PNG").replace((53).to_bytes(4, "big"), b"\0\xff\xff\xff", 1), "megapixels"),
    "png depth": (png_with(24, 3), "header"),
    "png of 16 bits": (encode(RGB.convert("I;16"), "PNG"), "16-bit PNG; `fastast pack SRC OUT` converts"),
    "png colour": (png_with(25, 5), "header"),
    "png interlace": (png_with(28, 2), "header"),
    "png chunk name": (png_with(37, 1), "no chunk"),
    "png without data": (encode(RGB, "PNG")[:33] + encode(RGB, "PNG")[-12:], "no picture data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_reason(name: str) -> None:
    data, phrase = REFUSED[name]
    height, width, components, reason = scan_bytes(data)
    assert (height, width, components) == (0, 0, 0)
    assert reason is not None
    assert re.search(phrase, reason), reason
    assert "\n" not in reason


def test_the_pixel_cap_is_exact() -> None:
    assert scan_bytes(with_frame(WHOLE, height=10_000, width=MAX_PIXELS // 10_000)).reason is None
    assert scan_bytes(with_frame(WHOLE, height=10_000, width=MAX_PIXELS // 10_000 + 1)).reason is not None


def test_non_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "zero.jpg").touch()
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(image_scan.MAX_BYTES + 1)
    phrases = {
        "pipe.jpg": "not a regular file",
        "folder.jpg": "a folder",
        "loop.jpg": "cannot be read: Too many levels",
        "dangling.jpg": "leads nowhere",
        "zero.jpg": "empty file",
        "huge.jpg": "re-encode it smaller",
    }
    for name, phrase in phrases.items():
        assert phrase in (scan_file(str(tmp_path / name)).reason or ""), name
    assert "not a regular file" in (scan_file("/dev/zero").reason or "")


def test_reads_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(picture(900, 900), quality=95, exif=b"Exif\0\0" + bytes(60000))
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    taken = []
    real = os.pread

    def counting(descriptor: int, count: int, offset: int) -> bytes:
        taken.append(count)
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert scan_file(str(path)) == (900, 900, 3, None)
    assert sum(taken) < 10_000 < len(data) / 10


@given(
    base=st.sampled_from([WHOLE, encode(RGB, progressive=True), encode(RGB, "PNG")]),
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1500)),
)
@settings(max_examples=300, deadline=None)
def test_never_raises(base: bytes, edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(base)
    for offset, value in edits:
        data[offset % len(data)] = value
    header = scan_bytes(bytes(data[:cut]))
    if header.reason is None:
        assert 0 < header.height * header.width <= MAX_PIXELS
        assert header.components in (1, 2, 3, 4)
    else:
        assert header[:3] == (0, 0, 0)
