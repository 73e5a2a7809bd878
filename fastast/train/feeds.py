"""The data pipelines of a run: training pictures and validation pictures."""

from __future__ import annotations

from collections.abc import Callable

from fastast.config import TrainConfig
from fastast.data import Dataset
from fastast.feed import EvalLoader, LoaderOptions, TrainLoader
from fastast.feed.loader_options import OnQuarantine
from fastast.train.setup import Machine


class Feeds:
    """Opens the pipelines that the options ask for.

    Args:
        config: completed options.
        machine: device and number format of the pictures.
        dataset: catalogs of both splits.
        on_quarantine, on_wait, on_note: as in `LoaderOptions`.

    Attributes:
        train, val: the loaders.
    """

    def __init__(
        self,
        config: TrainConfig,
        machine: Machine,
        dataset: Dataset,
        *,
        on_quarantine: OnQuarantine,
        on_wait: Callable[[], None],
        on_note: Callable[[str], None],
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        options = LoaderOptions(
            batch_size=config.batch_size,
            image_size=config.image_size,
            device=machine.device,
            dtype=machine.image_dtype,
            num_threads=config.threads,
            decode=config.decode,
            deterministic=config.deterministic,
            on_quarantine=on_quarantine,
            on_wait=on_wait,
            on_note=on_note,
        )
        self.train = TrainLoader(dataset.train, options, seed=config.seed, min_area=config.min_crop)
        self.val = EvalLoader(dataset.val, options)

    @property
    def wait_s(self) -> float:
        """Seconds that training waited for pictures so far."""
        return self.train.wait_s

    def close(self) -> None:
        """Frees the pipelines."""
        self.train.close()
        self.val.close()
