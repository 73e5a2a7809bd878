"""Plans in, batches out: (images, labels, ids, valid) on the device, zero copy, channels-last."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import torch

from fastast.data.augment import crop_windows, eval_geometry
from fastast.data.catalog import Catalog
from fastast.data.feed import Batch, Feed, OnQuarantine
from fastast.data.reader import OnNote, OnWait


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
        decode: on a GPU, where pictures are decoded: gpu, cpu, or auto (on the GPU, and whole batches on the CPU as
            far as it can take them without being waited for).
        deterministic: on a GPU, use no decoder whose bits depend on the rest of the batch (the JPEG engine's do), and
            one decoder only: auto is then gpu.
        min_area: smallest share of a picture's area in a crop.
        on_quarantine: called as `on_quarantine(id, path, reason)`.
        on_wait: called about every second while reads are waited for; what it raises ends the pass.
        on_note: called as `on_note(line)` when the pictures' folder is gone, and when it is back.
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
        on_wait: OnWait | None = None,
        on_note: OnNote | None = None,
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
            on_wait=on_wait,
            on_note=on_note,
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
        return self.stream(epoch, self._slices(ids))

    def stream(self, epoch: int, slices: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """As `epoch`, of slices that need not exist yet: those that the caller makes up while they are pulled.

        Before the first batch is yielded, `depth` slices are pulled, and one more before each further batch, however
        long reads and decodes take. So with equal slices a run is the same each time, and what the caller does after
        batch k can still change slice k + `depth`, none before it.

        Args:
            epoch: as in `epoch`.
            slices: int64[n] each, n <= batch_size; pulled in the caller's thread, and no time spent in it is
                counted in `wait_s`.

        Yields:
            As `epoch`.

        Raises:
            ValueError: a slice is too long.
        """
        return self._iterate(slices, lambda ids: self.windows(epoch, ids))

    def windows(self, epoch: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `epoch` shows of each picture: anchors, shapes and flips as in `crop_windows`."""
        return crop_windows(self.catalog.sizes[ids], ids, self._seed, epoch, min_area=self._min_area)


class ThumbnailLoader(Feed):
    """The thumbnails of a pack, for scoring: of each picture the part that `full` shows in that epoch, flipped alike.

    A picture whose thumbnail cannot be read or decoded cannot be scored, so it is quarantined like one that is damaged
    itself: reported once, to `full`'s `on_quarantine`, and from then on offered by neither loader, since both keep one
    set of `bad_ids`.

    Args:
        full: the loader of the pictures; gives the crops, and all that is not named here.
        image_size: side of the batches, pixels.

    Raises:
        InputError: not every picture has a thumbnail.
    """

    def __init__(self, full: TrainLoader, image_size: int) -> None:
        super().__init__(
            full.catalog.thumbnails(),
            train=False,  # a window on a thumbnail begins and ends between its pixels
            batch_size=full._batch_size,
            image_size=image_size,
            device=full._device,
            dtype=full._dtype,
            prefetch=full._prefetch,
            num_threads=full._num_threads,
            decode="cpu" if full._decode_on_cpu else "gpu",
            deterministic=full._deterministic,
            on_quarantine=full._on_quarantine,
            on_wait=full._on_wait,
            on_note=full._on_note,
        )
        self.bad_ids = full.bad_ids
        self._full = full

    def epoch(self, epoch: int, ids: np.ndarray) -> Generator[Batch, None, None]:
        """As `TrainLoader.epoch`, from the thumbnails."""
        return self.stream(epoch, self._slices(ids))

    def stream(self, epoch: int, slices: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """As `TrainLoader.stream`, from the thumbnails."""

        def geometry(ids: np.ndarray) -> tuple[np.ndarray, ...]:
            anchors, shapes, flips = self._full.windows(epoch, ids)
            scale = self.catalog.sizes[ids] / self._full.catalog.sizes[ids]  # [n, 2]
            begin, end = anchors * scale, (anchors + shapes) * scale
            # DALI mirrors a window that ends before it begins.
            flipped = np.flatnonzero(flips)
            begin[flipped, 1], end[flipped, 1] = end[flipped, 1], begin[flipped, 1]
            return begin.astype(np.float32), end.astype(np.float32)

        return self._iterate(slices, geometry)

    def _quarantine(self, sample: int, reason: str) -> None:
        super()._quarantine(sample, f"thumbnail: {reason}")


class EvalLoader(Feed):
    """Pictures in id order, as torchvision's Resize(int(S / 0.875)) and CenterCrop(S) show it.

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
        on_wait: OnWait | None = None,
        on_note: OnNote | None = None,
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
            on_wait=on_wait,
            on_note=on_note,
        )

    def __iter__(self) -> Generator[Batch, None, None]:
        return self.over(self._slices(np.arange(self.catalog.num_samples)))

    def over(self, slices: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """One batch for each slice of ids, int64[n], n <= batch_size; iterating takes every picture once."""
        return self._iterate(slices, self._window)

    def _window(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Corners, in the picture's own pixels, of what the centre crop of the resized picture shows."""
        sizes = self.catalog.sizes[ids]
        resized, anchors = eval_geometry(sizes, self._image_size)
        scale = sizes / resized
        begin, end = anchors * scale, (anchors + self._image_size) * scale
        return begin.astype(np.float32), end.astype(np.float32)
