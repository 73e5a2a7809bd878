"""Pictures as batches of tensors on the device."""

from fastast.feed.loader import EvalLoader, TrainLoader
from fastast.feed.loader_options import LoaderOptions
from fastast.feed.prefetch import Batch

__all__ = ["Batch", "EvalLoader", "LoaderOptions", "TrainLoader"]
