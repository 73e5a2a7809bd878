"""Runs items one by one, each in a process of its own, and keeps what came of it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu.items import MACHINE, Item
from benchmarks.gpu.settings import NotMeasured, Report, Settings
from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import finite, read_json

TITLE = "GPU suite"
MEASURED, NOT_MEASURED = "measured", "not measured"
FAILED, CRASHED, TIMED_OUT = "failed", "crashed", "timed out"
NOT_HERE = 20  # exit code of an item that cannot be measured here
GRACE_S = 5.0  # between asking an item to end and killing it
RESERVE_S = 3.0  # of the whole time, for writing
TAIL_LINES = 25


def run_item(item: Item, settings: Settings, folder: Path, timeout_s: float, gpus: list[str]) -> dict[str, Any]:
    """Measures one item in a process of its own, which may crash or hang.

    Args:
        item: what to measure.
        settings: its orders.
        folder: for its figures and its log.
        timeout_s: seconds after which it is ended, with all that it started.
        gpus: names of the GPUs that it may use, as CUDA_VISIBLE_DEVICES takes them.

    Returns:
        Of its entry in the results: "status", "reason" (None if measured), "seconds", "figures" (also of an item that
        did not come to its end), and of one that failed the end of its "log".
    """
    figures, log = folder / "figures.json", folder / "log.txt"
    # On a CPU the libraries are there once and for all; a process that uses CUDA must not be forked from one that did.
    context: Any = multiprocessing.get_context("fork" if settings.device == "cpu" else "spawn")
    visible = None if settings.device == "cpu" else ",".join(gpus if item.gpu is None else [gpus[item.gpu]])
    process = context.Process(target=_work, args=(item, settings, figures, log, visible))
    began = time.monotonic()
    process.start()
    process.join(timeout_s)
    late = process.is_alive()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _end_group(process.pid, signum)  # also what a dead item has left behind
        if process.is_alive():
            process.join(GRACE_S)
    process.kill()
    process.join()
    code = process.exitcode
    status, reason = _judge(code, late, timeout_s, log)
    entry: dict[str, Any] = {
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "figures": json.loads(figures.read_text()) if figures.exists() else {},
    }
    if status in (FAILED, CRASHED, TIMED_OUT):
        entry["log"] = _tail(log)
    return entry


def _end_group(pid: int | None, signum: int) -> None:
    try:
        if pid is not None:
            os.killpg(pid, signum)
    except ProcessLookupError:
        pass


def _judge(code: int | None, late: bool, timeout_s: float, log: Path) -> tuple[str, str | None]:
    last = (_tail(log) or ["no reason given"])[-1]
    if late:
        return TIMED_OUT, f"ended after {timeout_s:.0f} s"
    if code == 0:
        return MEASURED, None
    if code == NOT_HERE:
        return NOT_MEASURED, last
    if code is not None and code < 0:
        return CRASHED, f"its process ended by {signal.Signals(-code).name}"
    return FAILED, last


def _tail(log: Path) -> list[str]:
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL_LINES:]


def _work(item: Item, settings: Settings, figures: Path, log: Path, visible: str | None) -> None:
    """The item's process."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    # Whatever the item puts aside goes with its folder, however it ends.
    os.environ["TMPDIR"] = tempfile.tempdir = os.fspath(figures.parent)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(settings.work / "inductor")
    if visible is not None:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    code = 0
    try:
        item.function()(settings, Report(figures))
    except NotMeasured as reason:
        print(reason)
        code = NOT_HERE
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}")
        code = 1
    sys.stdout.flush()
    os._exit(code)  # what a library does at the end of the process is not measured


def _end_with_parent() -> None:
    """A suite that is killed takes its item, and what that has started, with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


class Suite:
    """One results file, and what is still missing in it.

    Args:
        out: the results, a JSON file; one that is there already goes on.
        settings: orders common to all items.
        items: what to measure, by priority.
        gpus: names of the GPUs to use.
        command: the command line, for the results.
        write_page: called with the results after each change.

    Attributes:
        results: what the file holds.

    Raises:
        InputError: `out` holds something else.
    """

    def __init__(
        self,
        out: Path,
        settings: Settings,
        items: list[Item],
        gpus: list[str],
        command: str,
        write_page: Callable[[dict[str, Any]], object],
    ) -> None:
        self._out, self._settings, self._items, self._gpus = out, settings, items, gpus
        self._write_page = write_page
        self.results: dict[str, Any] = {"title": TITLE, "schema": 1, "tiny": settings.tiny, "seed": settings.seed}
        if out.exists():
            self.results = read_json(out)
            if self.results.get("title") != TITLE:
                raise InputError(f"--out {out}: holds something else; name another file")
            for key in ("tiny", "seed"):
                if self.results[key] != getattr(settings, key):
                    raise InputError(f"--out {out}: was begun with --{key} {self.results[key]}; name another file")
        self.results.setdefault("items", {})
        self.results["command"] = command

    def run(self, minutes: float) -> None:
        """Measures what is missing: what was never tried first, then what failed before.

        Raises:
            InputError: the file is of another machine.
        """
        end = time.monotonic() + 60 * minutes - RESERVE_S
        self._look_at_machine(end)
        known = self.results["items"]
        missing = [item for item in self._items if known.get(item.name, {}).get("status") != MEASURED]
        tried = {name for name, entry in known.items() if entry["tried"]}
        for item in sorted(missing, key=lambda item: item.name in tried):
            entry = self._measure(item, end)
            if entry["tried"] or item.name not in tried:  # what an earlier call found stays
                self.results["items"][item.name] = entry
                self._save()

    def _look_at_machine(self, end: float) -> None:
        """Puts hardware and versions at the head of the results; the first call decides what may go on there."""
        entry = self._measure(MACHINE, end)
        found = {key: entry["figures"].pop(key, None) for key in ("hardware", "versions", "measured_at")}
        if found["hardware"] is None:
            print("the machine could not be read; the other items are tried all the same", flush=True)
        else:
            now, earlier = _identity(found), _identity(self.results) or _identity(found)
            for key, value in now.items():
                if value != earlier[key]:
                    was = f"was measured with {key} {earlier[key]}, this is {value}"
                    raise InputError(f"--out {self._out}: {was}; name another file")
            self.results.update(found)
            entry["commit"] = found["versions"]["commit"]
        self.results["items"][MACHINE.name] = entry
        self._save()

    def _measure(self, item: Item, end: float) -> dict[str, Any]:
        """An item's entry; `end` is when the suite's time is up."""
        left_s = end - time.monotonic()
        versions = self.results.get("versions")
        entry: dict[str, Any] = {
            "what": item.what,
            "status": NOT_MEASURED,
            "seconds": 0.0,
            "figures": {},
            "tried": False,
        }
        if versions is not None and versions["dali"] is None and item.needs_dali:
            entry["reason"] = "DALI is not installed"
        elif left_s < (1.0 if self._settings.tiny else item.least_s):
            entry["reason"] = f"no time left: {left_s:.0f} s, and it takes {item.least_s:.0f} at least"
        else:
            timeout_s = min(item.budget_s, left_s)
            print(f"{item.name}: {item.what}, at most {timeout_s:.0f} s", flush=True)
            orders = dataclasses.replace(self._settings, seconds=timeout_s)
            with tempfile.TemporaryDirectory(prefix="fastast-gpu-", ignore_cleanup_errors=True) as folder:
                entry.update(run_item(item, orders, Path(folder), timeout_s, self._gpus))
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry.update(tried=True, budget_s=round(timeout_s, 1), measured_at=now)
            if versions is not None:
                entry["commit"] = versions["commit"]
        reason = "" if entry["reason"] is None else f" ({entry['reason']})"
        print(f"{item.name}: {entry['status']} in {entry['seconds']:.0f} s{reason}", flush=True)
        return entry

    def _save(self) -> None:
        write_whole(self._out, json.dumps(finite(self.results), indent=1, allow_nan=False) + "\n")
        self._write_page(self.results)


def _identity(results: dict[str, Any]) -> dict[str, Any]:
    """What all figures of one file have in common; empty if unknown. The commit may differ: each item has its own."""
    if results.get("hardware") is None:
        return {}
    hardware = {key: results["hardware"].get(key) for key in ("name", "driver", "cores")}
    return {**hardware, **{key: results["versions"].get(key) for key in ("torch", "cuda", "dali", "python")}}
