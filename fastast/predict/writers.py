"""Predictions as a table for people, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from fastast.errors import InputError
from fastast.predict.prediction import Prediction
from fastast.run_folder import printable

_ROW_GROUP = 65536  # rows of a Parquet file held in memory
_WIDEST = 24  # characters of a class name in the table


def column_names(top: int) -> list[str]:
    """Columns of CSV and Parquet: path, prediction, probability, prediction_2, probability_2, ..."""
    pairs = ((f"prediction{end}", f"probability{end}") for end in ["", *(f"_{i}" for i in range(2, top + 1))])
    return ["path", *itertools.chain.from_iterable(pairs)]


def to_csv(predictions: Iterable[Prediction], classes: Sequence[str], top: int) -> Iterator[str]:
    """Lines; a picture that could not be read has only its path."""
    line = io.StringIO()
    writer = csv.writer(line)
    for row in itertools.chain([column_names(top)], (_cells(prediction, top, "") for prediction in predictions)):
        writer.writerow(row)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def to_json_lines(predictions: Iterable[Prediction], classes: Sequence[str], top: int) -> Iterator[str]:
    """One object a line: path, and predictions with class and probability, or error."""
    for path, best, error in predictions:
        if error is not None:
            yield json.dumps({"path": path, "error": error}, ensure_ascii=False) + "\n"
            continue
        found = [{"class": name, "probability": round(probability, 6)} for name, probability in best]
        yield json.dumps({"path": path, "predictions": found}, ensure_ascii=False) + "\n"


def to_table(predictions: Iterable[Prediction], classes: Sequence[str], top: int) -> Iterator[str]:
    """Columns of one width: each class with its probability; the path last, since it can be of any length."""
    width = max(4, min(_WIDEST, max(len(printable(name)) for name in classes)))
    yield "".join(f"{name:{width}}  prob   " for name in ["top", *(f"{i}." for i in range(2, top + 1))]) + "path\n"
    for path, best, error in predictions:
        cells = [f"{_shortened(name, width):{width}} {probability:.4f}  " for name, probability in best]
        if error is not None:
            cells = [f"{'not read':{(width + 9) * top}}"]
        yield "".join(cells) + printable(path) + "\n"


Lines = Callable[[Iterable[Prediction], Sequence[str], int], Iterator[str]]
TEXTS: dict[str, Lines] = {"table": to_table, "csv": to_csv, "jsonl": to_json_lines}
FORMATS = (*TEXTS, "parquet")


def write_parquet(file: BinaryIO, predictions: Iterable[Prediction], top: int) -> None:
    """Writes the columns of the CSV, null where a picture could not be read.

    Args:
        file: takes the whole Parquet file.
        predictions: taken as they come; 65,536 are held at a time.
        top: pairs of columns.
    """
    pyarrow = require_pyarrow()
    names = column_names(top)
    kinds = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in names]
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)))
    remaining = (_cells(prediction, top, None) for prediction in predictions)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while rows := list(itertools.islice(remaining, _ROW_GROUP)):
            columns = [[_utf8(cell) for cell in column] for column in zip(*rows, strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))


def require_pyarrow() -> Any:
    """The module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install pyarrow, or choose --format csv or jsonl") from None
    return pyarrow


def _cells(prediction: Prediction, top: int, missing: str | None) -> list[Any]:
    """A row of CSV (missing: "") or of Parquet (missing: None)."""
    pairs: list[Any] = []
    for name, probability in prediction.top:
        pairs += [name, probability if missing is None else f"{probability:.6f}"]
    return [prediction.path, *pairs, *[missing] * (2 * top - len(pairs))]


def _utf8(cell: Any) -> Any:
    """Text without the surrogates that stand for bytes of file names that are not UTF-8: those are escaped."""
    return cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell


def _shortened(name: str, width: int) -> str:
    text = printable(name)
    return text if len(text) <= width else text[: width - 3] + "..."
