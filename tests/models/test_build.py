"""Networks by name, weights from files, and the scoring twin."""

import re

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import nn

from fastast.checkpoint.file_format import export_weights
from fastast.errors import InputError
from fastast.models.build import build_model, check_fits, scoring_twin
from fastast.models.weights_info import WeightsInfo
from tests.nets import tiny


def test_torchvision_name_with_a_head_for_the_classes():
    model, notes = build_model("resnet18", 7)
    assert model.fc.out_features == 7
    assert notes == []
    conv = model.layer1[0].conv1.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_weights_of_another_head_load(arch, tmp_path):
    source = torchvision.models.get_model(arch, weights=None, num_classes=5)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model, notes = build_model(arch, 3, str(tmp_path / "w.pth"))
    assert len(notes) == 1
    assert "5 outputs" in notes[0]
    assert "3 classes" in notes[0]
    own, theirs = model.state_dict(), source.state_dict()
    same = [name for name in own if own[name].shape == theirs[name].shape]
    assert len(same) >= len(own) - 2
    assert all(torch.equal(own[name], theirs[name]) for name in same if "classifier" not in name)


@pytest.mark.parametrize("classes", [["x", "y"], ["b", "a"], ["a", "b"]])
def test_head_for_other_classes_is_made_new(classes, tmp_path):
    """It was kept where the number was the same, so that "x" began as "a"."""
    source = tiny(2).state_dict()
    metadata = WeightsInfo.of("tests.nets:tiny", ["a", "b"], 32).to_metadata()
    export_weights(tmp_path / "w.safetensors", source, metadata)
    model, notes = build_model("tests.nets:tiny", 2, str(tmp_path / "w.safetensors"), classes)
    same = [name for name, value in model.state_dict().items() if torch.equal(value, source[name])]
    if classes == ["a", "b"]:
        assert (notes, len(same)) == ([], len(source))
    else:
        line = "head replaced: 5 (the file's has 2 outputs, for other classes: a, b; this data has 2 classes)"
        assert (notes, set(source) - set(same)) == ([line], {"5.weight", "5.bias"})


def in_wrapper(wrap):
    return lambda state, path: torch.save(wrap({"module." + name: value for name, value in state.items()}), path)


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".safetensors", safetensors.torch.save_file),
        (".pt", in_wrapper(lambda state: state)),
        (".pt", in_wrapper(lambda state: {"model": state})),
        (".pth", in_wrapper(lambda state: {"state_dict": state, "epoch": 3})),
    ],
)
def test_weights_round_trip_through_files_and_wrappers(suffix, save, tmp_path):
    source = tiny(4).state_dict()
    save(source, tmp_path / f"w{suffix}")
    model, notes = build_model("tests.nets:tiny", 4, str(tmp_path / f"w{suffix}"))
    assert notes == []
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"not a file of torch", "damaged"),
        ("w.pth", b"", "damaged"),
        ("w.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("w.bin", b"", "file ending in"),
        (None, b"", "no such file"),
    ],
)
def test_unreadable_weights_are_one_line(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        build_model("resnet18", 2, str(tmp_path / (name or "absent.pth")))
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(tiny(4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="not for this --arch"):
        build_model("resnet18", 4, str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet81", "did you mean resnet18"),
        ("qqqq", "for example resnet18"),
        ("no_such_module:f", "No module named"),
        ("json:no_such_function", "no_such_function"),
        ("os:getcwd", "module:function"),
        (":f", "module:function"),
        ("json:", "module:function"),
    ],
)
def test_unknown_arch_names_what_would_work(arch, message):
    with pytest.raises(InputError, match=message):
        build_model(arch, 2)


def _no_network(*args, **kwargs):
    raise OSError("no route to host")


def test_imagenet_weights_offline_name_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    with pytest.raises(InputError, match=rf"fetch https://.*resnet18-.*\.pth .*put it into {tmp_path}"):
        build_model("resnet18", 2, "imagenet")


def with_weights(num_classes, weights="none"):
    network = tiny(num_classes)
    if weights != "none":
        nn.init.constant_(network[0].weight, {"imagenet": 0.25}[weights])
    return network


def test_function_with_weights_loads_its_own():
    model, notes = build_model("tests.models.test_build:with_weights", 3, "imagenet")
    assert torch.equal(model[0].weight, torch.full_like(model[0].weight, 0.25))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert notes == ["weights imagenet: as loaded by tests.models.test_build:with_weights"]
    plain, notes = build_model("tests.models.test_build:with_weights", 3)
    assert not torch.equal(plain[0].weight, model[0].weight)
    assert notes == []


def test_function_without_weights_asks_for_a_file():
    with pytest.raises(InputError, match=r"--weights imagenet: tests.nets:tiny takes no weights=.*give a file"):
        build_model("tests.nets:tiny", 3, "imagenet")


def refusing(num_classes):
    raise InputError("a package is missing; pip install it")


def test_function_refuses_in_its_own_words():
    with pytest.raises(InputError, match=r"^a package is missing; pip install it$"):
        build_model("tests.models.test_build:refusing", 3)


def test_twin_shares_tensors_and_keeps_its_mode():
    model, _ = build_model("resnet18", 3)
    model.train()
    twin = scoring_twin(model)
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    assert all(a is b for a, b in pairs)
    assert model.training
    assert not any(module.training for module in twin.modules())


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.LazyLinear(2)), 8, "--image-size 8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), 8, r"shape \(1, 5\).*expected \(1, 2\)"),
        (nn.Conv2d(3, 2, 3), 8, "shape"),
    ],
)
def test_network_that_does_not_fit_is_refused(model, size, message):
    with pytest.raises(InputError, match=message) as caught:
        check_fits(model.eval(), "m:f", size, 2)
    assert "\n" not in str(caught.value)


def test_old_densenet_layer_names_load(tmp_path):
    source = torchvision.models.densenet121(num_classes=3)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in source.state_dict().items()}
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "w.pth")
    model, notes = build_model("densenet121", 3, str(tmp_path / "w.pth"))
    assert notes == []
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_auxiliary_heads_are_left_out(tmp_path):
    source = torchvision.models.googlenet(num_classes=7, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model, notes = build_model("googlenet", 3, str(tmp_path / "w.pth"))
    assert len(notes) == 1
    assert torch.equal(model.conv1.conv.weight, source.conv1.conv.weight)
    assert model.aux1 is None
