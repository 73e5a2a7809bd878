"""The share to select as a run goes on."""

from __future__ import annotations

from fastast.errors import InputError

TARGET_SCHEDULES = ("constant", "linear")


def target_at(progress: float, target: float, kind: str = "constant") -> float:
    """The target at a point of the gated part.

    `constant` is `target` throughout. `linear` falls from 1 to `target`, with the mean (1 + target) / 2: compare it
    with a constant gate of that share, not of `target`.

    Args:
        progress: share of the gated part's offered samples that lie before the point, in [0, 1]. For a window take
            its middle, so that the windows' mean is the schedule's.
        target: the final share, in (0, 1].
        kind: one of `TARGET_SCHEDULES`.

    Raises:
        InputError: kind is unknown.
    """
    _check(kind)
    return target if kind == "constant" else 1 - (1 - target) * progress


def planned_work(progress: float, target: float, kind: str = "constant") -> float:
    """Share of the gated part's offered samples that is selected up to a point: the integral of `target_at`.

    Args, Raises: as for `target_at`.
    """
    _check(kind)
    return target * progress if kind == "constant" else progress - (1 - target) * progress**2 / 2


def _check(kind: str) -> None:
    if kind not in TARGET_SCHEDULES:
        raise InputError(f"target schedule {kind!r} is unknown: choose one of {', '.join(TARGET_SCHEDULES)}")
