"""The places of a bench in words, for the terminal and for the page."""

from __future__ import annotations

ROLE_NAMES = {
    "random_equal_share": "random, equal share",
    "dense_equal_units": "dense, equal units",
    "dense_equal_time": "dense, equal time",
    "dense_equal_joules": "dense, equal joules",
}


def title(role: str, of: str | None, gate: str) -> str:
    """A place in the comparison, in words."""
    return gate if of is None else f"{of}: {ROLE_NAMES[role]}"
