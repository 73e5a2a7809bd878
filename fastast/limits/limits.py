"""Power limit and clocks of this process's GPU for the time of a run; a guardian process sets and restores them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastast
from fastast.atomic_files import cache_root
from fastast.energy.nvml import Device

# How long the guardian may take to answer; the driver takes up to some hundred milliseconds for a limit.
ANSWER_S = 15.0
AUTO = "auto"


@dataclass(slots=True)
class LimitTrial:
    """What training took under one power limit."""

    watts: float  # the limit
    j_per_sample: float
    samples_per_s: float


@dataclass(slots=True)
class GpuLimits:
    """The limits of one GPU. Nothing is set before `apply`.

    Args:
        device: the GPU.
        power_limit: watts, "auto" (see `fastast.limits.limit_search`), or None.
        lock_clocks: highest SM clock, MHz, or None.

    Attributes:
        before_w: the power limit that was found, or None.
        power_limit_w, clock_mhz: what is set, None where nothing is.
        by: "nvml" or "zeusd" where something was set.
        restored: whether that was undone; None where nothing was set.
        notes: why something was not set, with the command that does it.
        trials: of the search.
    """

    device: Device
    power_limit: float | str | None
    lock_clocks: int | None
    before_w: float | None = None
    min_w: float | None = None
    max_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    by: str | None = None
    restored: bool | None = None
    notes: list[str] = field(default_factory=list)
    trials: list[LimitTrial] = field(default_factory=list)
    _process: subprocess.Popen | None = None
    _refusal: str = ""

    def open(self) -> str | None:
        """Starts the guardian; returns why the options cannot be for this GPU, or None."""
        if self.device.refusal is not None and self.device.mig_uuids:
            self.notes.append(f"limits not set: {self.device.name} is divided by MIG, and they are of the whole GPU")
            return None
        answer = self._start()
        if "error" in answer:
            self.notes.append(f"limits not set on {self.device.name}: {answer['error']}")
            return None
        self.before_w, self.min_w, self.max_w = (answer[name] for name in ("before_w", "min_w", "max_w"))
        watts = self.power_limit
        if not isinstance(watts, float) or self.min_w is None or self.max_w is None:
            return None
        if self.min_w <= watts <= self.max_w:
            return None
        return f"--power-limit {watts:g}: {self.device.name} takes {self.min_w:g} to {self.max_w:g} W"

    def apply(self) -> None:
        """Sets what was asked for by number; what is not permitted becomes a line with the command that does it."""
        if self._process is None:
            return
        commands, undo = [], []
        if isinstance(self.power_limit, float) and not self.set_power(self.power_limit):
            commands.append(self._command(f"-pl {self.power_limit:g}"))
            undo.append(self._command(f"-pl {self.before_w or 0:g}"))
        if self.lock_clocks is not None:
            if self._set("clock_mhz", self.lock_clocks):
                self.clock_mhz = self.lock_clocks
            else:
                commands.append(self._command(f"-lgc 0,{self.lock_clocks}"))
                undo.append(self._command("-rgc"))
        if commands:
            self._tell(f"training goes on without; to set them: {' && '.join(commands)}", undo)

    def can_search(self) -> bool:
        """Whether the power limit may be changed; notes why if not, for "auto"."""
        if self._process is None:
            return False
        if self.before_w is None:
            self.notes.append(f"--power-limit auto: {self.device.name} has no power limit")
            return False
        if self.set_power(self.before_w):
            return True
        by_hand = self._command(f"-pl {0.8 * self.before_w:.0f}")
        undo = [self._command(f"-pl {self.before_w:g}")]
        self._tell(f"--power-limit auto cannot be looked for; 80 % by hand: {by_hand}", undo)
        return False

    def _tell(self, line: str, undo: list[str]) -> None:
        self.notes.append(f"limits of {self.device.name}: {self._refusal}; {line}; to undo: {' && '.join(undo)}")

    def set_power(self, watts: float) -> bool:
        """Sets the power limit; returns whether that was permitted."""
        if not self._set("power_limit_w", watts):
            return False
        self.power_limit_w = watts
        return True

    def restore(self) -> None:
        """Undoes what was set and ends the guardian; may be called again."""
        if self._process is None:
            return
        if self.by is not None:
            answer = self._ask("restore", 1)
            if "restored" not in answer:  # the guardian was killed: its record tells the next one
                self._end()
                answer = {"restored": True} if "error" not in self._start() else answer
            self.restored = answer.get("restored", False)
            if not self.restored:
                back = [self._command(f"-pl {self.before_w or 0:g}")] if self.power_limit_w is not None else []
                back += [self._command("-rgc")] if self.clock_mhz is not None else []
                self.notes.append(f"limits were not restored ({answer['error']}); do it with: {' && '.join(back)}")
        self._end()

    def told(self) -> list[str]:
        """What was set, and what was not, in lines for the reader of a summary."""
        was = {True: "restored", False: "not restored", None: ""}[self.restored]
        set_to = [f"power limit {self.power_limit_w:g} W (before {self.before_w:g} W)"] if self.power_limit_w else []
        set_to += [f"SM clock at most {self.clock_mhz} MHz"] if self.clock_mhz else []
        return [f"{self.device.name}: {', '.join(set_to)} during the run; {was}"] * bool(set_to) + self.notes

    def summary(self) -> dict[str, Any]:
        """Plain values for `summary.json`."""
        return {
            "uuid": self.device.uuid,
            "name": self.device.name,
            "before_w": self.before_w,
            "power_limit_w": self.power_limit_w,
            "clock_mhz": self.clock_mhz,
            "by": self.by,
            "restored": self.restored,
            "trials": [[trial.watts, trial.j_per_sample, trial.samples_per_s] for trial in self.trials],
            "notes": self.notes,
        }

    def _command(self, setting: str) -> str:
        return f"sudo nvidia-smi -i {self.device.uuid} {setting}"

    def _set(self, name: str, value: float) -> bool:
        if self._process is None:
            return False
        answer = self._ask(name, value)
        if "by" not in answer:
            self._refusal = answer["error"]
            return False
        self.by = answer["by"]
        return True

    def _start(self) -> dict[str, Any]:
        records = cache_root() / "limits"
        records.mkdir(parents=True, exist_ok=True)
        package = str(Path(fastast.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastast.limits.limit_guardian", self.device.uuid]
            + [str(records / f"{self.device.uuid}.json"), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # out of reach of Ctrl-C and of whoever ends the trainer's group
            env={**os.environ, "PYTHONPATH": paths},
        )
        answer = self._read()
        if "error" in answer:
            self._end()
        return answer

    def _ask(self, name: str, value: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # if it ended, its last words may still be there
            self._process.stdin.write(json.dumps({name: value}).encode() + b"\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
            return {"error": f"the guardian did not answer within {ANSWER_S:.0f} s"}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the guardian process was ended"}

    def _end(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_S)
        self._process = None
