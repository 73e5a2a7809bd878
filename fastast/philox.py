"""Counter-based random numbers: the same draw for the same (seed, epoch, id), wherever it is made.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The arithmetic uses
only integer operators, so one function serves NumPy arrays in the data path and torch tensors on any device,
inside or outside a compiled graph, with equal bits.
"""

from __future__ import annotations

from typing import TypeVar

Ints = TypeVar("Ints")  # int64 numpy array or torch tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85

# Streams keep the uses of one (seed, epoch, id) apart.
STREAM_CROP = 0  # the crop takes streams 0..15, one for each try
STREAM_FLIP = 16
STREAM_SELECT = 17
STREAM_EXPLORE = 18
STREAM_PLAN = 19
STREAM_FOLD = 20


def philox4x32(counter: tuple, key: tuple[int, int], rounds: int = 10) -> tuple:
    """Four 32-bit words for each counter.

    Args:
        counter: four int64 arrays or tensors that broadcast, each value in [0, 2^32).
        key: two integers in [0, 2^32).
        rounds: 10 in the published generator.

    Returns:
        Four int64 arrays or tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # A 32 x 32 bit product wraps in int64, but its 64 bits are right: mask after shifting.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def random_words(seed: int, epoch, ids, stream) -> tuple:
    """Four 32-bit words for each id, keyed by (seed, epoch, id, stream).

    Args:
        seed: any integer; its low 64 bits are used.
        epoch: integer >= 0, or an int64 array or tensor that broadcasts with `ids`.
        ids: int64 array or tensor, values >= 0.
        stream: one of the `STREAM_*` constants, or an int64 array or tensor that broadcasts with `ids`.
    """
    zero = ids & 0
    counter = (ids & _MASK, (ids >> 32) & _MASK, zero + epoch, zero + stream)
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def to_uniform(words):
    """Maps 32-bit words to (0, 1): 23 bits and a half step, exact in float32 and never 0 or 1."""
    return ((words >> 9) + 0.5) * 2.0**-23
