"""Tied weights are exported under each of their names."""

import safetensors.torch
import torch
from torch import nn

from fastast.checkpoint.file_format import export_weights
from fastast.cli import main


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def test_tied_weights_are_written_twice(tmp_path):
    model = Tied(2)
    export_weights(tmp_path / "m.safetensors", model.state_dict())
    loaded = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["first.weight"], loaded["second.weight"])
    model.load_state_dict(loaded)


def test_run_with_tied_weights_ends_and_evaluates(pictures, tmp_path, capsys):
    arch = "tests.checkpoint.test_tied_weights:Tied"
    options = ["--arch", arch, "--image-size", "32", "--batch-size", "32", "--epochs", "2", "--device", "cpu"]
    assert main(["train", "--data", str(pictures), "--out", str(tmp_path / "o"), "--gate", "dense", *options]) == 0
    assert main(["evaluate", str(tmp_path / "o"), "--data", str(pictures), "--device", "cpu"]) == 0
