"""`fastast export`: what other runtimes load gives the same logits, and what differs is not written."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import fastast
from fastast.checkpoint.file_format import export_weights
from fastast.cli import main
from fastast.commands.export import _pictures
from fastast.data import open_dataset
from fastast.models import exporting
from fastast.models.weights_info import WeightsInfo
from fastast.run_folder import RunFolder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of weights away from any run: ResNet-18 of three classes for 32 px."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet") / "w.safetensors"
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    export_weights(path, state, WeightsInfo.of("resnet18", ["a", "thé", "caf\udce9"], 32).to_metadata())
    return path


@pytest.fixture(scope="module")
def hub(resnet, pictures, tmp_path_factory):
    """`resnet` as a folder of the hub."""
    pytest.importorskip("timm", reason="timm is not installed")
    out = tmp_path_factory.mktemp("exported") / "hub"
    assert main(["export", str(resnet), "--to", "hub", "--data", str(pictures), "--out", str(out)]) == 0
    return out


def prepared(said, path):
    """One picture [1, 3, S, S] by the words of the metadata, with torchvision alone."""
    crop, resize, mean, std = (json.loads(said[name]) for name in ("crop_size", "resize_size", "mean", "std"))
    assert said["interpolation"] == "bilinear, antialias"
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])(Image.open(path).convert("RGB"))[None]


def require_same_predictions(run, pictures, said, logits_of):
    """Decoded by Pillow instead of DALI, pixels differ by a level or two, and probabilities a little."""
    expected = fastast.load(run).predict(pictures / "val", top=4)
    assert len(expected) == 60
    for path, top, _ in expected:
        probabilities = torch.from_numpy(logits_of(prepared(said, path))).softmax(1)[0].tolist()
        found = dict(zip(json.loads(said["classes"]), probabilities, strict=True))
        assert found == pytest.approx(dict(top), abs=0.02)


def test_onnx_predicts_the_same_by_its_own_metadata(run, pictures, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert main(["export", str(run), "--to", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert "same top-1 on 60 of 60 validation pictures" in printed
    assert "[batch, 3, 32, 32] -> [batch, 4]" in printed
    (run / "model.onnx").rename(tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    said = session.get_modelmeta().custom_metadata_map
    assert said["arch"] == "tests.nets:tiny"
    require_same_predictions(run, pictures, said, lambda images: session.run(None, {"images": images.numpy()})[0])
    (many,) = session.run(None, {"images": np.zeros((7, 3, 32, 32), np.float32)})
    assert many.shape == (7, 4)


def test_torch_program_predicts_the_same_by_its_own_metadata(run, pictures, tmp_path):
    out = tmp_path / "m.pt2"
    assert main(["export", str(run), "--to", "torch", "--out", str(out)]) == 0
    extra = {exporting.INFO_FILE: ""}
    program = torch.export.load(out, extra_files=extra).module()
    said = json.loads(extra[exporting.INFO_FILE])
    require_same_predictions(run, pictures, said, lambda images: program(images).detach().numpy())
    assert program(torch.zeros(7, 3, 32, 32)).shape == (7, 4)


def test_timm_loads_the_hub_folder(hub, resnet, pictures):
    import timm

    network = fastast.load(resnet)
    loaded = timm.create_model(f"local-dir:{hub}", pretrained=True).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images), network.model(images), atol=1e-5)
    assert loaded.pretrained_cfg["label_names"] == ["a", "thé", "caf\udce9"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    path = pictures / "val" / "class_1" / "0003.jpg"
    said = network.trained.info.to_metadata()
    assert torch.equal(transform(Image.open(path).convert("RGB"))[None], prepared(said, path))
    assert fastast.load(hub / "model.safetensors").classes == network.classes


@pytest.mark.slow
def test_transformers_loads_the_hub_folder(hub, resnet, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(hub).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images).logits, fastast.load(resnet).model(images), atol=1e-5)
    assert loaded.config.id2label[1] == "thé"
    assert transformers.AutoImageProcessor.from_pretrained(hub).data_config["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("wrong", [1e-2, float("nan")])
def test_what_differs_is_not_written(run, tmp_path, monkeypatch, capsys, wrong):
    def to_torch(network, info):
        return exporting.Exported({"m": b"data"}, lambda images: network(images) + wrong)

    monkeypatch.setitem(exporting.FORMATS, "torch", to_torch)
    assert main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert "not written: largest difference to PyTorch" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--to", "hub"], "timm has no network with the tensors of tests.nets:tiny"),
        (["{run}", "--to", "hub", "--out", "{run}"], "holds other files"),
        (["{run}", "--to", "torch", "--out", "none/m.pt2"], "no such folder"),
        (["{run}", "--to", "torch", "--data", "nowhere"], "nowhere: no such folder"),
        (["{resnet}", "--to", "torch"], "add --out model.pt2"),
        (["{resnet}", "--to", "torch", "--out", "m"], "name some with --data D"),
        (["nowhere", "--to", "torch"], "nowhere: no such run folder"),
    ],
)
def test_bad_input_is_one_line(run, resnet, tmp_path, monkeypatch, capsys, arguments, words):
    if "has no network" in words:
        pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(word.format(run=run, resnet=resnet) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("to", "module"), [("onnx", "onnxruntime"), ("hub", "timm")])
def test_missing_package_is_one_line(run, tmp_path, monkeypatch, capsys, to, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "m")]) == 2
    assert f"{module} is not installed; pip install " in capsys.readouterr().err


def test_pictures_are_the_runs_own_for_validation(pictures, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": str(pictures / "train"), "val_split": 0.1, "seed": 3}))
    held_out = open_dataset(pictures / "train", val_split=0.1, seed=3).val
    found = _pictures(None, RunFolder(tmp_path))
    assert [found.path(i) for i in range(24)] == [held_out.path(i) for i in range(held_out.num_samples)]
    (tmp_path / "config.json").write_text(json.dumps({"data": str(pictures), "val_split": None}))
    assert _pictures(None, RunFolder(tmp_path)).path(0) == str(pictures / "val" / "class_0" / "0000.jpg")
