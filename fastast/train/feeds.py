"""The data pipelines of a run: training pictures, validation pictures, thumbnails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastast.config import TrainConfig
from fastast.data import Dataset, EvalLoader, ThumbnailLoader, TrainLoader
from fastast.data.feed import OnQuarantine
from fastast.train.setup import Machine


class Feeds:
    """Opens the pipelines that the options ask for.

    Args:
        config: completed options.
        machine: device and number format of the pictures.
        dataset: catalogs of both splits.
        thumbnail_size: side of the thumbnails that are scored, pixels; None if none are.
        on_quarantine, on_wait, on_note: as `TrainLoader` takes them.

    Attributes:
        train, val: the loaders of full pictures.
        thumbs: the loader of thumbnails, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        machine: Machine,
        dataset: Dataset,
        *,
        thumbnail_size: int | None,
        on_quarantine: OnQuarantine,
        on_wait: Callable[[], None],
        on_note: Callable[[str], None],
    ) -> None:
        common: dict[str, Any] = {
            "batch_size": config.batch_size,
            "image_size": config.image_size,
            "device": machine.device,
            "dtype": machine.image_dtype,
            "num_threads": config.threads,
            "decode": config.decode,
            "deterministic": config.deterministic,
            "on_quarantine": on_quarantine,
            "on_wait": on_wait,
            "on_note": on_note,
        }
        self.train = TrainLoader(dataset.train, seed=config.seed, min_area=config.min_crop, **common)
        self.val = EvalLoader(dataset.val, **common)
        self.thumbs = None if thumbnail_size is None else ThumbnailLoader(self.train, thumbnail_size)

    @property
    def wait_s(self) -> float:
        """Seconds that training waited for pictures so far."""
        return self.train.wait_s + (0.0 if self.thumbs is None else self.thumbs.wait_s)

    def close(self) -> None:
        """Frees the pipelines."""
        for loader in (self.train, self.val, self.thumbs):
            if loader is not None:
                loader.close()
