"""Which pictures exist, how they are read safely, and in which order they are offered."""

from fastast.data.catalog import Catalog
from fastast.data.dataset import Dataset, open_dataset, open_folder, require_outside
from fastast.data.demo import draw_dataset
from fastast.data.sampler import epoch_ids, rank_rows, rank_slices

__all__ = [
    "Catalog",
    "Dataset",
    "draw_dataset",
    "epoch_ids",
    "open_dataset",
    "open_folder",
    "rank_rows",
    "rank_slices",
    "require_outside",
]
