"""The page of an audit: what was found, with the pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fastast.audit.findings import Findings
from fastast.audit.groups import LEAK, REPEATED, TWO_CLASSES, Group, is_exact
from fastast.audit.judgement import PROBABLE
from fastast.data.catalog import UnreadableError
from fastast.number_text import counted, percent
from fastast.plots import svg
from fastast.record.run_record import MAX_QUARANTINED, clean
from fastast.report.gallery import IMPROBABLE, UNDECODABLE, embedded, square
from fastast.report.render import write_page

MAX_GROUPS, MAX_IN_GROUP, MAX_SUSPECTS, MAX_CLASSES = 40, 6, 60, 40

_SECTIONS = {
    LEAK: (
        "Leaks: validation pictures that are in train",
        "The network has seen them: accuracy on them says nothing. Remove them from train, or from val.",
    ),
    TWO_CLASSES: ("One picture under two labels", "At least one of the labels is wrong."),
    REPEATED: ("Repeated pictures within a split", "They count more than others; in val, so do their mistakes."),
}


def write_audit_page(findings: Findings, path: Path, *, to_judge: Sequence[str] = ()) -> Path:
    """Writes the page; it is self-contained.

    Args:
        findings: what it tells.
        path: the file.
        to_judge: commands after which labels are judged as well, where no network has judged them.

    Raises:
        InputError: it cannot be written.
    """
    pictures = findings.pictures
    num_val = int(pictures.in_val.sum())
    suspects = findings.suspects
    return write_page(
        path,
        "audit_page.html",
        title=f"Audit of {clean(findings.name)} · fastast",
        name=clean(findings.name),
        about=f"{len(pictures) - num_val:,} training and {num_val:,} validation pictures, "
        f"{counted(len(pictures.classes), 'class', 'classes')}",
        told=findings.told(),
        sections=[_section(findings, kind) for kind in _SECTIONS],
        judged=findings.judgement is not None,
        to_judge=[clean(command) for command in to_judge],
        suspects=[shown for row in suspects[:MAX_SUSPECTS] if (shown := _suspect(findings, int(row)))],
        num_suspects=len(suspects),
        improbable=percent(IMPROBABLE, 0),
        probable=percent(PROBABLE, 0),
        classes=_classes(findings),
        num_classes=len(pictures.classes),
        balance=_balance(findings),
        sizes=_sizes(findings),
        size_plot=_size_plot(pictures.sizes) if len(np.unique(pictures.sizes.min(1))) > 1 else None,
        unreadable=[(clean(name), clean(why)) for name, why in findings.unreadable[:MAX_QUARANTINED]],
        num_unreadable=len(findings.unreadable),
        forecast=_forecast(findings),
    )


def _section(findings: Findings, kind: str) -> dict[str, Any]:
    groups = findings.groups_of(kind)
    title, meaning = _SECTIONS[kind]
    return {
        "title": title,
        "meaning": meaning,
        "num": len(groups),
        "groups": [_group(findings, group) for group in _ends(groups, MAX_GROUPS)],
    }


def _ends(items: list[Any], most: int) -> list[Any]:
    """All of them, or as many from either end."""
    return items if len(items) <= most else items[: most // 2] + items[-most // 2 :]


def _group(findings: Findings, group: Group) -> dict[str, Any]:
    exact = all(map(is_exact, group.likeness))
    pictures = findings.pictures
    rows = group.rows
    if group.kind == LEAK and len(rows) > MAX_IN_GROUP:  # some of either split
        in_val = pictures.in_val[rows]
        rows = [row for part in (in_val, ~in_val) for row in np.array(rows)[part][: MAX_IN_GROUP // 2].tolist()]
    shown = []
    for row in rows[:MAX_IN_GROUP]:
        if picture := _picture(findings, row):
            shown.append({**picture, "beside": f"{pictures.split_of(row)}, {clean(pictures.class_of(row))}"})
    return {
        "match": "same bytes" if exact else f"likeness {min(group.likeness):.2f}",
        "pictures": shown,
        "num": len(group.rows),
    }


def _suspect(findings: Findings, row: int) -> dict[str, Any] | None:
    judgement, pictures = findings.judgement, findings.pictures
    assert judgement is not None
    picture = _picture(findings, row)
    if picture is None:
        return None
    other = int(judgement.other[row])
    name = clean(pictures.classes[other]) if other >= 0 else "another class"
    said = f"{name} {percent(float(judgement.sure[row]), 0)}"
    return {**picture, "label": clean(pictures.class_of(row)), "said": said, "split": pictures.split_of(row)}


def _picture(findings: Findings, row: int) -> dict[str, Any] | None:
    """The picture itself, its name, and a tip; None if it is gone by now."""
    path = findings.pictures.path(row)
    try:
        jpeg = square(io.BytesIO(findings.pictures.read(row).data))
    except (UnreadableError, *UNDECODABLE):
        return None
    return {**embedded(jpeg, path), "tip": clean(path)}


def _classes(findings: Findings) -> list[tuple[str, str, str]]:
    """Name, train and val of each class, the smallest first; of many the ends."""
    counts = sorted(findings.class_counts(), key=lambda one: one[1])
    return [(clean(name), f"{train:,}", f"{val:,}") for name, train, val in _ends(counts, MAX_CLASSES)]


def _balance(findings: Findings) -> str:
    train = [count for _, count, _ in findings.class_counts()]
    small, large = min(train), max(train)
    if not small:
        return "A class has no training picture."
    if small == large:
        return "All classes have as many training pictures."
    text = f"The largest class has {large / small:.3g} times the pictures of the smallest."
    return text + (" `--class-weights balanced` weighs rare classes up." if large > 3 * small else "")


def _sizes(findings: Findings) -> list[tuple[str, str]]:
    pictures = findings.pictures
    short, long = pictures.sizes.min(1), pictures.sizes.max(1)
    sizes, counts = np.unique(pictures.sizes, axis=0, return_counts=True)
    common = counts.argmax()
    rows = [
        ("shorter side, px", f"{short.min()} to {short.max()}, median {np.median(short):.0f}"),
        ("most common size", f"{sizes[common, 1]} x {sizes[common, 0]}: {counted(counts[common], 'picture')}"),
        ("different sizes", f"{len(sizes):,}"),
        ("longer than 3 x wide, or wider", f"{int((long > 3 * short).sum()):,}"),
    ]
    return rows + [(kind, f"{count:,}") for kind, count in findings.prints.kinds.most_common(8)]


def _size_plot(sizes: np.ndarray) -> svg.Figure:
    short = sizes.min(1)
    edges = np.unique(np.linspace(short.min(), short.max() + 1, 25).round())
    counts, edges = np.histogram(short, edges)

    def paint(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=svg.SERIES[0])
        svg.number_axis(axes, "shorter side, px")
        svg.from_zero(axes, counts.max() * 1.05)

    label = f"Shorter sides from {short.min()} to {short.max()} pixels, median {np.median(short):.0f}"
    return svg.Figure("Sizes, pictures", svg.draw(paint, label))


def _forecast(findings: Findings) -> Sequence[str]:
    """Lines on what a gate could save."""
    known = findings.forecast
    if known is None:
        return ["No forecast: it takes the losses that a run remembers. Train one, then audit it: fastast audit RUN."]
    share, work = (percent(value, 0) for value in (known.share, known.work))
    return [
        f"What {counted(known.num, 'picture')} still had to teach, by the losses that a run of {known.epochs} epochs "
        f"remembers, is as uneven as if {percent(known.ratio, 0)} of them taught alike and the others nothing.",
        f"--target auto would train {share} of the pictures in a next epoch, at {share} of a dense one's work. As many "
        f"epochs once more, the first of them dense, would take {work} of dense training at this share: an estimate of "
        "the work of training, which leaves evaluation out.",
        "Whether accuracy holds, only fastast bench can say.",
    ]
