"""Hashes of pictures that survive re-encoding, resizing and slight cropping, and how alike two pictures are.

All of it works on grey thumbnails. The hash is the usual one: the signs of the lowest frequencies of a cosine
transform (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). A picture has one hash,
by which it is found, and several views of it, with which it looks for others: of what remains when its edges are cut
off, and of its mirror image. So a picture finds its cropped copies.
"""

from __future__ import annotations

import numpy as np

SIDE = 32  # pixels of a thumbnail
_CUT = 0.05  # of the side; cuts of up to twice as much are found
_EDGES = ((0.0, 1.0), (0.0, 1 - _CUT), (_CUT, 1.0), (_CUT, 1 - _CUT))
BOXES = np.array([(x0, y0, x1, y1) for x0, x1 in _EDGES for y0, y1 in _EDGES] + [(0.0, 0.0, 1.0, 1.0)])
"""What each view shows of a picture: left, top, right and bottom as shares of the side; the last one is mirrored."""

NUM_VIEWS = len(BOXES)
MIRRORED = NUM_VIEWS - 1

_BITS = 8  # frequencies in each direction
_GRID = 16  # pixels at which two pictures are compared
_STEPS = (0.03, 0.03, 0.015, 0.0075)  # by which edges of the box are moved, shares of the side


def resampling(begin: np.ndarray, end: np.ndarray, num: int) -> np.ndarray:
    """Weights that average a part of a side of SIDE pixels to `num` pixels, by area.

    Args:
        begin, end: float [...], in [0, 1].
        num: of the pixels.

    Returns:
        float32 [..., num, SIDE].
    """
    share = np.linspace(0, 1, num + 1, dtype=np.float32)
    edges = SIDE * (begin[..., None] + (end - begin)[..., None] * share)
    pixels = np.arange(SIDE, dtype=np.float32)
    overlap = np.minimum(edges[..., 1:, None], pixels + 1) - np.maximum(edges[..., :-1, None], pixels)
    weights = np.maximum(overlap, 0.0)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _frequencies() -> np.ndarray:
    """The lowest frequencies of the cosine transform, float32 [BITS, SIDE]."""
    order, place = np.arange(_BITS)[:, None], np.arange(SIDE) + 0.5
    return np.cos(np.pi * order * place / SIDE).astype(np.float32)


def hash_views(thumbs: np.ndarray) -> np.ndarray:
    """The hashes of all views of each picture; the first is of the whole picture, its own.

    Args:
        thumbs: uint8 [M, SIDE, SIDE].

    Returns:
        uint64 [M, NUM_VIEWS].
    """
    grey = thumbs.astype(np.float32)
    hashes = np.empty((len(grey), NUM_VIEWS), np.uint64)
    for view, (x0, y0, x1, y1) in enumerate(BOXES):
        across = _frequencies() @ resampling(x0, x1, SIDE)
        down = _frequencies() @ resampling(y0, y1, SIDE)
        if view == MIRRORED:
            across = across[:, ::-1]
        parts = (down @ grey @ across.T).reshape(len(grey), _BITS * _BITS)
        parts[:, 0] = 0.0  # the mean, which says nothing
        bits = parts > np.median(parts[:, 1:], axis=1, keepdims=True)
        hashes[:, view] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return hashes


def num_different(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many bits differ, of two arrays uint64 [M]; NumPy before 2.0 cannot count bits."""
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


def likeness(
    thumbs_a: np.ndarray, thumbs_b: np.ndarray, views: np.ndarray, *, worth: float, enough: float
) -> np.ndarray:
    """Correlation of the edges of pictures b with those of a part of pictures a: 1 for copies.

    Edges rather than brightness: all white pages with something dark in the middle resemble one another.

    Args:
        thumbs_a, thumbs_b: uint8 [M, SIDE, SIDE].
        views: int [M], the view of a that resembles b; from there the part is moved to where both are most alike.
        worth: correlation of the view as it is below which a pair is not looked at any further.
        enough: correlation at which that ends as well.

    Returns:
        float32 [M].
    """
    a = np.where((views == MIRRORED)[:, None, None], thumbs_a[:, :, ::-1], thumbs_a).astype(np.float32)
    boxes = BOXES[views]
    whole = np.broadcast_to(np.array([0.0, 0.0, 1.0, 1.0]), boxes.shape)
    b = _edges(thumbs_b.astype(np.float32), whole)
    best = _correlation(_edges(a, boxes), b)
    worthy = best >= worth
    for step in _STEPS:
        for edge in range(4):
            rows = np.flatnonzero(worthy & (best < enough))
            for move in (step, -step):
                moved = boxes[rows]
                moved[:, edge] = np.clip(moved[:, edge] + move, 0.0, 1.0)
                found = _correlation(_edges(a[rows], moved), b[rows])
                better = found > best[rows]
                best[rows[better]] = found[better]
                boxes[rows[better]] = moved[better]
    return best


def _edges(grey: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Differences to the right and to below within the boxes, of mean 0 and length 1: float32 [M, 2 (GRID - 1)^2]."""
    across, down = resampling(boxes[:, 0], boxes[:, 2], _GRID), resampling(boxes[:, 1], boxes[:, 3], _GRID)
    small = down @ grey @ across.transpose(0, 2, 1)
    corner = small[:, :-1, :-1]
    edges = np.stack([small[:, :-1, 1:] - corner, small[:, 1:, :-1] - corner], axis=1)
    edges = edges.reshape(len(small), 2 * (_GRID - 1) ** 2)
    edges -= edges.mean(1, keepdims=True)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1.0)  # below 1 there is nothing but noise


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)
