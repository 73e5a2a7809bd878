"""`--tensorboard`: the lines of `metrics.jsonl` as TensorBoard event files, written while a run trains."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder, finite

EVENTS = "tensorboard"
# Seconds after which a point is on the disk at the latest.
FLUSH_S = 10
STEP_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "activation": "gate/activation",
    "threshold": "gate/threshold",
    "offered_per_s": "speed/offered_per_s",
    "data_wait_s": "speed/data_wait_s",
    "gpu_w": "power/gpu_w",
}
EPOCH_TAGS = {"val_loss": "val/loss", "val_top1": "val/top1", "val_top5": "val/top5"}


def require_tensorboard() -> None:
    """Refuses `--tensorboard` where it cannot work.

    Raises:
        InputError: the package is missing, or too old.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(f"--tensorboard: {error}; run `pip install tensorboard`, or leave the option out") from error


class EventWriter:
    """Turns lines of `metrics.jsonl` into scalars over offered samples.

    Earlier event files are replaced by what the lines so far say: so a run that resumes from a checkpoint has no point
    twice, and none of the part that was lost.

    Args:
        folder: of the run; event files go to `tensorboard/` in it.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder.path / EVENTS
        path.mkdir(exist_ok=True)
        for old in path.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that has read the old files is told to forget them.
        self._writer = SummaryWriter(str(path), purge_step=0, flush_secs=FLUSH_S)
        self._offered = 0  # in the epochs that have ended
        if folder.metrics.exists():
            with folder.metrics.open("rb") as file:
                for line in file:
                    self.add(json.loads(line))

    def add(self, line: dict[str, Any]) -> None:
        """Takes a line; a figure that was not measured has no point."""
        if line["kind"] == "epoch":
            self._offered += line["offered"]
            tags, place = EPOCH_TAGS, self._offered
        elif line["kind"] == "step":
            tags, place = STEP_TAGS, line["offered"]
        else:
            return
        for name, tag in tags.items():
            value = finite(line[name])
            if value is not None:
                self._writer.add_scalar(tag, value, place)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


@contextlib.contextmanager
def events_written(folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Writes event files of all lines that the folder holds and gets; a full disk ends them, not the run."""
    writer: EventWriter | None = None

    def give_up(error: OSError) -> None:
        folder.on_metrics = None
        reporter.note(f"no more TensorBoard events: {os.strerror(error.errno or 0)}")

    def add(line: dict[str, Any]) -> None:
        assert writer is not None, "no line comes before the writer is there"
        try:
            writer.add(line)
        except OSError as error:
            give_up(error)

    try:
        writer = EventWriter(folder)
        folder.on_metrics = add
    except OSError as error:
        give_up(error)
    try:
        yield
    finally:
        folder.on_metrics = None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
