"""Rates of contenders that take turns, and times of single operations."""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from fastast.energy.meter import EnergyMeter
from fastast.energy.reading import MIN_INTERVAL_S

AHEAD = 2  # steps that the host may be ahead of a GPU


def wait_for(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
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
    steps: Mapping[str, Callable[[], int]], device: torch.device, *, rounds: int, block_s: float, lead: int = 2
) -> dict[str, dict[str, Any]]:
    """Lets contenders take turns, so that a machine that slows down or heats up hits all alike.

    Args:
        steps: by name, a function that gives the device one step's work and returns its number of pictures.
        rounds: turns of each.
        block_s: seconds of a turn, about.
        lead: steps at the start of a turn that are not timed: they use up what was prepared during the others' turns.

    Returns:
        By name: "images_per_s" (median over the turns), "range", "n" turns, "block_s", "ms_per_step", and from the
        GPU's own readings "j_per_image", or None with "joules_note".
    """
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    joules: dict[str, list[float | None]] = {name: [] for name in steps}
    images: dict[str, int] = dict.fromkeys(steps, 0)
    with ExitStack() as stack:
        meter = stack.enter_context(EnergyMeter(None if device.type == "cuda" else [], cpu=False))
        for number in range(rounds):
            for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
                step = steps[name]
                for _ in range(lead):
                    step()
                wait_for(device)
                count = num_steps = 0
                with meter.measure(name) as measured:
                    began = time.perf_counter()
                    given: collections.deque[torch.cuda.Event] = collections.deque()
                    while time.perf_counter() - began < block_s:
                        count += step()
                        num_steps += 1
                        if device.type == "cuda":  # or the host would run away from the GPU
                            given.append(torch.cuda.Event())
                            given[-1].record()
                            if len(given) > AHEAD:
                                given.popleft().synchronize()
                    wait_for(device)
                    seconds = time.perf_counter() - began
                blocks[name].append((count / seconds, seconds / num_steps))
                joules[name].append(measured.joules if seconds >= MIN_INTERVAL_S else None)
                images[name] += count
    return {
        name: {
            "images_per_s": statistics.median(rate for rate, _ in found),
            "range": [min(rate for rate, _ in found), max(rate for rate, _ in found)],
            "ms_per_step": 1e3 * statistics.median(step_s for _, step_s in found),
            "n": len(found),
            "block_s": block_s,
            **_energy(joules[name], images[name], device),
        }
        for name, found in blocks.items()
    }


def _energy(joules: list[float | None], num_images: int, device: torch.device) -> dict[str, Any]:
    known = [value for value in joules if value is not None]
    if len(known) == len(joules) and num_images:
        return {"j_per_image": sum(known) / num_images}
    reason = "no GPU" if device.type != "cuda" else "no reading, or turns under 2 s"
    return {"j_per_image": None, "joules_note": reason}
