"""The page of a bench: in a real browser, against its `bench.json`, and where that is not what a bench writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from fastast.commands.report import run_report
from fastast.errors import InputError
from fastast.report.bench_page import write_bench_report
from tests.report.browser import Browser
from tests.report.fake_bench import GATES, write_bench
from tests.report.test_run_page import BEYOND, FIGURES, quiet

TITLES = ["Top-1 against forward units", "Top-1 against seconds of training"]
CURVES = ["Validation top-1", "Activation, share of offered", "Threshold"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bench(tmp_path_factory.mktemp("bench") / "a #1 bench", num_seeds=2, epochs=4)
    assert run_report([str(folder)]) == 0
    return folder


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench.json").read_text())


def test_every_figure_is_visible(browser: Browser, bench: Path) -> None:
    for dark, width in ((False, 1200), (True, 1200), (False, 320), (True, 320)):
        browser.open(bench / "bench.html", width=width, dark=dark)
        figures: list[dict[str, Any]] = browser.run(FIGURES)
        assert [figure["title"] for figure in figures] == TITLES + CURVES
        for figure in figures:
            assert figure["num_shown"] == 1
            assert figure["num_drawn"] > 15, figure["title"]
            assert figure["num_series"] >= 2, figure["title"]
            assert 250 < figure["width"] <= width
            assert 150 < figure["height"] < 400
            assert figure["smallest_px"] > 9, figure["title"]
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(BEYOND) == []
        names = browser.run(
            "[...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('svg')]"
            ".find(s => s.getBoundingClientRect().width).textContent)"
        )
        for text in names[:4]:  # read without a legend: each line and each point has its name beside it
            assert all(gate in text for gate in GATES)
        quiet(browser, bench / "bench.html")


def test_theme_and_print(browser: Browser, bench: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(bench / "bench.html", dark=False)
    light = browser.run(paper)
    browser.run('document.getElementById("theme").click()')
    dark = browser.run(paper)
    assert dark != light
    browser.open(bench / "bench.html", dark=False)
    assert browser.run(paper) == dark
    ink = browser.run("getComputedStyle(document.body).color")
    # What `printToPDF` shows is light, and the baselines unfold for it.
    browser.run(
        "window.addEventListener('beforeprint', () => { window.unfolded = document.querySelectorAll"
        "('details.printed[open]').length; })"
    )
    browser.call("Page.printToPDF")
    assert browser.run("window.unfolded") == 3
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.run(paper) == "rgba(0, 0, 0, 0)"
    assert browser.run("getComputedStyle(document.body).color") != ink
    browser.run("localStorage.clear()")
    quiet(browser, bench / "bench.html")


def test_page_shows_the_bench(browser: Browser, bench: Path) -> None:
    browser.open(bench / "bench.html")
    result = content(bench)
    text = browser.run("document.body.textContent").replace("\n", " ")
    for line in result["verdict"]["text"].split("\n")[: -len(GATES)]:
        assert line in text
    assert "/pictures/<b>bad</b>.jpg" in text
    assert "did not decode (in " in text
    assert "<i>killed</i>" in text
    assert "fastast bench --data '/pictures/<b>x</b>'" in text
    rows = browser.run(
        "[...document.querySelectorAll('table')].map(t => [...t.rows].map(r => [...r.cells].map(c => c.innerText)))"
    )
    forward = next(row for row in result["rows"] if row["role"] == "gate" and row["gate"] == "forward")
    accuracy = next(row for row in rows[1] if row[0] == "forward")
    mean, error = (100 * forward["val_top1"][key] for key in ("mean", "se"))
    assert accuracy[1:3] == ["2", f"{mean:.2f} ± {error:.2f} %"]
    assert accuracy[rows[1][0].index("GPU energy")] == "not measured"
    (against,) = (gate["against"] for gate in result["verdict"]["gates"] if gate["gate"] == "forward")
    assert next(row for row in rows[0] if row[0] == "forward")[2].startswith(against["random_equal_share"])
    speed = rows[3]  # after the baselines of the table before
    ceiling = f"{forward['machine_ceiling']['mean']:.2f} ± 0.00x"
    assert next(row for row in speed if row[0] == "forward")[speed[0].index("machine's ceiling")] == ceiling
    links = browser.run("[...document.querySelectorAll('main a')].map(a => a.href)")
    assert len(links) == len(result["runs"])
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)
    assert {Path(unquote(urlparse(link).path)).parent.name for link in links} == {
        Path(run["folder"]).name for run in result["runs"]
    }
    quiet(browser, bench / "bench.html")


def test_joules_replace_units_where_measured(tmp_path: Path) -> None:
    page = write_bench_report(write_bench(tmp_path / "b", num_seeds=1, epochs=3, j=2.0)).read_text()
    assert "Top-1 against GPU joules" in page
    assert "dense, equal joules" in page
    assert "No verdict: a comparison needs two seeds" in page
    assert "nan" not in page.lower().replace("resnan", "")


def test_unfinished_and_empty_bench(bench: Path, tmp_path: Path) -> None:
    result = content(bench)
    dense = [run for run in result["runs"] if run["role"] == "dense"][:1]
    row = next(row for row in result["rows"] if row["role"] == "dense")
    unfinished = {"finished": False, "runs": dense, "rows": [row], "parts": None, "parts_note": "too slow"}
    verdict = {"text": "No verdict: a comparison needs two seeds at least on both sides.", "gates": [], "winners": []}
    (tmp_path / "bench.json").write_text(json.dumps({**result, **unfinished, "verdict": verdict}))
    page = write_bench_report(tmp_path).read_text()
    assert "This bench has not ended: 1 run so far." in page
    assert "No verdict" in page
    assert "is not measured: too slow" in page
    assert "Validation top-1: no epoch is recorded." in page
    nothing = {
        **unfinished,
        "runs": [],
        "rows": [],
        "finished": True,
        "verdict": {**verdict, "text": "No verdict: none"},
    }
    (tmp_path / "bench.json").write_text(json.dumps({**result, **nothing}))
    assert "No run came out." in write_bench_report(tmp_path).read_text()


def test_wrong_bench_gives_one_line(bench: Path, tmp_path: Path) -> None:
    result = content(bench)
    for value in ({}, [], {**result, "rows": 3}, {**result, "rows": [{}]}, {**result, "verdict": {"text": 1}}):
        (tmp_path / "bench.json").write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"bench\.json"):
            write_bench_report(tmp_path)
    with pytest.raises(InputError, match="a page of its own"):
        run_report([str(bench), str(tmp_path)])
    shutil.copy(bench / "bench.json", tmp_path)
    with pytest.raises(InputError, match="--out"):
        run_report([str(tmp_path)], str(tmp_path / "no such folder" / "page.html"))
