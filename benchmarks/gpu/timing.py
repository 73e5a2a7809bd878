"""Times of single operations, rates of contenders that take turns, and memory that suffices."""

from __future__ import annotations

import collections
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.reading import MIN_INTERVAL_S

AHEAD = 2  # steps that the host may be ahead of a GPU
T = TypeVar("T")


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_s(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of one call, each timed alone; two calls to warm up, then at least three and `seconds` of them."""
    for _ in range(2):
        run()
    wait_for(device)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        wait_for(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def race(
    steps: Mapping[str, Callable[[], int]], device: torch.device, *, rounds: int, turn_s: float, lead: int = 2
) -> dict[str, dict[str, Any]]:
    """Lets contenders take turns, so that a machine that slows down or heats up affects all alike.

    Args:
        steps: by name, a function that starts one step on the device and returns its number of pictures.
        rounds, turn_s: number of turns of each, and their seconds, about.
        lead: steps at the start of a turn that are not timed: they use what was prefetched during the others' turns.

    Returns:
        By name: "images_per_s" (median over the turns), "range", "n" turns, "turn_s", "ms_per_step", and from the GPU's
        own readings "j_per_image", or None with "joules_note".
    """
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    joules: dict[str, list[float | None]] = {name: [] for name in steps}
    images: dict[str, int] = dict.fromkeys(steps, 0)
    with EnergyMeter(None if device.type == "cuda" else [], cpu=False) as meter:
        for number in range(rounds):
            for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
                step = steps[name]
                for _ in range(lead):
                    step()
                wait_for(device)
                count = num_steps = 0
                with meter.measure(name) as measurement:
                    began = time.perf_counter()
                    started: collections.deque[torch.cuda.Event] = collections.deque()
                    while time.perf_counter() - began < turn_s:
                        count += step()
                        num_steps += 1
                        if device.type == "cuda":  # otherwise the host would run far ahead of the GPU
                            started.append(torch.cuda.Event())
                            started[-1].record()
                            if len(started) > AHEAD:
                                started.popleft().synchronize()
                    wait_for(device)
                    seconds = time.perf_counter() - began
                turns[name].append((count / seconds, seconds / num_steps))
                joules[name].append(measurement.joules if seconds >= MIN_INTERVAL_S else None)
                images[name] += count
    return {
        name: {
            "images_per_s": statistics.median(rate for rate, _ in found),
            "range": [min(rate for rate, _ in found), max(rate for rate, _ in found)],
            "ms_per_step": 1e3 * statistics.median(step_s for _, step_s in found),
            "n": len(found),
            "turn_s": turn_s,
            **_energy(
                joules[name], images[name], "no GPU" if device.type == "cpu" else "no reading, or turns under 2 s"
            ),
        }
        for name, found in turns.items()
    }


def _energy(joules: list[float | None], num_images: int, reason: str) -> dict[str, Any]:
    known = [value for value in joules if value is not None]
    if len(known) == len(joules) and num_images:
        return {"j_per_image": sum(known) / num_images}
    return {"j_per_image": None, "joules_note": reason}


def largest_fitting(measure: Callable[[int], T], batch_size: int, device: torch.device) -> T:
    """Calls `measure` with a batch size that is halved until memory suffices."""
    while True:
        try:
            return measure(batch_size)
        except torch.OutOfMemoryError:
            if batch_size < 16:
                raise
        finally:
            free_memory(device)
        batch_size //= 2


def free_memory(device: torch.device) -> None:
    """Releases unused memory, also to other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
