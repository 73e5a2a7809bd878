"""The page of a bench: in a real browser, against its `bench.json`, and where that is not what a bench writes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from fastast.commands.report import run_report
from fastast.errors import InputError
from fastast.plots.svg import spread
from fastast.report.bench_page import write_bench_report
from tests.report.browser import Browser
from tests.report.fake_bench import ARMS, NO_DRIVER, write_bench
from tests.report.test_run_page import BEYOND, FIGURES, contrast, quiet

SHOWN = """[...document.querySelectorAll("figure")].filter(f => f.getBoundingClientRect().width)
  .map(f => f.querySelector("h3").textContent)"""
SHOWN_FIGURES = FIGURES.replace('("figure")]', '("figure")].filter(f => f.getBoundingClientRect().width)')
# Name and cells of the rows of each visible table.
TABLES = """[...document.querySelectorAll("table")].filter(t => t.checkVisibility())
  .map(t => [...t.rows].map(r => [...r.cells].map(c => c.innerText.trim())))"""
# What the pointer reads: texts of the visible picture, each with where it is; and its error bars.
TIPS = """[...document.querySelectorAll("figure svg g:has(> title)")].filter(g => !g.querySelector(":scope > path"))
  .map(g => [g.querySelector("title").textContent, g.querySelector("use").getBoundingClientRect()])
  .filter(([text, box]) => box.width)
  .map(([text, box]) => ({text, x: box.x + box.width / 2, y: box.y + box.height / 2}))"""
BARS = """[...document.querySelectorAll("figure svg g:has(> title) > path")].map(p => p.getBoundingClientRect())
  .filter(box => box.height).map(box => ({height: box.height, middle: box.y + box.height / 2}))"""
# Colours of every visible text and of what is painted behind it.
TEXTS = """(() => {
  const colour = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== "rgba(0, 0, 0, 0)") return c; } };
  const hex = c => "#" + c.match(/\\d+/g).slice(0, 3).map(n => (+n).toString(16).padStart(2, "0")).join("");
  const seen = new Set();
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("");
    if (!text || !e.getBoundingClientRect().width || e.closest("title, script, style, caption")) continue;
    const style = getComputedStyle(e);
    seen.add([hex(e.closest("svg") ? style.fill : style.color), hex(colour(e))].join(" "));
  }
  return [...seen].map(pair => pair.split(" "));
})()"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight arms at four budgets, with joules of all but the peers."""
    folder = tmp_path_factory.mktemp("bench") / "a #1 bench"
    write_bench(folder, num_arms=8, num_budgets=4, has_joules=True)
    assert run_report([str(folder)]) == 0
    return folder


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms at two budgets, without joules."""
    return write_bench(tmp_path_factory.mktemp("small") / "b", num_arms=2, num_budgets=2)


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bench.json").read_text())


def rewrite(source: Path, folder: Path, **changes: Any) -> str:
    """The page of a bench with other values."""
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(json.dumps({**content(source), **changes}))
    return write_bench_report(folder).read_text()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_picture_is_drawn_and_nothing_overflows(browser: Browser, bench: Path, dark: bool, width: int) -> None:
    browser.open(bench / "bench.html", width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for unit in ("units", "seconds", "joules"):
        browser.run(f"document.getElementById('unit-{unit}').click()")
        (figure,) = browser.run(SHOWN_FIGURES)
        assert figure["num_drawn"] > 100
        assert figure["num_series"] > 20
        assert 250 < figure["width"] <= width
        assert 300 < figure["height"] < 420
        assert figure["smallest_px"] > 9
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(BEYOND) == []
        inside = "[...document.querySelectorAll('.scroll')].every(s => s.scrollWidth <= s.clientWidth)"
        assert browser.run(inside)
        names = browser.run("document.querySelector('main').innerText")
        assert all(arm in names for arm in ARMS)
    quiet(browser, bench / "bench.html")


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_contrast(browser: Browser, bench: Path, dark: bool) -> None:
    browser.open(bench / "bench.html", dark=dark)
    pairs = browser.run(TEXTS)
    assert len(pairs) > 9  # ink, muted, seven series, the chosen unit, better, worse
    for ink, paper in pairs:
        assert contrast(ink, paper) >= 4.5, (ink, paper)
    browser.requests.clear()


def test_the_switch_changes_picture_and_costs(browser: Browser, bench: Path) -> None:
    result = content(bench)
    browser.open(bench / "bench.html")
    expected = {"units": ("work", "forward units"), "seconds": ("time", "minutes"), "joules": ("GPU energy", "joules")}
    for unit, (title, axis) in expected.items():
        browser.run(f"document.querySelector('label[for=unit-{unit}]').click()")
        assert browser.run(SHOWN) == [f"Accuracy (top-1) against {title}"]
        assert axis in browser.run("[...document.querySelectorAll('figure')].map(f => f.innerText).join()")
        costs = browser.run(TABLES)[0]
        found = {(row["arm"], row["budget"]): row for row in result["cost_at_equal_accuracy"] if row["unit"] == unit}
        assert {row[0] for row in costs[2:]} == {arm for arm, _ in found}
        for (arm, budget), entry in found.items():
            cell = next(row for row in costs if row[0] == arm)[costs[0].index(f"as dense at {budget}")]
            if entry["ratio"] is not None:
                low, high = entry["interval"]
                assert cell == f"{entry['ratio']:.2f} {low:.2f} to {high:.2f}".replace(" ", "\n", 1)
            elif entry["reached"]:
                assert cell == "less than tried\nat most 0.90"
            else:
                assert cell == "not reached\nat least 1.40"
    assert {entry["ratio"] is None for entry in result["cost_at_equal_accuracy"]} == {True, False}
    quiet(browser, bench / "bench.html")


def test_points_and_bars_stand_at_their_values(browser: Browser, bench: Path) -> None:
    """By the positions on the screen: linear in accuracy, logarithmic in cost, bars as long as the standard errors."""
    points = content(bench)["points"]
    browser.open(bench / "bench.html")
    for unit, form in (("units", "{:,.0f} units"), ("joules", "{:,.0f} J")):
        browser.run(f"document.getElementById('unit-{unit}').click()")
        places = {tip["text"]: (tip["x"], tip["y"]) for tip in browser.run(TIPS)}
        drawn = [point for point in points if point[unit] is not None]
        assert len(places) == len(drawn)
        found = []
        for point in drawn:
            mean, se = (100 * point["top1"][name] for name in ("mean", "se"))
            cost = form.format(point[unit])
            found.append(places[f"{point['arm']}, {point['budget']}: {mean:.2f} ± {se:.2f} % at {cost}, n = 3"])
        x, y = np.array(found).T
        top1, se = (np.array([point["top1"][name] for point in drawn]) for name in ("mean", "se"))
        slope, base = np.polyfit(top1, y, 1)
        assert np.abs(slope * top1 + base - y).max() < 0.6  # pixels
        log_cost = np.log([point[unit] for point in drawn])
        assert np.abs(np.polyval(np.polyfit(log_cost, x, 1), log_cost) - x).max() < 15  # drawn apart where equal
        bars = browser.run(BARS)
        lengths = sorted(bar["height"] for bar in bars)
        assert lengths == pytest.approx(sorted(-2 * slope * se), abs=2.5)
    middle = np.array([bar["middle"] for bar in bars])
    assert np.abs(middle[:, None] - y).min(axis=0).max() < 0.6
    quiet(browser, bench / "bench.html")


def test_the_pointer_reads_a_point(browser: Browser, bench: Path) -> None:
    browser.open(bench / "bench.html")
    hit = """TIPS.filter(t => { const g = document.elementFromPoint(t.x, t.y).closest("g:has(> title)");
      return g && g.querySelector("title").textContent === t.text; }).length""".replace("TIPS", TIPS)
    assert browser.run(hit) >= 28  # of 32; some stand on top of others
    browser.requests.clear()


def test_peers_are_dashed_and_the_reference_is_ink(browser: Browser, bench: Path) -> None:
    dashed = """new Set([...document.querySelectorAll("figure svg path")].map(p => p.style)
      .filter(s => s.strokeDasharray && s.strokeDasharray !== "none").map(s => s.stroke)).size"""
    browser.open(bench / "bench.html", width=390)
    assert browser.run(dashed) == 2
    swatches = browser.run("[...document.querySelectorAll('.legend li')].map(li => [li.textContent, li.innerHTML])")
    assert [name for name, _ in swatches] == list(ARMS)
    assert [name for name, shape in swatches if "dasharray" in shape] == ["torchvision", "timm/train.py"]
    assert [name for name, shape in swatches if "--ink" in shape] == ["dense"]
    shapes = [re.search(r'points="[^"]*"', shape)[0] for _, shape in swatches]  # type: ignore[index]
    assert len(set(shapes)) == 8  # a marker each, so that colour is never all
    browser.requests.clear()


def test_tables_say_what_bench_json_says(browser: Browser, bench: Path) -> None:
    result = content(bench)
    browser.open(bench / "bench.html")
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    costs, accuracy, spent, paired, runs = browser.run(TABLES)
    assert costs[0][1:] == [f"as dense at {budget['name']}" for budget in result["budgets"]]
    for point in result["points"]:
        text = f"{100 * point['top1']['mean']:.2f} ± {100 * point['top1']['se']:.2f} %"
        assert next(row for row in accuracy if row[0] == point["arm"])[accuracy[0].index(point["budget"])] == text
        row = next(row for row in spent if row[0] == f"{point['arm']}, {point['budget']}")
        assert row[1] == f"{point['units']:,.0f} units"
        assert row[3] == ("not measured" if point["joules"] is None else f"{point['joules']:,.0f} J")
        assert row[5] == ("-" if point["share"] is None else f"{100 * point['share']:.2f} %")
    for entry in result["paired"]:
        cell = next(row for row in paired if row[0] == entry["arm"])[paired[0].index(entry["budget"])]
        low, high = entry["interval"]
        numbers = f"{100 * entry['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        plain = cell.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
        assert plain.startswith(f"{entry['outcome']}\n{numbers}, p ")
    for run in result["runs"]:
        row = next(row for row in runs if row[0] == f"{run['arm']}, {run['budget']}")
        assert row[1 + run["seed"]] == f"{100 * run['summary']['accuracy']['val_top1']:.2f} %"
    text = browser.run("document.body.innerText")
    for sentence in [*result["verdict"]["sentences"], result["notes"][0]]:
        assert sentence in text
    assert "random:target=0.3, 1ep, seed 9" in text
    assert "stopped by signal 9" in text
    assert "fastast bench --data /pictures --arms 'dense;random" in text
    links = browser.run("[...document.querySelectorAll('main a')].map(a => a.href)")
    pages = {Path(unquote(urlparse(link).path)) for link in links}
    assert pages == set(bench.resolve().glob("runs/*/report.html"))
    quiet(browser, bench / "bench.html")


def test_theme_and_print(browser: Browser, bench: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(bench / "bench.html", dark=False)
    light = browser.run(paper)
    browser.run('document.getElementById("theme").click()')
    assert browser.run(paper) != light
    browser.run(
        "window.addEventListener('beforeprint', () => { window.unfolded = document.querySelectorAll"
        "('details.printed[open]').length; })"
    )
    browser.call("Page.printToPDF")
    assert browser.run("window.unfolded") == 2
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    browser.run("localStorage.clear()")
    quiet(browser, bench / "bench.html")


def test_missing_joules_are_disabled_with_the_reason(browser: Browser, small: Path) -> None:
    page = write_bench_report(small)
    browser.open(page)
    assert browser.run("document.getElementById('unit-joules').disabled")
    browser.run("document.querySelector('label[for=unit-joules]').click()")
    assert browser.run(SHOWN) == ["Accuracy (top-1) against work"]
    text = browser.run("document.body.innerText")
    assert f"GPU energy: not measured. {NO_DRIVER}." in text
    assert text.count(NO_DRIVER) == 1
    assert NO_DRIVER in browser.run("document.querySelector('label[for=unit-joules]').title")
    quiet(browser, page)


def test_the_unit_of_the_budgets_is_shown_first(small: Path, tmp_path: Path) -> None:
    for kind, unit in (("ep", "units"), ("time", "seconds"), ("joules", "units")):  # joules are not measured
        page = rewrite(small, tmp_path, budgets=[{**budget, "kind": kind} for budget in content(small)["budgets"]])
        assert re.findall(r'id="unit-(\w+)" class="choice" checked', page) == [unit]


def test_one_seed_has_no_bars_and_no_outcome(browser: Browser, tmp_path: Path) -> None:
    page = write_bench_report(write_bench(tmp_path / "b", num_seeds=1, num_budgets=1, num_arms=3))
    browser.open(page)
    assert browser.run(BARS) == []
    assert len(browser.run(TIPS)) == 3
    _, accuracy, paired = browser.run(TABLES)
    assert "±" not in "".join(itertools.chain(*accuracy))
    assert {row[1].split("\n")[0] for row in paired[1:]} == {"unknown"}
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL).lower()
    quiet(browser, page)


def test_hostile_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    folder = write_bench(tmp_path / "b", num_arms=3, num_budgets=2)
    name = '<img src=x onerror=alert(1)>&"\'$x_1$\n\x00 id="y"'
    source = (folder / "bench.json").read_text().replace('"random:target=0.3"', json.dumps(name))
    (folder / "bench.json").write_text(source.replace("stopped by signal 9", "<b>killed</b></svg><script>1</script>"))
    page = write_bench_report(folder)
    shown = name.replace("\n", "�").replace("\x00", "�")
    browser.open(page)
    assert browser.run("document.images.length") == 0
    assert browser.run('document.querySelectorAll("script").length') == 1
    assert shown in browser.run("document.body.textContent")
    assert any(tip["text"].startswith(f"{shown}, 1ep: ") for tip in browser.run(TIPS))
    assert "<b>killed</b></svg><script>1</script>" in browser.run("document.body.innerText")
    twice = "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i)"
    assert browser.run(twice) == []
    quiet(browser, page)


def test_unfinished_and_empty_bench(small: Path, tmp_path: Path) -> None:
    result = content(small)
    nothing = {"paired": [], "cost_at_equal_accuracy": [], "finished": False}
    point = next(point for point in result["points"] if point["arm"] == "dense")
    page = rewrite(small, tmp_path / "a", runs=result["runs"][:1], points=[point], **nothing)
    assert "This bench has not ended: 1 run so far." in page
    assert "against work" in page
    assert "No cost at equal accuracy is known yet." in page
    page = rewrite(small, tmp_path / "b", runs=[], points=[], **nothing)
    assert "No picture: no run has come out yet." in page
    assert "No run came out." in page


def test_wrong_bench_gives_one_line(small: Path, tmp_path: Path) -> None:
    result = content(small)
    source = tmp_path / "bench.json"
    for value in ({}, [], {**result, "points": 3}, {**result, "points": [{}]}, {**result, "verdict": {"text": 1}}):
        source.write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"^[^\n]*bench\.json: [^\n]*$"):
            write_bench_report(tmp_path)
    source.write_text(json.dumps({**result, "schema": 1}))
    with pytest.raises(InputError, match=r"bench\.json: of schema 1, while this version shows schema 2; run the bench"):
        run_report([str(tmp_path)])
    with pytest.raises(InputError, match="a page of its own"):
        run_report([str(small), str(tmp_path)])
    shutil.copy(small / "bench.json", tmp_path)
    with pytest.raises(InputError, match="--out"):
        run_report([str(tmp_path)], str(tmp_path / "no such folder" / "page.html"))


def test_spread_labels_are_apart_and_near() -> None:
    rng = np.random.default_rng(0)
    for num in (1, 2, 5, 9):
        for _ in range(50):
            heights = sorted(rng.uniform(0, 10, num).tolist())
            moved = spread(heights, 1.0, 0.0, 10.0)
            assert all(high - low >= 1 - 1e-9 for low, high in itertools.pairwise(moved))
            assert -1e-9 <= moved[0] <= moved[-1] <= 10 + 1e-9
            if all(high - low >= 1 for low, high in itertools.pairwise(heights)):
                assert moved == pytest.approx(heights)
    assert spread([5.0, 5.0, 5.0], 1.0, 0.0, 10.0) == pytest.approx([4.0, 5.0, 6.0])


def test_series_differ_for_colour_blind_readers() -> None:
    """Least distance in OKLab as people without red or green cones see them (Machado et al., 2009)."""
    style = (Path(__file__).parents[2] / "fastast/report/templates/style.css").read_text()
    eyes = [
        np.eye(3),
        np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
        np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    ]
    to_cones = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    to_lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    for theme in ("light", "dark"):
        block = style.partition("{% set " + theme + " %}")[2].partition("{% endset %}")[0]
        names = ["ink", *(f"series-{i}" for i in range(1, 8))]
        codes = [re.search(rf"--{name}: #(\w+);", block)[1] for name in names]  # type: ignore[index]
        colours = np.array([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in codes])
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        for eye in eyes:
            lab = np.cbrt((linear @ eye.T).clip(0, 1) @ to_cones.T) @ to_lab.T
            apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(8, 1)]
            assert apart.min() > 0.09
