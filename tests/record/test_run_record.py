"""Run folders are untrusted: damaged lines are skipped, wrong files are one clear error, nothing is a traceback."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastast.errors import InputError
from fastast.record import columns as columns_module
from fastast.record.run_record import read_record
from fastast.report import gallery
from fastast.report.run_page import write_comparison, write_report
from tests.report.fake_run import write_json, write_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("record") / "run", epochs=2, gpus=1)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "run")


def change(path: Path, *keys: str, value: Any) -> None:
    """Sets one value of a JSON file."""
    content = entry = json.loads(path.read_text())
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    write_json(path, content)


def test_finished_run_is_read(finished: Path) -> None:
    record = read_record(finished)
    assert record.num_damaged == 0
    assert len(record.epochs) == 2
    assert len(record.steps["offered"]) == 20
    assert record.steps["phase"].tolist() == ["warmup"] * 10 + ["gated"] * 10
    assert np.isnan(record.steps["threshold"][:10]).all()
    assert record.number("accuracy", "val_top1") == pytest.approx(0.6)
    assert record.number("energy", "cpu_j") is None
    assert len(record.power) == 71 / 0.05
    assert (len(record.quarantine), record.num_quarantined) == (200, 230)


DAMAGED = [
    "{",
    "[1, 2]",
    "null",
    '{"kind": "step", "phase": "gated", "epoch": 1, "offered": "many"}',
    '{"kind": "step", "phase": "gated", "epoch": 1, "offered": null}',
    '{"kind": "step", "phase": "gated", "epoch": 1, "offered": -5}',
    '{"kind": "step", "phase": 3, "epoch": 1, "offered": 5}',
    '{"kind": "step", "phase": "gated", "epoch": true, "offered": 5}',
    '{"kind": "epoch", "phase": "gated"}',
    '{"kind": "epoch", "phase": "gated", "epoch": [3]}',
    '{"kind": "epoch", "phase": "gated", "epoch": 3, "hist": 3}',
    '{"kind": "epoch", "phase": "gated", "epoch": 3, "hist": {"edges": [0, 1], "selected": [1], "skipped": [2]}}',
    '{"kind": "epoch", "phase": "gated", "epoch": 3, "hist": {"edges": [0], "selected": ["1"], "skipped": [2]}}',
    '{"kind": "epoch", "phase": "gated", "epoch": 3, "hist": {"edges": [1, 0], "selected": [1, 1], "skipped": [2, 2]}}',
    "[" * 100_000,
    "\x00\xff",
]


def test_damaged_metrics_lines_are_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.writelines(line + "\n" for line in DAMAGED)
        file.write('{"kind": "other", "phase": ""}\n{"kind": "step", "epoch": 3, "phase": "ga')
    record = read_record(run)
    assert record.num_damaged == len(DAMAGED) + 1
    assert len(record.epochs) == 2
    assert f"{len(DAMAGED) + 1} damaged lines" in write_report(run).read_text()


@pytest.mark.parametrize("value", [0.0, -1.0, 9e14, 1e-300])
def test_odd_values_are_drawn(run: Path, value: float) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[9:]:  # one step of the warm-up goes first, one epoch is left
        line |= {key: value for key, old in line.items() if isinstance(old, float)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[9:12] + lines[-1:]))
    (run / "power.csv").write_text("t_s,uuid,w,energy_mj,phase\n0,GPU,0,,\n")
    page_or_one_line(run)


def test_non_finite_numbers_are_not_drawn(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, value in zip(lines, [math.nan, math.inf, -math.inf, 10**400, 1e308] * 9, strict=False):
        line |= {
            "activation": value,
            "threshold": value,
            "offered_per_s": value,
            "val_top1": value,
            "train_loss": value,
        }
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(run / "summary.json", "accuracy", "val_top1", value=math.nan)
    page = write_report(run).read_text()
    assert read_record(run).num_damaged == 0
    assert "nan" not in page.lower().replace("resnan", "")
    assert ">inf" not in page.lower()


WRONG = [
    (("summary.json", "accuracy"), 3, "accuracy should be an object"),
    (("summary.json", "energy", "gpu_j"), "much", 'energy.gpu_j should be a number, not "much"'),
    (("summary.json", "energy", "savings_measured"), [1], "energy.savings_measured should be a number"),
    (("summary.json", "energy", "notes"), "GPU", "energy.notes should be a list"),
    (("summary.json", "energy", "notes"), [1], "energy.notes should be a list of strings"),
    (("summary.json", "energy", "source"), 1, "energy.source should be a string"),
    (("summary.json", "model", "arch"), {}, "model.arch should be a string"),
    (("summary.json", "time_s", "total"), True, "time_s.total should be a number"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG)
def test_wrong_types_give_one_line(run: Path, keys: tuple[str, ...], value: Any, message: str) -> None:
    change(run / keys[0], *keys[1:], value=value)
    with pytest.raises(InputError) as error:
        write_report(run)
    assert message in str(error.value)
    assert str(run / keys[0]) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "classes.json"])
@pytest.mark.parametrize("content", [b"", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": ', b'[{"a": 1}]'])
def test_wrong_json_gives_one_line(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        write_report(run)


def test_wrong_samples_give_one_line(run: Path) -> None:
    path = run / "samples.npz"
    whole = dict(np.load(path))
    for change_to in (
        b"",
        b"PK\x03\x04 not a zip",
        path.read_bytes()[:700],
        {**whole, "label": whole["label"].astype(float)},
        {**whole, "offered": whole["offered"][:3]},
        {**whole, "path_bytes": whole["id"].astype(str)},
        {**whole, "path_bytes": whole["path_bytes"][1:]},
        {**whole, "path_starts": whole["path_starts"][:-1]},
        {**whole, "path_starts": whole["path_starts"][::-1]},
        {**whole, "id": np.array([{}, {}], dtype=object)},
        {key: value for key, value in whole.items() if key != "selected"},
    ):
        if isinstance(change_to, bytes):
            path.write_bytes(change_to)
        else:
            np.savez(path, **change_to)
        with pytest.raises(InputError, match=r"samples\.npz"):
            write_report(run)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").replace(path)
    with pytest.raises(InputError, match=r"samples\.npz"):
        write_report(run)


def test_damaged_power_rows(run: Path) -> None:
    path = run / "power.csv"
    with path.open("a", encoding="utf-8") as file:
        file.write("nan,GPU,3,,x\n1,GPU\n1,GPU,-3,,x\n1,GPU,inf,,x\n1e300,GPU,3,,x\nx,GPU,3,,\n")
    assert read_record(run).num_damaged == 6
    path.write_text("second,watt\n1,2\n")
    with pytest.raises(InputError, match=r"power\.csv: the first line should be t_s,uuid,w"):
        read_record(run)


def test_folder_without_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(InputError, match="--out"):
        write_report(run, tmp_path / "no such folder" / "page.html")


def test_unfinished_run(run: Path) -> None:
    for name in ("summary.json", "samples.npz", "power.csv", "classes.json", "quarantine.jsonl"):
        (run / name).unlink()
    page = write_report(run).read_text()
    assert "Not finished: 60.00\u00a0% top-1 after epoch 2" in page
    assert "Power, watts" not in page
    (run / "metrics.jsonl").unlink()
    page = write_report(run).read_text()
    assert "no epoch has ended yet" in page  # though predictions are there
    assert "<svg" not in page


def test_lone_surrogates_and_control_characters(run: Path) -> None:
    write_json(run / "classes.json", ["\ud800", "a\x00b\x1b[31m", "\N{CJK UNIFIED IDEOGRAPH-72AC}"])
    change(run / "config.json", "arch", value="\udcff$\\frac$")
    odd = run.with_name("$\\frac{ #fa57ff url(#x\N{CJK UNIFIED IDEOGRAPH-72AC}")
    shutil.copytree(run, odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_comparison([str(odd), str(run)], str(odd.with_suffix(".html")))
    change(run / "summary.json", "stopped", value="signal\ud800")
    rows = (run / "power.csv").read_text().replace(",gated", ",$\\frac{").replace("GPU-", "\x07$^")
    (run / "power.csv").write_text(rows)
    page = write_report(run).read_text(encoding="utf-8")
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "\N{CJK UNIFIED IDEOGRAPH-72AC}" in page
    assert "stopped before its end (signal" in page


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)
places = st.sampled_from(
    [
        *(
            ("summary.json", key)
            for key in ("stopped", "argv", "resumes", "hardware", "data", "gate", "energy", "seed")
        ),
        *(("summary.json", "gate", key) for key in ("name", "target", "activation_rate", "warmup_epochs")),
        *(("summary.json", "energy", key) for key in ("notes", "run_savings_measured", "savings_estimated", "idle_w")),
        *(("summary.json", "time_s", key) for key in ("total", "data_wait")),
        *(("config.json", key) for key in ("target", "batch_size", "gate", "epochs", "arch")),
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=places, value=values)
def test_any_summary_gives_page_or_one_line(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: Any
) -> None:
    run = tmp_path_factory.mktemp("any") / "run"
    # No figures, which would take most of the time.
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("power.csv", "samples.npz", "metrics.jsonl"))
    change(run / place[0], *place[1:], value=value)
    page_or_one_line(run)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(st.sampled_from(["activation", "hist", "val_top1", "threshold"]), values), max_size=4))
def test_any_metrics_give_a_page(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    run = tmp_path_factory.mktemp("any") / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("power.csv", "samples.npz", "summary.json"))
    with (run / "metrics.jsonl").open("a") as file:
        for kind, line in itertools.product(("step", "epoch"), lines):
            file.write(json.dumps({"kind": kind, "phase": "gated", "epoch": 3, "offered": 9999, **line}) + "\n")
    page_or_one_line(run)


def page_or_one_line(run: Path) -> None:
    message, page = "", b"</html>"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            page = write_report(run).read_bytes()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert page.endswith(b"</html>")


def test_thumbnails_are_stored_where_possible(run: Path, tmp_path: Path) -> None:
    page = write_report(run).read_text()
    names = sorted(path.name for path in (run / "thumbs").iterdir())
    assert len(names) == 22
    assert page.count("data:image/jpeg") == 22 + 8 + 7  # of these, 8 are suspected as well; 7 mistakes
    assert "2 pictures could not be shown" in page
    (run / "thumbs").rename(run / "old")
    (run / "thumbs").write_text("in the way")  # root may write to a read-only folder, hence this file
    assert write_report(run, tmp_path / "page.html").read_text().count("data:image/jpeg") == 37


def test_paths_of_samples_are_streamed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of one width took over 1 GB at 14 million pictures."""
    monkeypatch.setattr(columns_module, "_PATHS", 2)
    paths = ["a/0.jpg", "", "caf\udce9/ü.jpg", "x" * 300, "b"]
    with np.load(run / "samples.npz") as file:
        columns = {name: file[name][:5] for name in file.files if not name.startswith("path")}
    with open(run / "samples.npz", "wb") as file:
        catalog: Any = SimpleNamespace(num_samples=5, path=paths.__getitem__)
        columns_module.write_columns(file, columns, catalog)
    samples = read_record(run).samples
    assert samples is not None
    assert [samples.path(row) for row in range(5)] == paths
    assert all(np.array_equal(getattr(samples, name), column, equal_nan=True) for name, column in columns.items())


def test_special_files_are_not_opened(run: Path, tmp_path: Path) -> None:
    columns = dict(np.load(run / "samples.npz"))
    os.mkfifo(tmp_path / "pipe")
    wide = tmp_path / "wide.png"
    # The header of a 20000 x 20000 PNG.
    wide.write_bytes(
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x00\x00N " * 2 + b"\x08\x02\x00\x00\x00" + b"\x00" * 30
    )
    odd = [str(tmp_path / "pipe"), str(wide), "/dev/zero", str(tmp_path), "a" * 4000, ""]
    num = len(columns["id"])
    del columns["path_bytes"], columns["path_starts"]
    columns["path"] = np.array([odd[i % len(odd)].encode() for i in range(num)])  # as earlier versions wrote them
    np.savez(run / "samples.npz", **columns)
    (run / "predictions.npz").unlink()
    page = write_report(run).read_text()
    assert "data:image/jpeg" not in page
    assert f"{num} pictures could not be shown" in page


@pytest.mark.parametrize(("limit", "reason"), [("MAX_PIXELS", "80 x 60 pixels"), ("MAX_BYTES", "bytes are too many")])
def test_large_pictures_are_not_opened(run: Path, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str) -> None:
    monkeypatch.setattr(gallery, limit, 60 * 80 - 1 if limit == "MAX_PIXELS" else 100)
    (run / "metrics.jsonl").unlink()
    page = write_report(run).read_text()
    assert "data:image/jpeg" not in page
    with pytest.raises(ValueError, match=reason):
        gallery.thumbnail(read_record(run).samples.path(5))  # type: ignore[union-attr]
