"""Plans in, batches out: (images, labels, ids, valid) on the device, zero copy, channels-last."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from fastast.data.augment import crop_windows, eval_geometry
from fastast.data.catalog import Catalog
from fastast.data.feed import Batch, Feed, OnQuarantine


class TrainLoader(Feed):
    """Random resized crops and flips, a pure function of (seed, epoch, id).

    On the CPU the bits of a sample do not depend on batch, thread count or prefetch depth. `Feed` describes the
    attributes.

    Args:
        catalog: the pictures.
        batch_size: rows of each batch, B.
        image_size: side of the crop, S, pixels.
        device: cpu, or cuda (decodes there too).
        dtype: torch.float32 or torch.float16.
        seed: of crops and flips.
        prefetch: batches in DALI at once.
        num_threads: decoder threads; None: the cores that this process may use, at most 8.
        decode: on a GPU, where pictures are decoded: gpu, cpu or auto (gpu).
        deterministic: on a GPU, use no decoder whose bits depend on the rest of the batch (the JPEG engine's do).
        min_area: smallest share of a picture's area in a crop.
        on_quarantine: called as `on_quarantine(id, path, reason)`.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        batch_size: int,
        image_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int,
        prefetch: int = 2,
        num_threads: int | None = None,
        decode: str = "auto",
        deterministic: bool = False,
        min_area: float = 0.25,
        on_quarantine: OnQuarantine | None = None,
    ) -> None:
        super().__init__(
            catalog,
            train=True,
            batch_size=batch_size,
            image_size=image_size,
            device=device,
            dtype=dtype,
            prefetch=prefetch,
            num_threads=num_threads,
            decode=decode,
            deterministic=deterministic,
            on_quarantine=on_quarantine,
        )
        self._seed = seed
        self._min_area = min_area

    def epoch(self, epoch: int, ids: np.ndarray) -> Generator[Batch, None, None]:
        """Batches of consecutive slices of `ids`.

        The next pass may begin before this one is used up; this one then ends.

        Args:
            epoch: integer >= 0, the key of crops and flips.
            ids: int64[n], in the order wanted.

        Yields:
            One `Batch` for each slice; padded where the slice is short or has lost pictures.
        """

        def geometry(ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
            return crop_windows(sizes, ids, self._seed, epoch, min_area=self._min_area)

        return self._iterate(ids, geometry)


class EvalLoader(Feed):
    """Every picture once, in id order, as torchvision's Resize(int(S / 0.875)) and CenterCrop(S) show it.

    Args as in `TrainLoader`, which draws nothing here.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        batch_size: int,
        image_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        prefetch: int = 2,
        num_threads: int | None = None,
        decode: str = "auto",
        deterministic: bool = False,
        on_quarantine: OnQuarantine | None = None,
    ) -> None:
        super().__init__(
            catalog,
            train=False,
            batch_size=batch_size,
            image_size=image_size,
            device=device,
            dtype=dtype,
            prefetch=prefetch,
            num_threads=num_threads,
            decode=decode,
            deterministic=deterministic,
            on_quarantine=on_quarantine,
        )

    def __iter__(self) -> Generator[Batch, None, None]:
        return self._iterate(np.arange(self.catalog.num_samples), self._window)

    def _window(self, ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Corners, in the picture's own pixels, of what the centre crop of the resized picture shows."""
        resized, anchors = eval_geometry(sizes, self._image_size)
        scale = sizes / resized
        begin, end = anchors * scale, (anchors + self._image_size) * scale
        return begin.astype(np.float32), end.astype(np.float32)
