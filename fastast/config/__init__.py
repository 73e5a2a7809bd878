"""The options of a run: what they are, what they may be, and the files and presets they come from."""

from fastast.config.train_config import TrainConfig

__all__ = ["TrainConfig"]
