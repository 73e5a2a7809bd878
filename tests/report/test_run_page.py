"""The page in a real browser: quiet, self-contained, readable in both themes and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastast.report.run_page import write_comparison, write_report
from tests.report.browser import Browser
from tests.report.fake_run import write_run

# Area of every figure, and of what is drawn in it: lines, text and shapes that have a size and are not the paper's.
FIGURES = """[...document.querySelectorAll("figure")].map(figure => {
  const shown = [...figure.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  const svg = shown[0], box = svg && svg.getBoundingClientRect();
  const paper = getComputedStyle(document.body).backgroundColor;
  const drawn = svg ? [...svg.querySelectorAll("path, text, use")].filter(shape => {
    const style = getComputedStyle(shape), size = shape.getBoundingClientRect();
    const colour = shape.tagName === "text" || style.stroke === "none" ? style.fill : style.stroke;
    return size.width + size.height > 2 && colour !== "none" && colour !== paper;
  }) : [];
  return {title: figure.querySelector("h3").textContent, num_shown: shown.length, label: svg.ariaLabel,
          width: box.width, height: box.height, num_drawn: drawn.length,
          num_series: svg.querySelectorAll('[style*="--series-"]').length,
          smallest_px: Math.min(...[...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height))};
})"""
# What reaches beyond the window, apart from what scrolls in a box of its own.
BEYOND = """[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > window.innerWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))"""
# The colours that some elements have, as #rrggbb.
TO_HEX = """[...new Set([...document.querySelectorAll("SELECTOR")].map(e => getComputedStyle(e).color))]
  .map(rgb => "#" + rgb.match(/\\d+/g).map(n => (+n).toString(16).padStart(2, "0")).join(""))"""
TITLES = [
    "Top-1 against seconds",
    "Top-1 against GPU joules",
    "Validation accuracy",
    "Loss, nats",
    "Share that is trained",
    "Loss of selected and skipped samples",
    "Throughput, offered per second",
    "Data wait, share of time",
    "Power, watts",
    "Threshold",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    dense = write_run(root / "dense", gpus=1, name="dense")
    return write_report(write_run(root / "run"), baseline=dense)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / "a", gpus=1), write_run(root / "b", gpus=0, name="random")]
    return write_comparison([str(run) for run in runs], str(root / "both.html"))


def quiet(browser: Browser, page: Path) -> None:
    """Nothing was complained of and nothing fetched since the last call, but the page itself."""
    asked = [url for url in browser.requests if not url.startswith("data:")]
    assert set(asked) == {page.resolve().as_uri()}
    assert browser.problems == []
    browser.requests.clear()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 320])
def test_every_figure_is_visible(browser: Browser, page: Path, dark: bool, width: int) -> None:
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    figures: list[dict[str, Any]] = browser.run(FIGURES)
    assert [figure["title"] for figure in figures] == TITLES
    for figure in figures:
        assert figure["num_shown"] == 1
        assert figure["num_drawn"] > 8, figure["title"]
        assert figure["num_series"] >= 1, figure["title"]
        assert 250 < figure["width"] <= width
        assert 150 < figure["height"] < 400
        assert figure["smallest_px"] > 9, figure["title"]
        assert len(figure["label"]) > 30
    assert browser.run("[...document.images].every(image => image.naturalWidth === 96)")
    assert browser.run("document.images.length") == 22 + 7 + 7  # less two that are no pictures; suspected; mistakes
    quiet(browser, page)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_no_horizontal_scrolling(browser: Browser, page: Path, comparison: Path, width: int) -> None:
    for file in (page, comparison):
        browser.open(file, width=width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(BEYOND) == []
        quiet(browser, file)


def test_theme_follows_the_system_and_the_button(browser: Browser, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('figure svg [style*=\"stroke: var(--series-1)\"]')).stroke"
    press = 'document.getElementById("theme").click()'
    seen = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        seen[dark] = (browser.run(paper), browser.run(line))
    assert seen[False][0] != seen[True][0]
    assert seen[False][1] != seen[True][1]
    assert browser.run('document.getElementById("theme").textContent') == "Light"
    browser.run(press)
    assert (browser.run(paper), browser.run(line)) == seen[False]
    browser.run(press)
    assert (browser.run(paper), browser.run(line)) == seen[True]
    browser.open(page, dark=False)  # the choice is kept
    assert browser.run(paper) == seen[True][0]
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.run(paper) == "rgba(0, 0, 0, 0)"  # paper is light whatever was chosen
    assert browser.run(line) == seen[False][1]
    browser.run("localStorage.clear()")
    quiet(browser, page)


def test_text_contrast(browser: Browser, page: Path) -> None:
    """WCAG contrast of text and of every series against the page's background."""
    for dark in (False, True):
        browser.open(page, dark=dark)
        names = ["ink", "muted", *(f"series-{i}" for i in range(1, 7))]
        style = "getComputedStyle(document.documentElement)"
        colours = {name: browser.run(f"{style}.getPropertyValue('--{name}').trim()") for name in [*names, "paper"]}
        assert browser.run("document.styleSheets.length") == 1
        ink = browser.run(TO_HEX.replace("SELECTOR", "h1, h2, h3, dd, b"))
        assert ink == [colours["ink"]]
        for name in names:
            assert contrast(colours[name], colours["paper"]) >= 4.5, (name, dark)
    browser.requests.clear()


def contrast(first: str, second: str) -> float:
    """(lighter + 0.05) / (darker + 0.05) of relative luminances; WCAG 2.1, 1.4.3."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_strings_are_escaped(browser: Browser, page: Path) -> None:
    browser.open(page)
    text = browser.run("document.body.innerText")
    assert "/pictures/<script>alert(1)</script>" in text
    assert "fish & <chips>" in text
    assert "/pictures/<b>bad</b>0.jpg" in text
    assert browser.run('document.querySelectorAll("script").length') == 1
    assert browser.run('document.querySelectorAll("b").length') == 8 + 3 + 4  # of savings, classes, differences
    # A script that got in after all would not run.
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    assert browser.run("typeof window.broken") == "undefined"
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()
    quiet(browser, page)


def test_ids_are_unique_and_resolve(browser: Browser, comparison: Path) -> None:
    browser.open(comparison)
    twice = "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i)"
    assert browser.run(twice) == []
    missing = """[...document.querySelectorAll("use, [clip-path]")].map(e =>
      (e.getAttribute("xlink:href") || e.getAttribute("clip-path")).replace(/^url\\(|[#)]/g, ""))
      .filter(id => !document.getElementById(id))"""
    assert browser.run(missing) == []
    assert browser.run('document.querySelectorAll("thead a").length') == 2
    assert browser.run('document.querySelector("thead a").getAttribute("href")') == "#run-1-top"
    quiet(browser, comparison)
