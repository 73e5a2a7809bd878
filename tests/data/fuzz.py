"""Feeds damaged pictures that pass the scan to the decoder. Run as `python -m tests.data.fuzz SEED COUNT FILE`.

Its own process, because what it looks for is the death of that process. FILE always holds the input being tried.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections import Counter, deque
from pathlib import Path

import numpy as np
import torch

from fastast.data.graph import build_pipeline
from fastast.data.scan import scan_bytes
from tests.data.pictures import encode, picture, segments

_SPECIAL = bytes([0, 1, 2, 3, 4, 8, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0x7F, 0x80, 0xC0, 0xC4, 0xDA, 0xFE, 0xFF])
_MARKERS = [
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\xff\xd8",
    b"\xff\xc0",
    b"\xff\xdd\0\4\0\1",
    b"\xff\xff",
    b"\xff\xd0",
]


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
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to six edits: bytes, bits, whole segments, lengths, frame fields, cuts, markers in the picture data."""
    edited = bytearray(data)
    is_png = data.startswith(b"\x89PNG")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        parts = [] if is_png or not is_jpeg(edited) else segments(edited)
        header = min(parts[-1][1] if parts else 100, len(edited))
        at = rng.randrange(header)
        edit = rng.randrange(8)
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


def main(seed: int, count: int, current: Path) -> Counter[str]:
    rng = random.Random(seed)
    base = originals()
    neighbours = [np.frombuffer(data, np.uint8) for data in base]
    outcomes: Counter[str] = Counter()
    pipelines = []
    for train in (True, False):
        inputs: deque[tuple] = deque()
        pipeline = build_pipeline(
            inputs,
            train=train,
            batch_size=8,
            image_size=32,
            device=torch.device("cpu"),
            dtype=torch.float32,
            num_threads=2,
            prefetch=1,
        )
        pipelines.append((inputs, pipeline))
    while outcomes["tried"] < count:
        data = mutate(rng.choice(base), rng)
        outcomes["tried"] += 1
        height, width, _, reason = scan_bytes(data)
        if reason is not None or height * width > 4_000_000:  # large ones only cost time
            outcomes["refused" if reason else "large"] += 1
            continue
        current.write_bytes(data)
        # At the head of a batch, in the middle or alone.
        encoded = [np.frombuffer(data, np.uint8)] + rng.sample(neighbours, rng.randrange(4))
        rng.shuffle(encoded)
        sizes = np.array([scan_bytes(picture.tobytes())[:2] for picture in encoded])
        anchors = np.array([[rng.randrange(h), rng.randrange(w)] for h, w in sizes.tolist()], np.int32)
        windows: list[tuple] = [(anchors, (sizes - anchors).astype(np.int32), np.zeros(len(encoded), np.int32))]
        windows.append((anchors.astype(np.float32), sizes.astype(np.float32)))
        for window, (inputs, pipeline) in zip(windows, pipelines, strict=True):
            inputs.append((encoded, *window))
            try:
                pipeline.run()
                outcomes["decoded"] += 1
            except RuntimeError:
                outcomes["error raised"] += 1
    return outcomes


if __name__ == "__main__":
    print(dict(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
