"""The loaders: ids in, batches of (images, labels, ids, valid) on the device out, zero-copy and channels-last."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np

from fastast.data.catalog import Catalog
from fastast.feed.loader_options import LoaderOptions
from fastast.feed.prefetch import Batch, PrefetchLoader, Slice
from fastast.feed.transforms import crop_windows, eval_geometry


class TrainLoader(PrefetchLoader):
    """Random resized crops and flips, a pure function of (seed, epoch, id).

    On the CPU the bits of a sample do not depend on batch, number of threads or prefetch depth.

    Args:
        catalog: the pictures.
        options: batches, device and callbacks.
        seed: of crops and flips.
        min_area: smallest share of a picture's area in a crop.
        flips: False mirrors no picture; the crops stay the same.
    """

    def __init__(
        self, catalog: Catalog, options: LoaderOptions, *, seed: int, min_area: float = 0.25, flips: bool = True
    ) -> None:
        super().__init__(catalog, options, train=True)
        self._seed = seed
        self._min_area = min_area
        self._flips = flips

    def epoch(self, epoch: int, ids: np.ndarray) -> Generator[Batch, None, None]:
        """Batches of consecutive slices of `ids`, at the largest size.

        Starting another pass ends this one, even if it is not used up.

        Args:
            epoch: integer >= 0, the key of crops and flips.
            ids: int64[n], in the order wanted.

        Yields:
            One `Batch` for each slice; padded where the slice is short or has lost pictures.
        """
        return self.stream(epoch, ((part, self._options.image_size) for part in self._slices(ids)))

    def stream(self, epoch: int, slices: Iterable[Slice]) -> Generator[Batch, None, None]:
        """Like `epoch`, for slices that the caller may still be making up while they are pulled.

        `depth` slices are pulled before the first batch is yielded, and one more before each further batch, however
        long reads and decodes take. So a run with equal slices is the same each time, and what the caller does after
        batch k can change slice k + `depth` at the earliest.

        Args:
            epoch: as in `epoch`.
            slices: of each the ids, int64[n], n <= batch_size, and the side of its pictures, at most `image_size`
                pixels; pulled in the caller's thread, in time that `wait_s` leaves out.

        Yields:
            As `epoch`.

        Raises:
            ValueError: a slice is too long.
        """
        return self._iterate(slices, lambda ids: self._windows(epoch, ids))

    def _windows(self, epoch: int, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        *windows, flips = crop_windows(self.catalog.sizes[ids], ids, self._seed, epoch, min_area=self._min_area)
        return *windows, flips if self._flips else np.zeros_like(flips)


class EvalLoader(PrefetchLoader):
    """Pictures in id order, as torchvision's `Resize(int(S / 0.875))` and `CenterCrop(S)` show them.

    Args:
        catalog: the pictures.
        options: batches, device and callbacks.
    """

    def __init__(self, catalog: Catalog, options: LoaderOptions) -> None:
        super().__init__(catalog, options, train=False)

    def __iter__(self) -> Generator[Batch, None, None]:
        return self.over(self._slices(np.arange(self.catalog.num_samples)))

    def over(self, slices: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """One batch for each slice of ids, int64[n], n <= batch_size; iterating yields every picture once."""
        return self._iterate(((ids, self._options.image_size) for ids in slices), self._window)

    def _window(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Corners, in the picture's own pixels, of what the centre crop of the resized picture shows."""
        sizes, side = self.catalog.sizes[ids], self._options.image_size
        resized, anchors = eval_geometry(sizes, side)
        scale = sizes / resized
        begin, end = anchors * scale, (anchors + side) * scale
        return begin.astype(np.float32), end.astype(np.float32)
