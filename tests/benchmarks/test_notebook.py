"""The notebook for Kaggle, executed whole: a session that is cut short, and the one that resumes it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "benchmarks" / "kaggle_t4x2.ipynb"
TINY = shlex.split(
    "--device cpu --arch tests.nets:tiny --weights none --image-size 32 --batch-size 16 --precision fp32 --threads 1 "
    "--dense-calibration 0"
)

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[dev]'")


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_valid_and_has_no_outputs():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_no_cell_imports_torch():
    code = "\n".join(cell.source for cell in read().cells if cell.cell_type == "code")
    assert "import torch" not in code
    assert "subprocess" in code


def execute(monkeypatch, folder, work, **settings):
    """Runs all cells; returns what they printed and showed."""
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[dev]'")
    settings = {"INPUT": folder, "WORK": work, "SOURCE": ROOT, "INSTALL": "no", "OPTIONS": shlex.join(TINY), **settings}
    for name, value in settings.items():
        monkeypatch.setenv(f"FASTAST_{name}", str(value))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = read()
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    return text, [output.data["text/html"] for output in outputs if output.output_type == "display_data"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_second_session_resumes_the_first(pictures: Path, tmp_path: Path, monkeypatch) -> None:
    mounted = tmp_path / "input" / "datasets" / "someone" / "imagenet100"  # as it comes on Kaggle
    mounted.mkdir(parents=True)
    for place, split in (("train.X1", "train"), ("val.X", "val")):
        shutil.copytree(pictures / split, mounted / place)
    first, second = tmp_path / "first", tmp_path / "second"
    bench = "--seeds 1 --budgets 7ep --warmup-epochs 0.25 --target 0.3"
    suite = "--device cpu --tiny --minutes 1 --items ceilings"
    text, shown = execute(
        monkeypatch, tmp_path / "input", first, FULL="--max-time 0.001s", BENCH=bench, SUITE=suite, PARTS="quick,full"
    )
    assert str(mounted) in text
    assert len(shown) == 2
    assert all("&lt;html" in page for page in shown)
    stopped = json.loads((first / "full" / "summary.json").read_text())
    assert stopped["stopped"] == "max_time"
    shutil.copytree(first, tmp_path / "input" / "kaggle-t4x2")  # its output, added as a data set

    text, _ = execute(
        monkeypatch,
        tmp_path / "input",
        second,
        FULL="--max-time 9m",
        BENCH=bench,
        SUITE=suite,
        PARTS="short,full,bench,suite",
    )
    assert "| short: 4 epochs | short-published: 4 epochs | full: 40 epochs |" in text
    assert f"| measured: joules by NVML {'| not measured ' * 3}|" in text
    summary = json.loads((second / "full" / "summary.json").read_text())
    assert summary["stopped"] is None
    assert summary["samples"]["offered"] == 40 * 240
    assert [resume["offered"] for resume in summary["resumes"]] == [stopped["samples"]["offered"]]
    assert summary["gate"]["name"] == "memory"
    result = json.loads((second / "results" / "bench-t4x2.json").read_text())
    assert {point["arm"] for point in result["points"]} == {"dense", "forward", "memory", "random"}
    assert json.loads((second / "results" / "gpu-t4x2.json").read_text())["versions"]
