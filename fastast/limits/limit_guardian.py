"""A small process that sets a GPU's power limit and clocks for a run, and restores them when the run is gone.

    python -m fastast.limits.limit_guardian UUID RECORD PARENT

It alone writes to the GPU, outlives its parent however that ends (SIGKILL included), and restores at the end of its
standard input, at the death of PARENT, or at SIGTERM. Requests and answers are JSON, one a line. RECORD holds what to
restore: if this process is killed as well, the next one that wants this GPU restores it. While it is locked, no other
run may change the GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

import pynvml

from fastast.energy.nvml import explain
from fastast.limits.zeusd import Zeusd, ZeusdError, zeusd_of

# How often it looks whether its parent lives; the end of its input tells at once, unless a fork holds the other end.
POLL_S = 0.5
DENIED = "changing them takes root or CAP_SYS_ADMIN"
BUSY = "another run has set the limits of this GPU"


class Nvml:
    """One GPU, through NVML."""

    by = "nvml"

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def set_power_limit(self, milliwatts: int) -> None:
        """Sets the power limit."""
        pynvml.nvmlDeviceSetPowerManagementLimit(self._handle, milliwatts)

    def lock_clocks(self, mhz: int) -> None:
        """Keeps the SM clock at or below `mhz`."""
        pynvml.nvmlDeviceSetGpuLockedClocks(self._handle, 0, mhz)

    def unlock_clocks(self) -> None:
        """Lets the SM clock go where it wants."""
        pynvml.nvmlDeviceResetGpuLockedClocks(self._handle)


class Guardian:
    """Sets limits of one GPU, and knows how to restore them.

    Args:
        uuid: of the GPU.
        record: an open, locked file.

    Attributes:
        power_mw: the limit before, None where the GPU has none.
    """

    def __init__(self, uuid: str, record: int) -> None:
        self._record = record
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        self._index = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles].index(uuid)
        self._names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        self._handle = handles[self._index]
        self._setter: Nvml | Zeusd = Nvml(self._handle)
        self._restore: dict[str, Any] = json.loads(os.pread(record, 4096, 0).strip() or b"{}")
        if self._restore:  # left behind by a run that was killed together with its guardian
            self.restore()
        self.power_mw = self._read(pynvml.nvmlDeviceGetPowerManagementLimit)

    def _read(self, function: Any) -> Any:
        try:
            return function(self._handle)
        except pynvml.NVMLError:
            return None

    def describe(self) -> dict[str, Any]:
        """What the GPU allows: watts and megahertz, None where it does not tell."""
        bounds = self._read(pynvml.nvmlDeviceGetPowerManagementLimitConstraints) or (None, None)
        watts = [None if value is None else value / 1e3 for value in (self.power_mw, *bounds)]
        return dict(zip(("before_w", "min_w", "max_w"), watts, strict=True))

    def set(self, name: str, value: float) -> str:
        """Sets "power_limit_w" or "clock_mhz", and returns by what."""
        restore = {"power_mw": self.power_mw} if name == "power_limit_w" else {"clocks": True}
        before = self._restore
        self._remember(before | restore)
        try:
            if name == "power_limit_w":
                self._do(lambda setter: setter.set_power_limit(round(value * 1e3)))
            else:
                self._do(lambda setter: setter.lock_clocks(round(value)))
        except (pynvml.NVMLError, ZeusdError):
            self._remember(before)
            raise
        return self._setter.by

    def restore(self) -> None:
        """Restores all that was set."""
        power_mw = self._restore.get("power_mw")
        if power_mw is not None:
            self._do(lambda setter: setter.set_power_limit(power_mw))
        if self._restore.get("clocks"):
            self._do(lambda setter: setter.unlock_clocks())
        self._remember({})

    def _do(self, action: Callable[[Nvml | Zeusd], None]) -> None:
        """Does it through NVML, or through the daemon where NVML refuses."""
        try:
            action(self._setter)
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NO_PERMISSION:
                raise
            daemon = zeusd_of(os.environ, self._index, self._names)
            if daemon is None:
                raise
            self._setter = daemon
            action(daemon)

    def _remember(self, restore: dict[str, Any]) -> None:
        """Writes down what to restore, before anything is set."""
        self._restore = restore
        text = json.dumps(restore).encode() if restore else b""
        os.pwrite(self._record, text.ljust(100), 0)
        os.ftruncate(self._record, len(text))


def _why(error: Exception) -> str:
    if not isinstance(error, pynvml.NVMLError):
        return str(error)
    return DENIED if error.value == pynvml.NVML_ERROR_NO_PERMISSION else explain(error)


def _answer(**values: Any) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(1, json.dumps(values).encode() + b"\n")


def _serve(guardian: Guardian, parent: int) -> None:
    """Answers requests until the parent is gone."""
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_end.append(number))
    pending = b""
    while not asked_to_end and os.getppid() == parent:
        if not select.select([0], [], [], POLL_S)[0]:
            continue
        chunk = os.read(0, 4096)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            try:
                ((name, value),) = json.loads(line).items()
                if name == "restore":
                    guardian.restore()
                    _answer(restored=True)
                else:
                    _answer(by=guardian.set(name, value))
            except (pynvml.NVMLError, ZeusdError) as error:
                _answer(error=_why(error))


def main(uuid: str, record_path: str, parent: int) -> None:
    """Serves one run."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    record = os.open(record_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _answer(error=BUSY)
    try:
        guardian = Guardian(uuid, record)
    except (pynvml.NVMLError, ZeusdError) as error:
        return _answer(error=_why(error))
    except ValueError as error:
        return _answer(error=f"the GPU or {record_path} cannot be read ({error})")
    _answer(**guardian.describe())
    try:
        _serve(guardian, parent)
    finally:
        with contextlib.suppress(pynvml.NVMLError, ZeusdError):
            guardian.restore()
            _answer(restored=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
