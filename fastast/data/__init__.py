"""What images exist, in which order, and as tensors on the device."""

from fastast.data.catalog import Catalog, Quarantined
from fastast.data.drawn import draw_dataset
from fastast.data.feed import Batch
from fastast.data.layout import Dataset, open_dataset, open_folder
from fastast.data.loader import EvalLoader, ThumbnailLoader, TrainLoader
from fastast.data.order import epoch_ids, rank_rows, rank_slices

__all__ = [
    "Batch",
    "Catalog",
    "Dataset",
    "EvalLoader",
    "Quarantined",
    "ThumbnailLoader",
    "TrainLoader",
    "draw_dataset",
    "epoch_ids",
    "open_dataset",
    "open_folder",
    "rank_rows",
    "rank_slices",
]
