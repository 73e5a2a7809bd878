"""`--log tensorboard`: event files in the run's tensorboard/, over offered samples, written while it trains."""

from __future__ import annotations

from typing import Any

from fastast.run_folder import RunFolder

EVENTS = "tensorboard"
# Seconds after which a point is on the disk at the latest.
FLUSH_S = 10


class TensorBoardLogger:
    """Replaces earlier event files: so a run that resumes has no point twice, and none of the part that was lost.

    Args and methods as of `ExtraLogger`.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder.path / EVENTS
        path.mkdir(exist_ok=True)
        for old in path.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that has read the old files is told to forget them.
        self._writer = SummaryWriter(str(path), purge_step=0, flush_secs=FLUSH_S)

    def add(self, offered: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, offered)

    def finish(self, values: dict[str, float]) -> None:
        """Nothing: the last points say it."""

    def close(self) -> None:
        self._writer.close()
