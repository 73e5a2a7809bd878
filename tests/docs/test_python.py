"""The Python that README and the page on trained networks show works as it stands there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import fastast
from fastast.checkpoint.file_format import export_weights
from fastast.cli import main
from fastast.models.weights_info import WeightsInfo
from tests.conftest import ROOT, write_pictures
from tests.docs.pages import blocks

README, NETWORKS = ROOT / "README.md", ROOT / "docs" / "trained-networks.md"


def test_the_four_lines_load_the_weights_without_fastast(tmp_path):
    (lines,) = (block for block in blocks(NETWORKS, "python") if "import json, torchvision" in block)
    assert len([line for line in lines.splitlines() if line]) == 4
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    export_weights(tmp_path / "model.safetensors", model.state_dict())
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    torch.save(model.state_dict(), tmp_path / "expected.pt")
    check = (
        lines.replace("RUN", str(tmp_path))
        + "import sys, torch\n"
        + f"expected = torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True)\n"
        + "assert all(torch.equal(model.state_dict()[k], v) for k, v in expected.items())\n"
        + "assert 'fastast' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_predictions_in_python(tmp_path, monkeypatch, capsys):
    (lines,) = (block for block in blocks(README, "python") if "fastast.load" in block)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", num_classes=2, per_class=2, seed=0)
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"")
    (tmp_path / "RUN").mkdir()
    info = WeightsInfo.of("resnet18", ["cat", "dog"], 32)
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    export_weights(tmp_path / "RUN" / "model.safetensors", state, info.to_metadata())
    exec(compile(lines, "README.md", "exec"), {})
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("pictures/bad.jpg empty file")
    assert len(others) == 4
    for line in others:
        assert line.split()[1] in ("cat", "dog")
        assert 0.5 <= float(line.split()[2]) <= 1


def test_timm_loads_what_was_exported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    (lines,) = (block for block in blocks(NETWORKS, "python") if "import timm" in block)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", num_classes=2, per_class=2, seed=0)
    Image.new("RGB", (90, 70), (200, 10, 10)).save("holiday.jpg")
    Path("RUN").mkdir()
    state = torchvision.models.resnet18(num_classes=2).state_dict()
    export_weights(Path("RUN/model.safetensors"), state, WeightsInfo.of("resnet18", ["cat", "dog"], 32).to_metadata())
    assert main(["export", "RUN", "--to", "hub", "--data", "pictures", "--out", "RUN/hub"]) == 0
    (expected,) = fastast.load("RUN").predict("holiday.jpg")
    capsys.readouterr()
    exec(compile(lines, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == expected.top[0][0]


@pytest.mark.slow
def test_the_page_on_python_runs(pictures, tmp_path, monkeypatch, capsys):
    (lines,) = blocks(ROOT / "docs" / "python.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("imagenette").symlink_to(pictures)
    Path("pictures").symlink_to(pictures / "val")
    exec(compile(lines, "python.md", "exec"), {})
    assert Path("runs/python/report.html").exists()
    assert "'val_top1':" in capsys.readouterr().out  # the callback
