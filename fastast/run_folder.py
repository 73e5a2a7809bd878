"""The run folder: what a run writes, and what every reader of a run starts from."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastast.atomic_files import append_whole, cut_lines, remove_temporaries, write_whole
from fastast.errors import InputError
from fastast.file_lock import holder_of, open_locked


class RunFolder:
    """Paths and writers of one run's folder.

    `metrics.jsonl` and `quarantine.jsonl` grow a whole line at a time; every other file is written whole.

    Attributes:
        listeners: called with each line of `metrics.jsonl` once it is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.quarantine = self.path / "quarantine.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.best = self.checkpoints / "best.pt"
        self.weights = self.path / "model.safetensors"
        self.classes = self.path / "classes.json"
        self.samples = self.path / "samples.npz"
        self.predictions = self.path / "predictions.npz"
        self.power = self.path / "power.csv"
        self.spent = self.path / "spent.json"  # with a budget of time or energy
        self.logged = self.path / "loggers.json"  # with --log wandb or mlflow: their ids of this run
        self.listeners: list[Callable[[dict[str, Any]], object]] = []

    def create(self) -> None:
        """Makes the folder.

        Raises:
            InputError: it cannot be made or written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / ".writable", b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise self._not_writable(error) from error

    def claim(self) -> bool:
        """Makes the folder; False if it is there already, or another process got ahead.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self.path.mkdir()
        except (FileExistsError, FileNotFoundError):  # not found: a run that was refused has removed the parent
            return False
        except OSError as error:
            raise self._not_writable(error) from error
        return True

    def _not_writable(self, error: OSError) -> InputError:
        reason = os.strerror(error.errno or 0)
        return InputError(f"--out {self.path}: {reason}; name a folder that can be written to")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here meanwhile; makes the folder if there is none.

        The kernel frees the lock however the process ends. On file systems without locks there is none. What writers
        that were killed left half-written is removed.

        Raises:
            InputError: another process holds it, or the folder cannot be written to.
        """
        path = self.path / ".lock"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            descriptor = open_locked(path)
        except BlockingIOError as error:
            raise InputError(
                f"--out {self.path}: another fastast process{holder_of(path)} is writing there; "
                "wait for it to end, or name another folder"
            ) from error
        except OSError as error:
            raise self._not_writable(error) from error
        if descriptor is None:
            yield
            return
        try:
            with contextlib.suppress(OSError):  # neither is needed on a full disk
                remove_temporaries(self._files())
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists() or self.last.exists()

    def require_free(self) -> None:
        """Call before a run starts in a folder that holds none.

        Raises:
            InputError: a file that the run would replace is there, and is somebody else's.
        """
        for path in (*self._files(), self.path / "thumbs", self.path / "tensorboard"):
            if os.path.lexists(path):
                raise InputError(
                    f"--out {self.path}: holds {path.relative_to(self.path)} but no run (no config.json), and a run "
                    "would replace it; name another folder, or move it away"
                )

    def _files(self) -> list[Path]:
        """The files that a run writes, and replaces."""
        return [
            *(self.config, self.metrics, self.summary, self.quarantine, self.last, self.previous, self.best),
            *(self.weights, self.classes, self.samples, self.predictions, self.power, self.spent),
            self.logged,
            *(self.path / "report.html", self.path / "stall.txt"),
        ]

    def finished_summary(self) -> dict[str, Any] | None:
        """The summary of a run that came to its end here, or None."""
        if not self.summary.exists():
            return None
        summary = read_json(self.summary)
        return summary if summary.get("stopped") is None else None

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`."""
        append_whole(self.metrics, _line(line))
        for listener in self.listeners:
            listener(line)

    def append_quarantine(self, line: dict[str, Any]) -> None:
        """Adds one line (id or null, path, reason) to `quarantine.jsonl`."""
        append_whole(self.quarantine, _line(line))

    def log_sizes(self) -> dict[str, int]:
        """Bytes of the files that grow line by line."""
        return {path.name: path.stat().st_size if path.exists() else 0 for path in (self.metrics, self.quarantine)}

    def sync_logs(self) -> None:
        """Makes the lines written so far outlast a crash of the machine."""
        for path in (self.metrics, self.quarantine):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def continue_from(self, checkpoint: Path, sizes: dict[str, int]) -> None:
        """Makes the folder what it was at a checkpoint: what the run writes again must not be there twice.

        Args:
            checkpoint: if it lies in another run's folder, what that has is copied here first.
            sizes: `log_sizes` at the checkpoint.
        """
        home = RunFolder(checkpoint.resolve().parent.parent)
        if home.path != self.path.resolve():
            for path in (home.metrics, home.quarantine, home.weights, home.best, home.predictions):
                if path.exists():
                    shutil.copyfile(path, self.path / path.relative_to(home.path))
        if checkpoint.resolve() != self.last.resolve():  # else a kill would bring a later one back
            write_whole(self.last, checkpoint.read_bytes())
        for path in (self.metrics, self.quarantine):
            cut_lines(path, sizes[path.name])
        self.summary.unlink(missing_ok=True)

    def write_json(self, path: Path, value: Any) -> None:
        """Writes `value` as indented JSON, whole. NaN and infinity become null, what is not UTF-8 an escape."""
        text = json.dumps(finite(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_whole(path, text.encode("utf-8", "backslashreplace"))


class OtherRanksFolder(RunFolder):
    """A run's folder as ranks beside the first have it: they know where it is, and write none of its lines."""

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Leaves the line to the first rank."""

    def append_quarantine(self, line: dict[str, Any]) -> None:
        """Leaves the line to the first rank."""


def find_weights(path: str | os.PathLike[str]) -> tuple[Path, RunFolder]:
    """The file of weights that a user means by a run folder or a file, and the folder around it, a run's or not.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such run folder or file of weights")
    home = path if path.is_dir() else path.absolute().parent
    folder = RunFolder(home.parent if home.name == "checkpoints" else home)
    if path.is_dir() and not folder.weights.exists():
        raise InputError(f"{path}: holds no model.safetensors; name a run folder with a finished epoch, or a file")
    return folder.weights if path.is_dir() else path, folder


def printable(text: str) -> str:
    r"""The text on one line, whatever bytes a name in it holds: as \udce9 where they are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the file is missing, is not JSON, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def finite(value: Any) -> Any:
    """A copy of a JSON value with every NaN and infinity replaced by None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(finite(value), allow_nan=False) + "\n").encode()
