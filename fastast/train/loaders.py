"""The data loaders of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fastast.config import TrainConfig
from fastast.data import Dataset
from fastast.device import Runtime
from fastast.feed import EvalLoader, LoaderOptions, TrainLoader
from fastast.feed.loader_options import OnQuarantine
from fastast.models.weights_info import channel_levels


class Loaders:
    """Opens the pipelines that the options ask for.

    Args:
        config: completed options.
        runtime: device and number format of the pictures.
        dataset: catalogs of both splits.
        num_local: processes that train on this machine, which share its cores.
        on_quarantine, on_wait, on_note: as in `LoaderOptions`.

    Attributes:
        train, val: the loaders.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        dataset: Dataset,
        *,
        num_local: int = 1,
        on_quarantine: OnQuarantine,
        on_wait: Callable[[], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        mean, std = channel_levels(config.arch)
        options = LoaderOptions(
            batch_size=config.batch_size,
            image_size=config.image_size,
            device=runtime.device,
            dtype=runtime.image_dtype,
            mean=mean,
            std=std,
            num_threads=config.threads,
            num_local=num_local,
            decode=config.decode,
            deterministic=config.deterministic,
            on_quarantine=on_quarantine,
            on_wait=on_wait,
            on_note=on_note,
        )
        self._dataset, self._options = dataset, options
        largest = dataclasses.replace(options, image_size=config.train_sizes[-1])
        self.train = TrainLoader(
            dataset.train, largest, seed=config.seed, min_area=config.min_crop, flips=not config.no_flip
        )
        self.val = EvalLoader(dataset.val, options)

    def open_probe(self) -> EvalLoader:
        """The training pictures as evaluation shows them, without the quarantined ones; to be closed after use."""
        loader = EvalLoader(self._dataset.train, self._options)
        loader.bad_ids = self.train.bad_ids
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The pictures that were quarantined."""
        return {"train": torch.from_numpy(self.train.bad_ids), "val": torch.from_numpy(self.val.bad_ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Quarantines the pictures of a state."""
        self.train.bad_ids[:] = state["train"].numpy()
        self.val.bad_ids[:] = state["val"].numpy()

    def close(self) -> None:
        """Frees the pipelines."""
        self.train.close()
        self.val.close()
