"""The pictures of a run: those that its options name, or the demo set, the same on all machines."""

from __future__ import annotations

from fastast.atomic_files import cache_root
from fastast.config import TrainConfig
from fastast.data import Dataset, draw_dataset, open_dataset
from fastast.distributed.ranks import Ranks
from fastast.loggers.console import Reporter

DEMO_SET = {"num_classes": 12, "train_per_class": 400, "val_per_class": 50}


def open_data(config: TrainConfig, reporter: Reporter) -> Dataset:
    """Opens the run's data set, drawing the demo set where none is named.

    Raises:
        InputError: the folders do not hold what a run needs.
    """
    data = config.data
    if not (config.data or config.train_dir):
        root = cache_root() / "demo"
        reporter.note(f"no --data given: training on a drawn demo set in {root}")
        draw_dataset(root, **DEMO_SET, progress=reporter.counter("drawing"))
        data = str(root)
    return open_dataset(
        data,
        train_dirs=config.train_dir.split(",") if config.train_dir else None,
        val_dir=config.val_dir,
        val_split=config.val_split,
        seed=config.seed,
        progress=reporter.counter("scanning"),
        on_note=None if reporter.console.quiet else reporter.note,
    )


def require_one_data_set(dataset: Dataset, ranks: Ranks) -> None:
    """Refuses machines that see different pictures.

    Raises:
        InputError: they do; all ranks call this.
    """
    fingerprints = ranks.all_gather_object(dataset.fingerprint)
    if len(set(fingerprints)) == 1:
        return
    message = "the machines see different pictures under the same path: copy or mount the same data on all of them"
    ranks.refuse(message)
