"""Edge cases of data: losses that are not finite, nothing selected, a class of one picture, sets of one batch."""

import math

import pytest
from PIL import Image
from torch import nn

from fastast.checkpoint.file_format import load_checkpoint
from fastast.cli import main
from fastast.data import epoch_ids
from tests.conftest import damaged_png, write_pictures
from tests.nets import tiny
from tests.train.test_run import lines_of, options, summary_of


class FullContrast(nn.Module):
    """Scales each picture to full contrast, which divides by zero where a picture has none."""

    def forward(self, x):
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (x - low) / (high - low)


def full_contrast(num_classes):
    return nn.Sequential(FullContrast(), tiny(num_classes))


def write_set(root, num_train=16, num_classes=4):
    """A set of `num_train` training pictures in classes of about one size; returns their paths."""
    write_pictures(root / "train", num_classes=num_classes, per_class=-(-num_train // num_classes), seed=0)
    write_pictures(root / "val", num_classes=num_classes, per_class=4, seed=1)
    pictures = sorted((root / "train").glob("*/*"), key=lambda path: path.name)
    for path in pictures[num_train:]:
        path.unlink()
    return pictures[:num_train]


def trained(data, out, **changes):
    """The summary of a run, whose counts must agree."""
    assert main(["train", *options(data, out, **changes)]) == 0
    summary = summary_of(out)
    samples = summary["samples"]
    assert samples["backward"] + samples["leftover"] == samples["selected"] <= samples["offered"]
    assert samples["backward"] == 16 * samples["steps"]
    assert 0 <= samples["leftover"] < 16
    evaluated = [line["val_loss"] for line in lines_of(out) if line["kind"] == "epoch" and line["val_loss"] is not None]
    assert evaluated
    assert all(map(math.isfinite, evaluated))
    model = load_checkpoint(out / "checkpoints" / "best.pt")["model"]
    assert all(value.isfinite().all() for value in model.values())
    return summary


@pytest.mark.parametrize("gate", ["dense", "forward"])
def test_nonfinite_losses_cost_their_steps_only(tmp_path, capsys, gate):
    first = write_set(tmp_path / "data", 64)[0]
    Image.new("RGB", (40, 40)).save(first)  # black
    changes = {"arch": "tests.train.test_odd_data:full_contrast", "gate": gate}
    summary = trained(tmp_path / "data", tmp_path / "run", **changes)
    undone = summary["samples"]["nonfinite_steps"]
    assert undone == 3 if gate == "dense" else 1 <= undone <= 3  # one batch of each epoch holds it
    said = capsys.readouterr().out
    assert "1 steps had a non-finite loss or gradient and were undone" in said
    assert ("scores were not a number" in said) == (gate == "forward")
    losses = [line["train_loss"] for line in lines_of(tmp_path / "run") if line["kind"] == "epoch"]
    assert all(loss is None or math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("gate", ["forward", "memory"])
def test_epochs_without_training(tmp_path, gate):
    write_set(tmp_path / "data", 48)
    out = tmp_path / "run"
    summary = trained(tmp_path / "data", out, gate=gate, target=0.001, epochs=4)
    assert summary["samples"]["offered"] == 4 * 48
    assert summary["samples"]["steps"] == 3
    epochs = [line for line in lines_of(out) if line["kind"] == "epoch"]
    assert [line["backward"] for line in epochs] == [48, 0, 0, 0]
    assert [line["train_loss"] is None for line in epochs] == [False, True, True, True]
    assert main(["report", str(out)]) == 0


@pytest.mark.parametrize("gate", ["forward", "infobatch"])
def test_one_class_only(tmp_path, gate):
    write_set(tmp_path / "data", 48, num_classes=1)
    summary = trained(tmp_path / "data", tmp_path / "run", gate=gate)
    assert summary["accuracy"]["val_top1"] == 1
    assert summary["samples"]["offered"] == 3 * 48


def test_class_of_one_picture(tmp_path):
    pictures = write_set(tmp_path / "data", 48)
    for path in [path for path in pictures if path.parent.name == "class_2"][1:]:
        path.unlink()
    summary = trained(tmp_path / "data", tmp_path / "run", gate="dense")
    assert (summary["data"]["train"], summary["data"]["classes"]) == (37, 4)
    assert summary["samples"]["selected"] == 3 * 37


@pytest.mark.parametrize("gate", ["dense", "forward", "random"])
@pytest.mark.parametrize("num_train", [16, 17])
def test_sets_of_about_one_batch(tmp_path, gate, num_train):
    write_set(tmp_path / "data", num_train)
    summary = trained(tmp_path / "data", tmp_path / "run", gate=gate, epochs=4)
    samples = summary["samples"]
    assert samples["offered"] == 4 * num_train
    if gate == "dense":
        assert (samples["steps"], samples["leftover"]) == (4, 4 * num_train - 64)
    else:
        assert samples["steps"] == 1 + (samples["selected"] - 16) // 16


def test_part_of_an_epoch_of_which_nothing_decodes(tmp_path):
    pictures = sorted(write_set(tmp_path / "data", 16))
    worst = pictures[epoch_ids(16, 0, 2)[0]]  # all that the run offers in its third epoch
    worst.write_bytes(damaged_png())
    summary = trained(tmp_path / "data", tmp_path / "run", gate="dense", epochs=2 + 1 / 16)
    assert summary["samples"]["offered"] == 2 * 15
    assert summary["data"]["quarantined"] == 1
    assert [line["offered"] for line in lines_of(tmp_path / "run") if line["kind"] == "epoch"] == [15, 15, 0]
