"""Numbers as text, the same in every command and on every page."""

from __future__ import annotations


def percent(value: float | None, digits: int = 2) -> str:
    """A share as text, such as "84.20 %"; "not measured" for None. Accuracies have two digits, other shares one."""
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def counted(number: int, one: str, many: str | None = None) -> str:
    """How many there are of something, such as "1 picture" or "1,234 pictures"; `many` where it is not `one` + s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3m20s" or "1h05m"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m{int(seconds % 60):02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
