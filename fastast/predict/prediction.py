"""What a network says of one picture."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """A row of the output of `fastast predict`.

    Attributes:
        path: of the picture, or of a folder that cannot be listed.
        top: classes with their probabilities, the most probable first; empty if the picture cannot be read.
        error: why it cannot, with the remedy; else None.
    """

    path: str
    top: list[tuple[str, float]]
    error: str | None = None
