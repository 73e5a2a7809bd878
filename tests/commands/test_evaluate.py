"""`fastast evaluate`: it agrees with the run, and refuses bad input in one line."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fastast.checkpoint.file_format import export_weights
from fastast.cli import main
from fastast.errors import InputError
from fastast.models.weights_info import WeightsInfo, read_info
from tests.data.image_files import cut_png, encode, picture

ARCH = ["--arch", "tests.nets:tiny"]


def test_evaluate_agrees_with_the_run(run, pictures, tmp_path, capsys):
    best = json.loads((run / "summary.json").read_text())["accuracy"]["best_val_top1"]
    assert main(["evaluate", str(run), "--data", str(pictures), "--out", str(tmp_path / "p.csv")]) == 0
    told = capsys.readouterr().out
    assert f"top-1 {100 * best:.2f} %" in told
    assert f"balanced top-1 {100 * best:.2f} %" in told
    assert told.splitlines()[-1].startswith(f"next: fastast predict {run} PICTURES")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "path,label,prediction,probability"
    assert len(lines) == 61
    right = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
    assert right / 60 == pytest.approx(best)


def test_weights_away_from_their_run_say_what_they_are(run, pictures, tmp_path, capsys):
    """Classes and sizes come from the file, so that a part of the classes, in other folders, is labelled rightly."""
    best = json.loads((run / "summary.json").read_text())["accuracy"]["best_val_top1"]
    shutil.copy(run / "model.safetensors", tmp_path / "w.safetensors")
    arguments = ["evaluate", str(tmp_path / "w.safetensors"), "--data", str(pictures / "val")]
    assert main(arguments) == 2  # a file may not choose which code runs
    error = capsys.readouterr().err
    assert "add --arch tests.nets:tiny" in error
    assert main([*arguments, "--arch", "tests.nets:tiny", "--batch-size", "7"]) == 0
    printed = capsys.readouterr().out
    assert f"top-1 {100 * best:.2f} %" in printed
    assert "tests.nets:tiny, 4 classes (class_0, class_1, class_2, class_3)" in printed
    assert "resized to 36 px (bilinear, antialias) and cropped to 32" in printed
    part = tmp_path / "part"
    for name in ("class_2", "class_3"):
        shutil.copytree(pictures / "val" / name, part / name)
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--data", str(part), *ARCH, "--out", str(part)]) == 2
    csv = tmp_path / "p.csv"
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--data", str(part), *ARCH, "--out", str(csv)]) == 0
    assert {line.split(",")[1] for line in csv.read_text().splitlines()[1:]} == {"class_2", "class_3"}
    (part / "class_2").rename(part / "other")
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--data", str(part), *ARCH]) == 2
    assert "does not know: other" in capsys.readouterr().err


def test_file_without_metadata_says_what_is_assumed(run, pictures, tmp_path, capsys):
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "w.pt")
    arguments = ["evaluate", str(tmp_path / "w.pt"), "--data", str(pictures), "--image-size", "32"]
    assert main(arguments) == 2
    assert "name it with --arch" in capsys.readouterr().err
    assert main([*arguments, *ARCH]) == 0
    assert "says nothing of its classes: taken are the folder's in order, at 32 px" in capsys.readouterr().out


def test_checkpoint_to_resume_from_is_no_file_of_weights(run, pictures, capsys):
    last = run / "checkpoints" / "last.pt"
    for arguments in (["evaluate", last], ["train", "--weights", last, "--out", run.parent / "new"]):
        assert main([*map(str, arguments), "--data", str(pictures)]) == 2
        error = capsys.readouterr().err
        assert "name best.pt beside it" in error
        assert error.startswith(f"fastast {arguments[0]}: error: {last}: ")
    assert main(["evaluate", str(last.with_name("best.pt")), "--data", str(pictures)]) == 0


@pytest.mark.parametrize("name", ["arch", "classes", "crop_size", "mean", "bits"])
@pytest.mark.parametrize("value", [None, "[", "1", '"a"', "[[]]"])
def test_damaged_metadata_is_one_line(run, tmp_path, name, value):
    if (name == "arch" and value is not None) or (name == "bits" and value is None):
        return  # any text may be a name, and older files hold no range
    metadata = WeightsInfo.of("resnet18", ["a", "b"], 32).to_metadata() | {name: value}
    metadata = {key: text for key, text in metadata.items() if text is not None}
    if metadata.get("crop_size") == "1":
        return
    export_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, metadata)
    with pytest.raises(InputError, match="metadata is damaged"):
        read_info(tmp_path / "w.safetensors")


def test_metadata_reads_back_and_does_not_change_the_file(tmp_path):
    """The library writes metadata in another order each time; equal weights must be equal files."""
    info = WeightsInfo.of("resnet18", ["b\u00e4r", "caf\udce9"], 224)
    assert (info.resize_size, info.mean, info.std) == (256, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    weights = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}
    for name in "ab":
        export_weights(tmp_path / f"{name}.safetensors", weights, info.to_metadata())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert list(json.loads((tmp_path / "a.safetensors").read_bytes()[8:].split(b"}")[0] + b"}}")["__metadata__"]) == [
        *("format", "fastast", "arch", "classes", "crop_size", "resize_size", "mean", "std", "interpolation", "bits")
    ]
    assert read_info(tmp_path / "a.safetensors") == info
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_weights_of_another_preparation_are_refused(pictures, tmp_path, capsys):
    info = dataclasses.replace(WeightsInfo.of("resnet18", ["a"], 224), interpolation="bicubic, antialias")
    export_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, info.to_metadata())
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--data", str(pictures)]) == 2
    assert "prepared otherwise" in capsys.readouterr().err


def test_evaluate_finds_the_run_of_a_checkpoint(run, pictures, capsys):
    assert main(["evaluate", str(run / "checkpoints" / "best.pt"), "--data", str(pictures)]) == 0
    assert "top-1" in capsys.readouterr().out


def test_what_is_left_out_is_counted(run, pictures, tmp_path, capsys):
    """Of 16 pictures of which half is refused, it said "on 8 pictures", and the CSV was short."""
    for kind, count in (("class_0", 3), ("class_1", 5)):
        shutil.copytree(pictures / "val" / kind, tmp_path / "d" / kind)
        for path in sorted((tmp_path / "d" / kind).iterdir())[:count]:
            path.write_bytes(b"no picture")
    cut = cut_png(encode(picture(40, 40), "PNG"), 0.3)  # passes the scan
    (tmp_path / "d" / "class_1" / "z.png").write_bytes(cut)
    assert main(["evaluate", str(run), "--data", str(tmp_path / "d"), "--out", str(tmp_path / "p.csv")]) == 0
    printed = capsys.readouterr().out
    assert "on 22 pictures of 31; 9 left out" in printed
    assert "class_0/0000.jpg: text, not a picture" in printed
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == 31
    empty = [(row["label"], row["probability"]) for row in rows if not row["prediction"]]
    assert empty == [("", "")] * 8 + [("class_1", "")]


def test_names_that_are_not_utf8(pictures, tmp_path, capsys):
    """A class caf\\xe9 ended in a traceback, and the config.json that it left stopped the next try."""
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        shutil.copytree(pictures / split, tmp_path / "d" / split)
        (tmp_path / "d" / split / "class_0").rename(tmp_path / "d" / split / odd)
        os.rename(tmp_path / "d" / split / "class_1", tmp_path / "d" / split / "thé")
    (tmp_path / "d" / "train" / odd / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "d").rename(tmp_path / odd)
    data, out = str(tmp_path / odd), str(tmp_path / f"run {odd}")
    words = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "16", "--gate", "dense"]
    assert main(["train", "--data", data, "--out", out, "--epochs", "9", "--max-time", "1s", *words]) in (0, 3)
    assert main(["train", "--out", out, "--resume", "--force", "--max-time", "1m", "--epochs", "9"]) == 0
    assert json.loads(Path(out, "classes.json").read_text())[0] == odd
    assert "thé" in Path(out, "classes.json").read_text(encoding="utf-8")
    assert json.loads(Path(out, "quarantine.jsonl").read_text())["path"] == f"{data}/train/{odd}/bad.jpg"
    assert main(["report", out]) == 0
    assert main(["evaluate", out, "--data", data, "--out", str(tmp_path / "p.csv")]) == 0
    assert "caf\\udce9/bad.jpg: text" in capsys.readouterr().out
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"caf\\udce9", "thé", "class_2", "class_3"}
    assert main(["pack", data, str(tmp_path / f"pack {odd}")]) == 0
    assert main(["evaluate", out, "--data", str(tmp_path / f"pack {odd}")]) == 0


def test_other_range_of_bits_is_refused(run, tmp_path, capsys):
    """What the message says works when followed."""
    for i in range(4):
        (tmp_path / "d" / f"class_{i}").mkdir(parents=True)
        Image.fromarray(np.full((40, 40), 900, np.uint16)).save(tmp_path / "d" / f"class_{i}" / "0.png")
    assert main(["pack", str(tmp_path / "d"), str(tmp_path / "p10")]) == 0
    assert main(["pack", str(tmp_path / "d"), str(tmp_path / "p12"), "--bits", "12"]) == 0
    words = ["--val-dir", str(tmp_path / "p12"), "--image-size", "32", "--batch-size", "4", "--epochs", "1"]
    out = tmp_path / "run"
    train = ["train", "--data", str(tmp_path / "p12"), "--out", str(out), "--gate", "dense", *words]
    assert main([*train, *ARCH]) == 0
    assert json.loads((out / "summary.json").read_text())["data"]["bits"] == 12
    away = shutil.copy(out / "model.safetensors", tmp_path / "w.safetensors")
    for weights in (away, out, out / "checkpoints" / "best.pt"):
        assert main(["evaluate", str(weights), *ARCH, "--data", str(tmp_path / "p10")]) == 2
        assert "pack it again with --bits 12" in capsys.readouterr().err
        assert main(["evaluate", str(weights), *ARCH, "--data", str(tmp_path / "p12")]) == 0
        assert "of 16-bit pictures the lower 12 bits" in capsys.readouterr().out


def test_evaluation_at_another_size_is_told(run, pictures, capsys):
    """It was refused, though networks are often better at a larger size than they were trained at."""
    assert main(["evaluate", str(run), "--data", str(pictures), "--image-size", "48"]) == 0
    assert "evaluated at 48 px, since --image-size asks for it; trained for 32" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--data", str(pictures), "--image-size", "32"]) == 0
    assert "--image-size asks" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "-5"], "--image-size -5"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--out", "nodir/x.csv"], "no such folder"),
        (["--out", "."], "is a folder"),
        (["--arch", "resnet17"], "leave --arch out"),
        (["--device", "cuda"], "--device cuda"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, pictures, capsys, arguments, words):
    assert main(["evaluate", str(run), "--data", str(pictures), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
