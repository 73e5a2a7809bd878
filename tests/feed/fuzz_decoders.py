"""Loaders damaged pictures to the packer, and those that pass the scan to the decoder.

    python -m tests.feed.fuzz_decoders SECONDS FILE [SEED]

A process of its own, because it looks for inputs that crash the process. FILE always holds the current input. At the
end it prints the numbers of inputs and their outcomes by kind, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastast.feed.pipeline import build_pipeline
from fastast.packing.converting import MENDED, PackOptions, RefusedError, prepare, used_bits
from fastast.scan.image_scan import scan_bytes
from tests.data.image_files import deep_png, encode, picture, segments
from tests.feed.helpers import loader_options

_SPECIAL = bytes([0, 1, 2, 3, 4, 8, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0x7F, 0x80, 0xC0, 0xC4, 0xDA, 0xFE, 0xFF])
_MARKERS = [b"\xff" + rest for rest in (b"\xda", b"\xc4", b"\xdb", b"\xd8", b"\xc0", b"\xdd\0\4\0\1", b"\xff", b"\xd0")]


def originals() -> list[bytes]:
    found = []
    for height, width in ((1, 1), (8, 8), (17, 33), (64, 64), (97, 120)):
        image = picture(height, width, width)
        options: list[dict] = [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}]
        options += [{"restart_marker_blocks": 2}, {"optimize": True}]
        found += [encode(image, **option) for option in options]
        for mode in ("L", "CMYK"):
            found += [encode(image.convert(mode), progressive=progressive) for progressive in (False, True)]
        found += [encode(image.convert(mode), "PNG") for mode in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16")]
        found += [deep_png(np.full((height, width, channels), 4000, np.uint16)) for channels in (2, 3, 4)]
    return found


def others() -> list[bytes]:
    """Pictures of the formats that only the packer reads."""
    image = picture(17, 33, 1)
    found = [encode(image, kind) for kind in ("GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF")]
    return found + [encode(image, "WEBP", lossless=True), encode(image, "TIFF", compression="tiff_lzw")]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to six edits: bytes, bits, whole segments, lengths, frame fields, cuts, markers in the picture data."""
    edited = bytearray(data)
    is_png = data.startswith(b"\x89PNG")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        parts = [] if is_png or not is_jpeg(edited) else segments(edited)
        header = min(parts[-1][1] if parts else 100, len(edited))
        at = rng.randrange(header)
        edit = rng.randrange(10)
        if edit <= 1:
            edited[at] = rng.choice(_SPECIAL)
        elif edit == 2:
            edited[rng.randrange(len(edited))] ^= 1 << rng.randrange(8)
        elif edit == 3 and parts:
            begin, end, _ = rng.choice(parts)
            edited[begin:end] = edited[begin:end] * rng.choice((0, 2))
        elif edit == 4 and parts:
            begin, end, _ = rng.choice(parts)
            length = max(0, end - begin - 2 + rng.choice((-64, -2, -1, 1, 2, 64)))
            edited[begin + 2 : begin + 4] = length.to_bytes(2, "big")
        elif edit == 5 and parts:
            for begin, _, marker in parts:
                if marker in (0xC0, 0xC1, 0xC2):
                    edited[begin + rng.choice((1, 5, 6, 7, 8, 9, 11, 12, 14, 17)) % len(edited)] = rng.choice(_SPECIAL)
        elif edit == 6:
            cut = rng.randrange(header, len(edited) + 1)
            edited = edited[:cut] + edited[-12 if is_png else -2 :]
        elif edit == 7:  # behind the end
            edited += rng.choice((bytes(9000), b"\xff" * 5000, rng.randbytes(6000), edited[:-2] + bytes(5000)))
        elif edit == 8 and parts:  # junk between two segments
            begin, _, _ = rng.choice(parts)
            edited[begin:begin] = rng.choice((b"junk", b"\xff\0", b"\xff\xd3", b"\xff\x01", b"\0", rng.randbytes(9)))
        else:
            rogue = rng.choice(_MARKERS)
            at = rng.randrange(header - 1, len(edited))
            edited[at : at + len(rogue)] = rogue
    return fix_checksums(edited) if is_png and rng.random() < 0.7 else bytes(edited)


def is_jpeg(data: bytearray) -> bool:
    """Whether the segments can be walked to a scan."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        if data[offset + 1] == 0xDA:
            return True
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return False


def fix_checksums(data: bytearray) -> bytes:
    offset = 8
    while offset + 12 <= len(data):
        end = offset + 8 + int.from_bytes(data[offset : offset + 4], "big")
        data[end : end + 4] = zlib.crc32(data[offset + 4 : end]).to_bytes(4, "big")
        offset = end + 4
    return bytes(data)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


SLOT = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
SAMPLING = st.sampled_from([0x11, 0x11, 0x11, 0x12, 0x21, 0x22, 0x31, 0x13, 0x41, 0x14, 0x44])


@st.composite
def huffman_tables(draw: st.DrawFn) -> bytes:
    """A table whose code lengths fit a tree, over any symbols."""
    counts, room = [], 2
    for _ in range(16):
        counts.append(draw(st.integers(0, min(room - 1, 6))) if room > 1 else 0)
        room = min(2 * (room - counts[-1]), 512)
    if not any(counts):
        counts[1] = 1
    name = draw(st.sampled_from([0x00, 0x10])) + draw(SLOT)
    return segment(0xC4, bytes([name, *counts]) + draw(st.binary(min_size=sum(counts), max_size=sum(counts))))


@st.composite
def structured_jpegs(draw: st.DrawFn) -> bytes:
    """A JPEG put together from sound segments with odd contents, in an order that mostly makes sense."""
    tables = [segment(0xDB, bytes([slot]) + draw(st.binary(min_size=64, max_size=64))) for slot in range(4)]
    codes = draw(st.lists(huffman_tables(), max_size=4))
    codes += [segment(0xC4, bytes([name, 0, 2, 3, *bytes(13), 0, 1, 2, 3, 17])) for name in (0, 1, 0x10, 0x11)]
    count = draw(st.sampled_from([1, 3, 3, 4]))
    marker = draw(st.sampled_from([0xC0, 0xC1, 0xC2, 0xC2]))
    side = st.sampled_from([1, 2, 7, 8, 9, 16, 33, 64, 100])
    parts = b"".join(bytes([i + 1, draw(SAMPLING), draw(SLOT)]) for i in range(count))
    frame = segment(
        marker, b"\x08" + draw(side).to_bytes(2, "big") + draw(side).to_bytes(2, "big") + bytes([count]) + parts
    )
    header = draw(st.permutations([*tables, *codes, frame]))
    if draw(st.booleans()):
        header = [segment(0xDD, draw(st.integers(0, 9)).to_bytes(2, "big")), *header]
    data = b"\xff\xd8" + b"".join(header)
    for _ in range(draw(st.integers(1, 4))):
        named = draw(st.lists(st.integers(1, count), min_size=1, max_size=count, unique=True))
        chosen = b"".join(bytes([name, draw(st.sampled_from([0, 0x11, 0x01, 0x10, 0x23]))]) for name in named)
        low, high = draw(st.sampled_from([(0, 63), (0, 0), (1, 63), (1, 5), (6, 63), (63, 1), (0, 200)]))
        approximation = draw(st.sampled_from([0, 0, 0x01, 0x10, 0x21, 0xD0, 0xFF]))
        data += segment(0xDA, bytes([len(named)]) + chosen + bytes([low, high, approximation]))
        data += draw(st.binary(max_size=80)).replace(b"\xff", b"\xff\0")
        if draw(st.integers(0, 5)) == 0:
            data += draw(st.sampled_from([*codes, *tables, frame, b"\xff\xd0", b"\xff\xdc\0\4\0\1"]))
    return data + b"\xff\xd9"


def mutated(found: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda data, seed: mutate(data, random.Random(seed)), st.sampled_from(found), st.integers(0, 2**63)
    )


class Target:
    """The packer and both decoding graphs."""

    def __init__(self, current: Path) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self._current = current
        self._neighbours = [np.frombuffer(data, np.uint8) for data in originals() if scan_bytes(data).reason is None]
        self._pipelines = []
        for train, resize in ((True, True), (True, False), (False, True)):
            inputs: deque[tuple] = deque()
            pipeline = build_pipeline(inputs, loader_options(num_threads=2, prefetch=1), train=train, resize=resize)
            self._pipelines.append((train, inputs, pipeline))

    def try_one(self, kind: str, data: bytes) -> None:
        seen = self.outcomes.setdefault(kind, Counter())
        seen["tried"] += 1
        self._current.write_bytes(data)
        used_bits(data)
        try:
            packed = prepare(data, PackOptions(max_side=64, bits=12))
            seen["packed"] += 1
        except RefusedError:
            seen["left out of a pack"] += 1
        else:
            assert scan_bytes(packed.data).reason is None
            if packed.change == MENDED:
                seen["mended"] += 1
                data = packed.data
        height, width, _, reason = scan_bytes(data)
        if reason is not None or height * width > 4_000_000:  # large ones only cost time
            seen["refused by the scan" if reason else "large"] += 1
            return
        # At the head of a batch, in the middle or alone.
        rng = random.Random(data)
        encoded = [np.frombuffer(data, np.uint8)] + rng.sample(self._neighbours, rng.randrange(4))
        rng.shuffle(encoded)
        sizes = np.array([scan_bytes(picture.tobytes())[:2] for picture in encoded])
        anchors = np.array([[rng.randrange(h), rng.randrange(w)] for h, w in sizes.tolist()], np.int32)
        for train, inputs, pipeline in self._pipelines:
            flips, target = np.zeros(len(encoded), np.int32), np.full((len(encoded), 2), 32, np.float32)
            window: tuple = (anchors, (sizes - anchors).astype(np.int32), flips, target)
            inputs.append((encoded, *(window if train else (anchors.astype(np.float32), sizes.astype(np.float32)))))
            try:
                pipeline.run()
                seen["decoded"] += 1
            except RuntimeError:
                seen["error raised"] += 1


def main(seconds: float, current: Path, seed: int) -> dict[str, Counter[str]]:
    target = Target(current)
    kinds: dict[str, st.SearchStrategy[bytes]] = {
        "mutated JPEG": mutated([data for data in originals() if data[:2] == b"\xff\xd8"]),
        "mutated PNG": mutated([data for data in originals() if data[:2] != b"\xff\xd8"]),
        "structured JPEG": structured_jpegs(),
        "other formats": mutated(others()),
    }
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind, strategy in kinds.items():
            run_some(kind, strategy, target.try_one, seed)
        seed += 1
    return target.outcomes


def run_some(kind: str, strategy: st.SearchStrategy[bytes], try_one: Callable[[str, bytes], None], seed: int) -> None:
    @hypothesis.seed(seed)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=strategy)
    def run(data: bytes) -> None:
        try_one(kind, data)

    run()


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)))
