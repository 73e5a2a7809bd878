"""Options: each is documented, checked, and reads the same from the command line and a file."""

import dataclasses
import math

import pytest
import torch

from fastast.config import TrainConfig
from fastast.config.config_checks import idle_gate
from fastast.config.config_file import read_toml, resolve
from fastast.config.presets import DEMO, PRESETS
from fastast.config.train_config import SIGNIFICANCE
from fastast.device import Runtime
from fastast.errors import InputError
from fastast.gates.memory import SCORES, Memory
from fastast.gates.registry import GATES, unused_options
from fastast.gates.significance import KINDS
from fastast.train.defaults import complete_config


def test_option_docs_are_one_line():
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["doc"].strip()
        assert "\n" not in field.metadata["doc"]


def test_defaults():
    config = TrainConfig(data="d")
    assert (config.arch, config.weights, config.image_size, config.epochs) == ("resnet50", "none", 224, 40.0)
    assert (config.gate, config.selection, config.target, config.warmup_epochs) == ("memory", "soft", "auto", 1.0)
    assert (config.batch_size, config.lr, config.device, config.precision, config.compile) == (
        None,
        None,
        "auto",
        "auto",
        "auto",
    )


def test_learning_rate_and_decay_follow_the_optimizer():
    found = []
    for weights in ("none", "imagenet"):
        for optimizer in ("sgd", "adamw"):
            config = TrainConfig(gate="dense", optimizer=optimizer, weights=weights, batch_size=64)
            complete_config(config, Runtime(torch.device("cpu"), torch.float32, "", False, ""), 1000)
            found.append((config.lr, config.weight_decay))
    assert found == [pytest.approx(pair) for pair in ((0.025, 1e-4), (5e-4, 0.05), (0.02, 1e-4), (2.5e-5, 0.05))]
    assert TrainConfig(optimizer="adamw", weight_decay=0).weight_decay == 0


@pytest.mark.parametrize(("gate", "target"), [("memory", "auto"), ("forward", "auto"), ("random", 0.1)])
def test_target_follows_the_gate(gate, target):
    config = TrainConfig(gate=gate)
    assert config.target == target
    assert TrainConfig(**dataclasses.asdict(config)) == config
    assert TrainConfig(gate=gate, target=0.4).target == 0.4


def test_scores_on_offer_exist():
    assert set(SIGNIFICANCE) == set(KINDS)
    assert set(GATES["memory"].significance) == set(SCORES)
    assert Memory()._score is SCORES[GATES["memory"].significance[0]]


def test_unused_options():
    options = {"data": "d", "target": 0.1, "explore": 0.0, "prune": 0.5, "warmup_epochs": 1.0}
    assert unused_options(options, "dense") == ["target", "explore", "prune", "warmup_epochs"]
    assert unused_options(options, "memory") == ["prune"]
    assert "significance" not in GATES["random"].options
    assert unused_options(options, "infobatch") == ["target", "explore"]


def test_dense_run_has_no_warmup():
    assert TrainConfig(gate="dense", epochs=0.5).epochs == 0.5
    TrainConfig(epochs=0.3, warmup_epochs=0.1, anneal=0.2)  # whose sum is above 0.3 in floating point


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("target", 0.0, r"--target 0: must be in \(0, 1\]"),
        ("target", 1.5, r"--target 1.5"),
        ("target", -0.1, "--target"),
        ("target", math.nan, "finite"),
        ("target", "much", "expected float or auto, got str"),
        ("epochs", 0, "--epochs 0"),
        ("epochs", math.inf, "finite"),
        ("warmup_epochs", 41, "--warmup-epochs 41 .* --epochs 40"),
        ("warmup_epochs", -1, "--warmup-epochs -1"),
        ("dense_calibration", -1, "--dense-calibration -1"),
        ("price_per_kwh", -0.1, "--price-per-kwh -0.1"),
        ("gco2_per_kwh", -1, "--gco2-per-kwh -1"),
        ("anneal", -1, "--anneal -1"),
        ("anneal", 40, "--anneal 40"),
        ("batch_size", 1, "--batch-size 1: must be at least 2"),
        ("batch_size", 2.5, "expected int, got float"),
        ("image_size", 8, "--image-size 8"),
        ("lr", 0, "--lr 0"),
        ("lr_warmup", 1, "--lr-warmup 1"),
        ("momentum", 1, "--momentum 1"),
        ("weight_decay", -1, "--weight-decay -1"),
        ("label_smoothing", 1, "--label-smoothing 1"),
        ("min_crop", 0, "--min-crop 0"),
        ("val_split", 1, "--val-split 1"),
        ("seed", -1, "--seed -1"),
        ("seed", 2**63, "--seed"),
        ("gate", "magic", "--gate magic: choose from dense"),
        ("threads", 0, "--threads 0"),
        ("log_every", 0, "--log-every 0"),
        ("selection", "firm", "choose from soft, hard"),
        ("significance", "size", "choose from loss"),
        ("device", "tpu", "choose from auto, cuda, cpu"),
        ("arch", None, "needs a value"),
        ("seed", True, "expected int, got bool"),
    ],
)
def test_bad_value_is_one_line(option, value, message):
    with pytest.raises(InputError, match=message) as caught:
        TrainConfig(**{option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "d", "train_dir": "t"}, "leave one out"),
        ({"gate": "random", "target": "auto"}, "random has no scores .* --target 0.1"),
        ({"gate": "memory", "significance": "el2n"}, "not with --gate memory; choose from gce"),
        ({"target": "auto", "explore": 0.05}, "below 0.05, the least share of --target auto"),
        ({"val_dir": "v"}, "--val-dir needs --data or --train-dir"),
        ({"train_dir": "a,,b"}, "leave out that comma"),
        ({"train_dir": "t", "val_dir": "v", "val_split": 0.1}, "leave out --val-split"),
    ],
)
def test_contradicting_options(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("value", ["", " "])
def test_empty_text_is_no_value(value, tmp_path):
    """It must not become the default: `data = ""` would train the demo set."""
    with pytest.raises(InputError, match="--data: is empty"):
        TrainConfig(data=value)
    (tmp_path / "c.toml").write_text(f'data = "{value}"')
    with pytest.raises(InputError, match="--data: is empty"):
        read_toml(str(tmp_path / "c.toml"))


def test_idle_gate():
    """A gate that never runs is said before training, and the line's remedies work."""
    line = idle_gate(TrainConfig(gate="memory", epochs=1, warmup_epochs=1))
    assert "--gate memory never runs: --warmup-epochs 1 takes all --epochs 1" in line
    assert idle_gate(TrainConfig(gate="memory", epochs=1, warmup_epochs=0)) is None
    assert idle_gate(TrainConfig(gate="memory", epochs=2)) is None
    assert idle_gate(TrainConfig(gate="dense", epochs=1)) is None


def test_demo_defaults():
    assert resolve({}).arch == DEMO["arch"]
    assert resolve({"arch": "resnet34"}).arch == "resnet34"
    assert resolve({"data": "d"}).arch == "resnet50"
    assert resolve({"train_dir": "d", "val_split": 0.1}).epochs == 40


def test_preset_stands_between_the_defaults_and_every_other_option(tmp_path):
    for name, values in PRESETS.items():
        config = resolve({"data": "d", "preset": name})
        assert {option: getattr(config, option) for option in values} == values
        assert config.epochs is None
    assert resolve({"data": "d", "preset": "scratch", "epochs": 3}).budget is None
    assert resolve({"data": "d", "preset": "finetune", "weights": "w.pt"}).weights == "w.pt"
    (tmp_path / "c.toml").write_text('preset = "scratch"\nbudget = "1ep"')
    config = resolve({**read_toml(str(tmp_path / "c.toml")), "data": "d"})
    assert (config.budget, config.train_size) == ("1ep", "auto")
    demo = resolve({"preset": "finetune"})
    assert (demo.arch, demo.lr, demo.epochs) == (DEMO["arch"], None, None)
    with pytest.raises(InputError, match="--preset quick: choose from finetune, scratch"):
        resolve({"preset": "quick"})


def test_toml_keys_take_hyphen_or_underscore(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('batch-size = 32\nimage_size = 96\ndata = "d"\nepochs = 3\n')
    assert read_toml(str(file)) == {"batch_size": 32, "image_size": 96, "data": "d", "epochs": 3}
    config = resolve(read_toml(str(file)))
    assert config.epochs == 3.0
    assert isinstance(config.epochs, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targt = 0.1", "unknown option 'targt'; did you mean target"),
        ("zzzz = 1", "train --help-all"),
        ("proxy-size = 64", "--proxy-size was removed with the proxy gate"),
        ("gate = 'proxy'", "--gate proxy was removed"),
        ("target_schedule = 'linear'", "--target-schedule was removed"),
        ("epochs = 'many'", "--epochs 'many': expected float"),
        ("target = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (None, "No such file"),
    ],
)
def test_bad_toml_is_one_line(tmp_path, text, message):
    file = tmp_path / "run.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_toml(str(file))
    assert str(file) in str(caught.value)
