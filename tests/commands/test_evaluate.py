"""`fastast evaluate`: it agrees with the run, and refuses bad input in one line."""

import json
import shutil

import pytest

from fastast.cli import main


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dense"
    words = ["--arch", "tests.nets:tiny", "--image-size", 32, "--batch-size", 16, "--epochs", 2, "--lr", 0.05]
    assert main(["train", "--data", str(pictures), "--out", str(out), "--gate", "dense", *map(str, words)]) == 0
    return out


def test_evaluate_agrees_with_the_run(run, pictures, tmp_path, capsys):
    best = json.loads((run / "summary.json").read_text())["accuracy"]["best_val_top1"]
    assert main(["evaluate", str(run), "--data", str(pictures), "--out", str(tmp_path / "p.csv")]) == 0
    assert f"top-1 {best:.4f}" in capsys.readouterr().out
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "path,label,prediction,probability"
    assert len(lines) == 61
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
    assert right / 60 == pytest.approx(best)


def test_evaluate_takes_a_file_of_weights(run, pictures, tmp_path, capsys):
    best = json.loads((run / "summary.json").read_text())["accuracy"]["best_val_top1"]
    shutil.copy(run / "model.safetensors", tmp_path / "w.safetensors")
    arguments = ["evaluate", str(tmp_path / "w.safetensors"), "--data", str(pictures / "val"), "--image-size", "32"]
    assert main([*arguments, "--arch", "tests.nets:tiny", "--batch-size", "7"]) == 0
    assert f"top-1 {best:.4f}" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "--arch" in capsys.readouterr().err


def test_evaluate_finds_the_run_of_a_checkpoint(run, pictures, capsys):
    assert main(["evaluate", str(run / "checkpoints" / "best.pt"), "--data", str(pictures)]) == 0
    assert "top-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "-5"], "--image-size -5"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--out", "nodir/x.csv"], "no such folder"),
        (["--out", "."], "is a folder"),
        (["--arch", "resnet17"], "resnet18"),
        (["--device", "cuda"], "--device cuda"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, pictures, capsys, arguments, words):
    assert main(["evaluate", str(run), "--data", str(pictures), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
