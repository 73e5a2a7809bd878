"""`--arch timm/NAME`: trained, evaluated and exported with timm's own normalisation."""

import json
import sys

import pytest
import torch
from PIL import Image

import fastast
from fastast.cli import main
from fastast.errors import InputError
from fastast.models.build import build_model, check_fits, check_names
from fastast.models.weights_info import WeightsInfo

timm = pytest.importorskip("timm", reason="timm is not installed")
NET = "timm/test_resnet"  # of timm's own tests: 0.5 million weights, mean and std 0.5


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "timm"
    words = ["--arch", NET, "--image-size", 32, "--batch-size", 16, "--epochs", 1, "--lr", 0.05, "--gate", "dense"]
    assert main(["train", "--data", str(pictures), "--out", str(out), *map(str, words)]) == 0
    return out


def test_run_evaluates_and_predicts_as_timm_does(run, pictures, tmp_path, capsys):
    """Trained with timm's mean and std, and evaluated with them: as timm's own transform and loader predict it."""
    best = json.loads((run / "summary.json").read_text())["accuracy"]["best_val_top1"]
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(pictures)]) == 0
    printed = capsys.readouterr().out
    assert f"top-1 {100 * best:.2f} %" in printed
    assert "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]" in printed
    out = tmp_path / "hub"
    assert main(["export", str(run), "--to", "hub", "--out", str(out)]) == 0
    assert "same top-1 on 60 of 60 validation pictures" in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for path, top, _ in fastast.load(run).predict(pictures / "val", top=4):
        with torch.no_grad():
            probabilities = model(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0].tolist()
        found = dict(zip(model.pretrained_cfg["label_names"], probabilities, strict=True))
        assert found == pytest.approx(dict(top), abs=0.02)


def test_weights_of_another_head_load(tmp_path):
    source = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save(source, tmp_path / "w.pth")
    model, notes = build_model(NET, 3, str(tmp_path / "w.pth"))
    assert notes == ["head replaced: fc (the file's has 5 outputs; this data has 3 classes)"]
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.items() if not name.startswith("fc."))


def test_a_network_of_two_heads_and_one_size(tmp_path):
    """Of a distilled network, timm names both heads."""
    name = "deit_tiny_distilled_patch16_224"
    torch.save(timm.create_model(name, num_classes=5).state_dict(), tmp_path / "w.pth")
    model, notes = build_model(f"timm/{name}", 3, str(tmp_path / "w.pth"))
    assert notes == ["head replaced: head, head_dist (the file's has 5 outputs; this data has 3 classes)"]
    with pytest.raises(InputError, match="the size it was made for, 224"):
        check_fits(model.eval(), f"timm/{name}", 96, 3)


def test_pretrained_weights_that_cannot_be_downloaded_say_where_to_get_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="could not download") as caught:
        build_model("timm/test_resnet.r160_in1k", 3, "imagenet")
    address = "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert address in str(caught.value)
    assert str(caught.value).endswith("pass it as --weights model.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm/resnet19", "did you mean timm/resnet"),
        ("timm/resnet18.nope", "Invalid pretrained tag"),
        ("timm/", "timm.list_models"),
    ],
)
def test_unknown_names_are_one_line(arch, words):
    with pytest.raises(InputError, match=words) as caught:
        check_names(arch, "none")
    assert "\n" not in str(caught.value)


def test_weights_that_timm_does_not_have():
    with pytest.raises(InputError, match="timm has no weights for timm/test_mambaout"):
        build_model("timm/test_mambaout", 3, "imagenet")


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="--arch timm/resnet18: timm is not installed; pip install timm"):
        WeightsInfo.of("timm/resnet18", ["a"], 32)
