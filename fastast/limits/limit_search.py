"""`--power-limit auto`: the limit with the least energy per picture, found in the first dense steps.

Training runs under each limit for some seconds; the lowest joules per picture win, at no more than 5 % less speed.
Published traces of ResNet-50 under such limits: 5 to 16 % less energy (Zeus, https://ml.energy/zeus).
"""

from __future__ import annotations

import math
from time import monotonic

from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.parts import Blocks, PartMeter
from fastast.limits.limits import GpuLimits, LimitTrial
from fastast.number_text import percent

# Shares of the power that training draws. Above that a limit does nothing, below half the slowdown is large.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
MAX_SLOWDOWN = 0.05
# Less is not told from chance: then the limit stays.
LEAST_GAIN = 0.01
# Joules per picture at the old limit, before and after the others: if they differ more, the conditions changed.
MAX_DRIFT = 0.05
# Steps without a change of the share that the CPU decodes, before the search.
STEADY_STEPS = 80
SETTLE_S, TRIAL_S = 2.0, 8.0
BLOCK_S = 1.0


class LimitSearch:
    """Sets one limit after the other while training goes on.

    Args:
        limits: an open `GpuLimits` whose power limit may be changed.
        meter: a started meter of its GPU.
        trial_s: seconds of training under each limit.
        settle_s: seconds after a change that do not count.

    A `PartMeter` calls `start`, `step` and `stop` as it is called itself.
    """

    def __init__(
        self, limits: GpuLimits, meter: EnergyMeter, *, trial_s: float = TRIAL_S, settle_s: float = SETTLE_S
    ) -> None:
        assert limits.before_w is not None
        self.is_done = False
        self._limits, self._meter = limits, meter
        self._trial_s, self._settle_s = trial_s, settle_s
        self._before_w = limits.before_w
        self._ahead: list[float] = [self._before_w]
        self._steps, self._on_cpu = 0, 0.0
        self._settled_s = math.inf
        self._trial: PartMeter | None = None
        self._block_s = 0.0

    def start(self) -> None:
        """Training goes on."""
        if self._trial is not None:
            self._trial.start()

    def stop(self) -> None:
        """Training pauses."""
        if self._trial is not None:
            self._trial.stop()

    def step(self, num_samples: int, *, wait_s: float, on_cpu: float) -> bool:
        """Counts one batch; returns whether the limit is found and stays."""
        if self.is_done:
            return True
        if self._settled_s == math.inf:
            self._steps = self._steps + 1 if on_cpu == self._on_cpu else 0
            self._on_cpu = on_cpu
            if self._steps >= STEADY_STEPS:
                self._settled_s = monotonic() + self._settle_s
        elif self._trial is None:
            if monotonic() >= self._settled_s:
                self._trial = PartMeter(self._meter, skip_steps=0, block_s=BLOCK_S)
                self._trial.start()
                self._block_s = monotonic() + BLOCK_S
        else:
            self._trial.step(num_samples, wait_s=wait_s, on_cpu=on_cpu)
            if monotonic() >= self._block_s:
                self._look(self._trial)
        return False

    def give_up(self) -> None:
        """Ends the search where it was not finished: the limit becomes what it was."""
        if not self.is_done:
            self._end(self._before_w, "the dense part was too short to find a power limit in; it stays")

    def _look(self, trial: PartMeter) -> None:
        """Ends a trial that has lasted long enough; seconds in which it waited for a cold page cache do not count."""
        trial.stop()
        energy = trial.energy()
        assert energy is not None
        if energy.steady.seconds >= self._trial_s:
            self._trial = None
            self._finish(energy.steady)
        else:
            trial.start()
            self._block_s = monotonic() + BLOCK_S

    def _finish(self, blocks: Blocks) -> None:
        trials = self._limits.trials
        if blocks.j_per_sample is None or blocks.reading.watts is None:
            self._end(self._before_w, "joules were not read: the power limit stays")
            return
        trials.append(LimitTrial(self._ahead.pop(0), blocks.j_per_sample, blocks.num_samples / blocks.seconds))
        if len(trials) == 1:
            drawn_w = min(self._before_w, blocks.reading.watts)
            least_w = self._limits.min_w or 0.0
            self._ahead = [w for share in SHARES if (w := round(share * drawn_w)) >= least_w] + [self._before_w]
        elif trials[-1].samples_per_s < (1 - MAX_SLOWDOWN) * trials[0].samples_per_s:
            self._ahead = self._ahead[-1:]  # lower ones are slower still
        if not self._ahead:
            self._choose()
        elif self._limits.set_power(self._ahead[0]):
            self._settled_s = monotonic() + self._settle_s
        else:
            self._end(self._before_w, "the power limit could not be changed any more")

    def _choose(self) -> None:
        first, *others, last = self._limits.trials
        drift = last.j_per_sample / first.j_per_sample - 1
        if abs(drift) > MAX_DRIFT:
            note = f"joules per picture changed by {100 * drift:+.0f} % during the search: the power limit stays"
            return self._end(self._before_w, note)
        full_j = (first.j_per_sample + last.j_per_sample) / 2
        full_speed = (first.samples_per_s + last.samples_per_s) / 2
        fast = [trial for trial in others if trial.samples_per_s >= (1 - MAX_SLOWDOWN) * full_speed]
        best = min(fast, key=lambda trial: trial.j_per_sample, default=first)
        saved, slower = 1 - best.j_per_sample / full_j, 1 - best.samples_per_s / full_speed
        if best is first or saved < LEAST_GAIN:
            return self._end(
                self._before_w, f"no lower power limit saves energy at {percent(MAX_SLOWDOWN, 0)} less speed"
            )
        gain = f"{percent(saved, 1)} fewer joules a picture, {percent(slower, 1)} slower"
        self._end(best.watts, f"power limit {best.watts:g} W: {gain}")
        return None

    def _end(self, watts: float, note: str) -> None:
        self.is_done, self._trial = True, None
        if watts != self._limits.power_limit_w:
            self._limits.set_power(watts)
        self._limits.notes.append(note)
