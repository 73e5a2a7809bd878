"""The demo data set: drawn JPEG pictures of shapes, so that everything can be tried without a download.

Difficulty varies on purpose, so that a gate has something to choose. Most pictures have the colour of their class,
which is learned in an epoch or two; and every class has faint, noisy, cluttered and half-hidden pictures, and a few of
another colour or none, in which shape alone tells. Training mirrors pictures, so nothing depends on left and right.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastast.errors import InputError

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

_MARKER = "drawn.json"
_VERSION = 2  # raise it when the pictures change
_SPLITS = ("train", "val")


def draw_dataset(
    out: str | os.PathLike[str],
    *,
    num_classes: int = 12,
    train_per_class: int,
    val_per_class: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draws `out/train/CLASS/*.jpg` and `out/val/CLASS/*.jpg`, or leaves a finished set as it is.

    The same arguments and the same version of Pillow make the same bytes. The set is renamed into place when whole.

    Args:
        out: the folder to make; its parent is made too.
        num_classes: in [2, 16].
        train_per_class: training pictures of each class.
        val_per_class: validation pictures of each class.
        seed: integer >= 0.
        progress: called now and then as `progress(done, total)`, in pictures.

    Raises:
        InputError: too many classes, or `out` holds something else.
    """
    out = Path(out)
    if not 2 <= num_classes <= len(CLASSES):
        raise InputError(f"demo set with {num_classes} classes: must be between 2 and {len(CLASSES)}")
    counts = {"train": train_per_class, "val": val_per_class}
    marker = {"version": _VERSION, "classes": num_classes, "seed": seed, **counts}
    if _is_finished(out, marker):
        return
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).is_file():
        raise InputError(f"{out}: holds something other than a demo set; move it away")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        done, total = 0, num_classes * sum(counts.values())
        for split_index, split in enumerate(_SPLITS):
            for label, name in enumerate(list(CLASSES)[:num_classes]):
                folder = temporary / split / name
                folder.mkdir(parents=True)
                for number in range(counts[split]):
                    rng = np.random.default_rng([seed, split_index, label, number])
                    _draw_picture(rng, name, folder / f"{number:05d}.jpg")
                done += counts[split]
                if progress is not None:
                    progress(done, total)
        (temporary / _MARKER).write_text(json.dumps(marker))
        if (out / _MARKER).is_file() and not _is_finished(out, marker):
            shutil.rmtree(out)  # drawn with other arguments
        try:
            temporary.rename(out)
        except OSError:
            if not _is_finished(out, marker):  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_finished(out: Path, marker: dict[str, int]) -> bool:
    try:
        return json.loads((out / _MARKER).read_text()) == marker
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------ one picture


def _draw_picture(rng: np.random.Generator, name: str, path: Path) -> None:
    width, height = (int(side) for side in rng.integers(72, 136, 2))
    noise, clutter, hidden, faint = rng.random(4)
    coarse = rng.integers(60, 196, (3, 3, 1)) + rng.integers(-18, 19, (3, 3, 3))  # muted, so that ink stands out
    image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    if clutter < 0.5:
        for _ in range(int(rng.integers(3, 12))):
            _draw_clutter(rng, draw, width, height)
    radius = min(width, height) * rng.uniform(0.28, 0.45)
    centre = (rng.uniform(radius, width - radius), rng.uniform(radius, height - radius))
    shape, hue = CLASSES[name]
    ink = _ink(rng, hue, faint=bool(faint < 0.1))
    shape(draw, centre, radius, rng.uniform(0, 2 * math.pi), ink)
    if hidden < 0.15:  # a bar across part of the shape
        left = centre[0] + rng.uniform(-0.6, 0.3) * radius
        bar = (left, 0, left + 0.35 * radius, height)
        draw.rectangle(bar, fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    strength = 8 + 50 * noise**3
    grain = rng.integers(0, 256, (height, width, 1), dtype=np.uint8).astype(np.float32) - 127.5
    pixels = np.asarray(image, np.float32) + grain * (strength / 74)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.01:
        image = image.convert("L")
    image.save(path, "JPEG", quality=int(rng.integers(40, 96)), progressive=bool(rng.random() < 0.1))


def _ink(rng: np.random.Generator, hue: float, *, faint: bool) -> Colour:
    """A colour near the class's own hue, in three of a hundred pictures any colour."""
    hue = hue + rng.normal(0, 0.02) if rng.random() < 0.97 else rng.random()
    saturation = rng.uniform(0.3, 0.45) if faint else rng.uniform(0.7, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, rng.uniform(0.55, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    ink = tuple(int(level) for level in rng.integers(0, 256, 3))
    dx, dy = rng.uniform(-14, 14, 2)
    if rng.random() < 0.5:
        draw.line((x, y, x + 2 * dx, y + 2 * dy), fill=ink, width=int(rng.integers(1, 4)))
    else:
        draw.polygon([(x, y), (x + dx, y + dy), (x - dy, y + dx)], fill=ink)


# ------------------------------------------------------------------------------------------------------ shapes

Shape = Callable[[ImageDraw.ImageDraw, tuple[float, float], float, float, Colour], None]


def _around(centre: tuple[float, float], polar: list[tuple[float, float]]) -> Points:
    """Points from radius and angle around `centre`."""
    return [(centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)) for r, angle in polar]


def _corners(centre: tuple[float, float], radii: list[float], turn: float) -> Points:
    """Points around `centre` at equal angles, with these radii."""
    step = 2 * math.pi / len(radii)
    return _around(centre, [(r, turn + k * step) for k, r in enumerate(radii)])


def _polygon(sides: int) -> Shape:
    return lambda draw, centre, radius, turn, ink: draw.polygon(_corners(centre, [radius] * sides, turn), fill=ink)


def _star(points: int) -> Shape:
    return lambda draw, centre, radius, turn, ink: draw.polygon(
        _corners(centre, [radius, 0.5 * radius] * points, turn), fill=ink
    )


def _box(centre: tuple[float, float], rx: float, ry: float) -> tuple[float, float, float, float]:
    return centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry


def _circle_outline(draw, centre, radius, turn, ink) -> None:
    draw.ellipse(_box(centre, radius, radius), outline=ink, width=max(2, int(radius / 5)))


def _ellipse(draw, centre, radius, turn, ink, *, flat: float) -> None:
    a, b = radius, flat * radius
    draw.ellipse(_box(centre, a, b) if turn < math.pi else _box(centre, b, a), fill=ink)


def _cross(draw, centre, radius, turn, ink) -> None:
    for k in (0, 1):
        ends = _corners(centre, [radius] * 4, turn)[k::2]
        draw.line(ends, fill=ink, width=max(3, int(radius / 3)))


def _crescent(draw, centre, radius, turn, ink) -> None:
    outer = [(radius, turn + math.pi * (0.3 + 1.4 * k / 12)) for k in range(13)]
    inner = [(0.62 * radius, angle) for _, angle in reversed(outer)]
    draw.polygon(_around(centre, outer + inner), fill=ink)


def _stripes(draw, centre, radius, turn, ink) -> None:
    along, across = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    for k in (-1.0, -0.5, 0.0, 0.5, 1.0):
        x, y = centre[0] + k * radius * across[0], centre[1] + k * radius * across[1]
        dx, dy = radius * along[0], radius * along[1]
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=ink, width=max(2, int(radius / 5)))


def _grid(draw, centre, radius, turn, ink, *, dots: bool) -> None:
    step, cos, sin = radius / 2, math.cos(turn), math.sin(turn)
    for row in range(-2, 3):
        for column in range(-2, 3):
            at = (centre[0] + step * (column * cos - row * sin), centre[1] + step * (column * sin + row * cos))
            if dots:
                draw.ellipse(_box(at, step / 3, step / 3), fill=ink)
            elif (row + column) % 2 == 0:
                draw.polygon(_corners(at, [step / math.sqrt(2)] * 4, turn + math.pi / 4), fill=ink)


def _spiral(draw, centre, radius, turn, ink) -> None:
    points = _around(centre, [(radius * k / 40, turn + k / 4) for k in range(41)])
    draw.line(points, fill=ink, width=max(2, int(radius / 7)))


def _zigzag(draw, centre, radius, turn, ink) -> None:
    cos, sin = math.cos(turn), math.sin(turn)
    flat = [(radius * (k - 3) / 3, radius * (0.4 if k % 2 else -0.4)) for k in range(7)]
    points = [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in flat]
    draw.line(points, fill=ink, width=max(2, int(radius / 5)))


CLASSES: dict[str, tuple[Shape, float]] = {
    "stripes": (_stripes, 0 / 12),
    "checkerboard": (partial(_grid, dots=False), 6 / 12),
    "circle_filled": (partial(_ellipse, flat=1.0), 2 / 12),
    "circle_outline": (_circle_outline, 9 / 12),
    "triangle": (_polygon(3), 4 / 12),
    "square": (_polygon(4), 8 / 12),
    "pentagon": (_polygon(5), 11 / 12),
    "hexagon": (_polygon(6), 5 / 12),
    "star_five": (_star(5), 1 / 12),
    "star_six": (_star(6), 7 / 12),
    "cross": (_cross, 3 / 12),
    "crescent": (_crescent, 10 / 12),
    "dots": (partial(_grid, dots=True), 3 / 12),
    "ellipse_filled": (partial(_ellipse, flat=0.72), 8 / 12),
    "spiral": (_spiral, 5 / 12),
    "zigzag": (_zigzag, 10 / 12),
}
"""How each class is drawn, and the usual hue of its ink as a share of the colour circle; a set of n classes takes the
first n. The first twelve have hues of their own, and shapes that resemble each other have distant ones.
"""
