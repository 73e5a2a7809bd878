"""Where the network is wrong: the confusion matrix, accuracy by class, and its most confident mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastast.number_text import percent
from fastast.record.run_record import RunRecord
from fastast.report.gallery import picture

MATRIX_CLASSES = 20  # more are unreadable as a matrix
NUM_CONFUSIONS = 15
NUM_MISTAKES = 24


def mistakes(record: RunRecord) -> dict[str, Any] | None:
    """The values of the template, or None where no evaluation is recorded, or none that fits the classes."""
    known = record.predictions
    if known is None or not record.classes:
        return None
    num_classes = len(record.classes)
    rows = np.flatnonzero(
        known.known & (known.predicted < num_classes) & (known.label >= 0) & (known.label < num_classes)
    )
    if not len(rows):
        return None
    label, predicted = known.label[rows].astype(np.int64), known.predicted[rows].astype(np.int64)
    total = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[label == predicted], minlength=num_classes)
    wrong = rows[label != predicted]
    return {
        "num": len(rows),
        "num_wrong": len(wrong),
        "matrix": _matrix(record, label, predicted, total) if num_classes <= MATRIX_CLASSES else None,
        "confusions": _confusions(record, label, predicted, total) if num_classes > MATRIX_CLASSES else [],
        "classes": _by_class(record, right, total),
        "pictures": _most_confident(record, wrong),
    }


def _matrix(record: RunRecord, label: np.ndarray, predicted: np.ndarray, total: np.ndarray) -> list[dict[str, Any]]:
    """Rows by true class: its name, its number of pictures, and for each predicted class count, share and tip."""
    size = len(record.classes)
    counts = np.bincount(label * size + predicted, minlength=size * size).reshape(size, size)
    rows = []
    for true, name in enumerate(record.classes):
        cells = [
            {
                "count": int(count),
                "share": f"{100 * count / max(1, total[true]):.0f}",
                "right": true == guess,
                "tip": f"{name}, taken for {record.classes[guess]}: {count} of {total[true]}",
            }
            for guess, count in enumerate(counts[true])
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def _confusions(
    record: RunRecord, label: np.ndarray, predicted: np.ndarray, total: np.ndarray
) -> list[tuple[str, str, str]]:
    """The pairs that are confused most often: true class, what it is taken for, and how often."""
    pairs, counts = np.unique(np.stack([label, predicted], 1)[label != predicted], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:NUM_CONFUSIONS]
    return [
        (record.classes[true], record.classes[guess], f"{count} of {total[true]} ({percent(count / total[true], 0)})")
        for (true, guess), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _by_class(record: RunRecord, right: np.ndarray, total: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of each class that has pictures, the least accurate first."""
    accuracy = right / np.maximum(total, 1)
    order = np.argsort(accuracy, kind="stable")
    return [
        {
            "name": record.classes[label],
            "length": f"{100 * accuracy[label]:.1f}",
            "text": f"{percent(float(accuracy[label]), 0)} of {total[label]:,}",
        }
        for label in order.tolist()
        if total[label]
    ]


def _most_confident(record: RunRecord, wrong: np.ndarray) -> list[dict[str, Any]]:
    """What the page shows of the mistakes of which the network was surest."""
    known = record.predictions
    assert known is not None
    pictures: list[dict[str, Any]] = []
    for row in wrong[np.argsort(-known.probability[wrong], kind="stable")][: 2 * NUM_MISTAKES]:  # some may be gone
        if len(pictures) == NUM_MISTAKES:
            break
        label, guess = record.classes[known.label[row]], record.classes[known.predicted[row]]
        sure = percent(float(known.probability[row]), 0).replace(" ", "\N{NO-BREAK SPACE}")
        shown = picture(known.path(row), f"{label}, taken for {guess} with probability {sure}")
        if shown:
            pictures.append({**shown, "label": label, "guess": guess, "sure": sure})
    return pictures
