"""Runs items one by one, each in a process of its own, and keeps their figures."""

from __future__ import annotations

import contextlib
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

from benchmarks.gpu.items import MACHINE, Item, NotMeasured, Report, Settings
from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import finite, read_json

TITLE = "GPU suite"
MEASURED, NOT_MEASURED, FAILED, CRASHED, TIMED_OUT = "measured", "not measured", "failed", "crashed", "timed out"
NOT_HERE = 20  # exit code of an item that cannot be measured on this machine
GRACE_S = 5.0  # between SIGTERM and SIGKILL
RESERVE_S = 3.0  # of the whole time, for writing
TAIL_LINES = 25


def run_item(item: Item, settings: Settings, folder: Path, timeout_s: float, gpus: list[str]) -> dict[str, Any]:
    """Measures one item in a process of its own, which may crash or hang, with its figures and its log in `folder`.

    After `timeout_s` it is stopped, with all processes that it started. `gpus` are names as CUDA_VISIBLE_DEVICES takes
    them. Returns of its entry in the results: "status", "reason" (None if measured), "seconds", "figures" (those so far
    if it did not finish), and the end of its "log" if it failed.
    """
    figures, log = folder / "figures.json", folder / "log.txt"
    # On a CPU, fork saves the imports; a process that uses CUDA must not be forked from one that did.
    context: Any = multiprocessing.get_context("fork" if settings.device == "cpu" else "spawn")
    visible = None if settings.device == "cpu" else ",".join(gpus if item.gpu is None else [gpus[item.gpu]])
    process = context.Process(target=_work, args=(item, settings, figures, log, visible))
    began = time.monotonic()
    process.start()
    process.join(timeout_s)
    late = process.is_alive()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)  # also the children of an item that is dead
        if process.is_alive():
            process.join(GRACE_S)
    process.kill()
    process.join()
    printed = log.read_text(errors="replace").splitlines() if log.exists() else []
    tail = [line for line in printed if line.strip()][-TAIL_LINES:]
    last, code = (tail or ["no reason given"])[-1], process.exitcode
    if late:
        status, reason = TIMED_OUT, f"stopped after {timeout_s:.0f} s"
    elif code < 0:
        status, reason = CRASHED, f"its process ended by {signal.Signals(-code).name}"
    else:
        status, reason = {0: (MEASURED, None), NOT_HERE: (NOT_MEASURED, last)}.get(code, (FAILED, last))
    return {
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "figures": json.loads(figures.read_text()) if figures.exists() else {},
        **({"log": tail} if status in (FAILED, CRASHED, TIMED_OUT) else {}),
    }


def _work(item: Item, settings: Settings, figures: Path, log: Path, visible: str | None) -> None:
    """The item's process."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    # The item's temporary files are removed with its folder, however it ends.
    os.environ["TMPDIR"] = tempfile.tempdir = os.fspath(figures.parent)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.fspath(settings.work / "inductor")
    if visible is not None:
        os.environ.update(CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=visible)
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
    os._exit(code)  # crashes of libraries at exit do not count


def _end_with_parent() -> None:
    """If the suite is killed, its item and the item's children end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


class Suite:
    """The results file `out`, which is completed if it exists; `write_page` gets its content after each change.

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
        self._out, self._settings, self._items, self._gpus, self._write_page = out, settings, items, gpus, write_page
        self.results: dict[str, Any] = {"title": TITLE, "schema": 1, "tiny": settings.tiny, "seed": settings.seed}
        if out.exists():
            self.results = read_json(out)
            if self.results.get("title") != TITLE:
                raise InputError(f"--out {out}: holds something else; name another file")
            for key in ("tiny", "seed"):
                if self.results[key] != getattr(settings, key):
                    raise InputError(f"--out {out}: was started with --{key} {self.results[key]}; name another file")
        self.results.setdefault("items", {})
        self.results["command"] = command

    def run(self, minutes: float) -> None:
        """Measures what is missing: first the items never tried, then those that failed before.

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
            if entry["tried"] or item.name not in tried:  # figures of an earlier call stay
                self.results["items"][item.name] = entry
                self._save()

    def _look_at_machine(self, end: float) -> None:
        """Puts hardware and versions at the head of the results; later calls must have the same ones."""
        entry = self._measure(MACHINE, end)
        found = {key: entry["figures"].pop(key, None) for key in ("hardware", "versions", "measured_at")}
        if found["hardware"] is None:
            print("the machine could not be read; the other items are tried all the same", flush=True)
        else:
            now, earlier = _identity(found), _identity(self.results)
            for key, value in earlier.items():
                if value != now[key]:
                    was = f"was measured with {key} {value}, this is {now[key]}"
                    raise InputError(f"--out {self._out}: {was}; name another file")
            self.results.update(found)
            entry["commit"] = found["versions"]["commit"]
        self.results["items"][MACHINE.name] = entry
        self._save()

    def _measure(self, item: Item, end: float) -> dict[str, Any]:
        """An item's entry; `end` is when the suite's time is up."""
        left_s = end - time.monotonic()
        versions = self.results.get("versions")
        entry = {"what": item.what, "status": NOT_MEASURED, "seconds": 0.0, "figures": {}, "tried": False}
        if versions is not None and versions["dali"] is None and item.needs_dali:
            entry["reason"] = "DALI is not installed"
        elif left_s < (1.0 if self._settings.tiny else item.least_s):
            entry["reason"] = f"no time left: {left_s:.0f} s, and it takes at least {item.least_s:.0f}"
        else:
            timeout_s = min(item.limit_s, left_s)
            print(f"{item.name}: {item.what}, at most {timeout_s:.0f} s", flush=True)
            settings = dataclasses.replace(self._settings, seconds=timeout_s)
            with tempfile.TemporaryDirectory(prefix="fastast-gpu-", ignore_cleanup_errors=True) as folder:
                entry.update(run_item(item, settings, Path(folder), timeout_s, self._gpus))
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
    """What all figures of a file must share; empty if unknown. The commit may differ: each item has its own."""
    if results.get("hardware") is None:
        return {}
    hardware = {key: results["hardware"].get(key) for key in ("name", "driver", "cores")}
    return {**hardware, **{key: results["versions"].get(key) for key in ("torch", "cuda", "dali", "python")}}
