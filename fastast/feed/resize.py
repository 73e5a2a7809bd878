"""The last part of the training transforms on a CPU: decoded crops in, resized, flipped and normalised rows out.

torch resizes 8-bit pixels in fixed-point arithmetic (the method of Pillow-SIMD, on AVX2): a fifth of the time of DALI's
float resize on a CPU, and, like Pillow, within one level of the exact filter. Below `MIN_SIDE` the cost of a call for
each picture outweighs that, and all transforms stay in the DALI graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

MIN_SIDE = 64  # pixels of the output


class CropResizer:
    """Turns a batch of decoded crops of any size into [n, S, S, 3] normalised pixels. Bits depend on crop and S alone.

    Args:
        dtype: torch.float32 or torch.float16.
        mean, std: of the channels, in 8-bit levels.
        num_threads: pictures resized at once.
    """

    def __init__(self, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float], num_threads: int) -> None:
        self._dtype = dtype
        scale = 1 / torch.tensor(std, dtype=torch.float64)
        self._scale, self._shift = scale.float(), (-torch.tensor(mean, dtype=torch.float64) * scale).float()
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fastast-resize") if num_threads > 1 else None

    def __call__(self, crops: Any, flips: np.ndarray, size: int) -> torch.Tensor:
        """Resizes, mirrors and normalises.

        Args:
            crops: n pictures of DALI or numpy, each uint8[h, w, 3] on the CPU.
            flips: int32[n], 1: mirrored.
            size: S, pixels.
        """
        count = len(flips)
        levels = torch.empty((count, size, size, 3), dtype=torch.uint8)
        if self._pool is None:
            self._resize(levels.numpy(), crops, range(count))
        else:
            shares = [range(first, count, self._num_threads) for first in range(self._num_threads)]
            list(self._pool.map(lambda rows: self._resize(levels.numpy(), crops, rows), shares))
        mirrored = torch.from_numpy(np.flatnonzero(flips))
        levels[mirrored] = levels[mirrored].permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)
        out = torch.empty((count, size, size * 3))
        out.copy_(levels.view(count, size, size * 3))
        # As long as a row of pixels, so that the arithmetic runs over contiguous memory: [S * 3].
        torch.addcmul(self._shift.repeat(size), out, self._scale.repeat(size), out=out)
        return out.view(count, size, size, 3).to(self._dtype)

    def close(self) -> None:
        """Stops the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _resize(self, levels: np.ndarray, crops: Any, rows: range) -> None:
        """Fills some rows. Calls nothing that starts torch threads, since each thread of the pool would get its own."""
        for row in rows:
            # The batch axis comes first in memory too, or the picture would not count as channels-last.
            pixels = torch.from_dlpack(crops[row])[None].permute(0, 3, 1, 2)  # [1, 3, h, w] uint8
            pixels = interpolate(pixels, levels.shape[1:3], mode="bilinear", antialias=True)
            levels[row] = pixels[0].permute(1, 2, 0).numpy()
