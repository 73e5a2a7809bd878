"""The command line: its frozen surface, and one line with a remedy for every mistake."""

import shutil

import pytest
from PIL import Image

from fastast import __version__
from fastast.cli import build_parser, main
from tests.conftest import ROOT, run_fastast

TRAIN_OPTIONS = {
    *("--data", "--train-dir", "--val-dir", "--val-split", "--out", "--config", "--resume", "--help"),
    *("--arch", "--weights", "--image-size"),
    *("--epochs", "--batch-size", "--lr", "--lr-warmup", "--momentum", "--weight-decay"),
    *("--label-smoothing", "--min-crop"),
    *("--target-schedule", "--explore", "--unbiased", "--clip-weights", "--prune"),
    *("--proxy-size", "--proxy-arch", "--proxy-bn-every"),
    *("--gate", "--selection", "--target", "--warmup-epochs", "--anneal", "--significance"),
    *("--checkpoint-every", "--max-time", "--stall-timeout", "--force"),
    *("--nproc", "--tensorboard"),
    *("--dense-calibration", "--price-per-kwh", "--gco2-per-kwh"),
    *(
        "--seed",
        "--device",
        "--precision",
        "--compile",
        "--decode",
        "--read",
        "--deterministic",
        "--threads",
        "--log-every",
    ),
}


def test_the_commands_and_options_are_those_that_others_script_against():
    commands = build_parser()._subparsers._group_actions[0].choices
    assert set(commands) == {"train", "bench", "evaluate", "report", "pack", "meter", "doctor"}
    options = {name for action in commands["train"]._actions for name in action.option_strings if name != "-h"}
    assert options == TRAIN_OPTIONS


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "2.3x" in text
    assert "(default 0.1)" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastast {__version__}\n"


def _break(root, how):
    """A data folder with one thing wrong with it."""
    if how == "missing":
        shutil.rmtree(root)
    elif how == "empty":
        shutil.rmtree(root)
        root.mkdir()
    elif how == "no val":
        shutil.rmtree(root / "val")
    elif how == "class missing in val":
        shutil.rmtree(root / "val" / "b")
    elif how == "no class folders":
        for split in ("train", "val"):
            shutil.rmtree(root / split)
            (root / split).mkdir()
            Image.new("RGB", (40, 40)).save(root / split / "a.jpg")
    elif how == "only text":
        for path in root.rglob("*.jpg"):
            path.write_text("not a picture")
    elif how == "a file":
        shutil.rmtree(root)
        root.write_text("")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", ["data"]),
        ("empty", ["data"]),
        ("no val", ["--val-split", "--val-dir"]),
        ("class missing in val", ["b"]),
        ("no class folders", ["class"]),
        ("only text", [".jpg", "text, not a picture"]),
        ("a file", ["data"]),
    ],
)
def test_broken_data_is_one_line_and_exit_code_2(tmp_path, capsys, how, words):
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (i * 9, 0, 0)).save(root / split / name / f"{i}.jpg")
    _break(root, how)
    assert main(["train", "--data", str(root), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("fastast train: error: ")
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "resnet19"], ["--arch resnet19", "resnet18"]),
        (["--target", "0"], ["--target 0", "(0, 1]"]),
        (["--target", "1.01"], ["--target 1.01"]),
        (["--batch-size", "4096"], ["--batch-size 4096", "240", "--batch-size 128"]),
        (["--weights", "absent.pth"], ["absent.pth", "no such file"]),
        (["--device", "cuda"], ["--device cuda", "doctor"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--out", "/proc/run"], ["--out /proc/run"]),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(pictures, tmp_path, capsys, arguments, words):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    common = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "16"]
    assert main(["train", "--data", str(pictures), *common, *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--no-such-option"], ["--gate", "magic"], ["--target", "a tenth"], ["--selection", "firm"], ["--epochs"]],
)
def test_what_the_parser_refuses_is_one_line_and_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "--help" in error


@pytest.mark.parametrize(
    ("variables", "what"),
    [({"WORLD_SIZE": "2"}, "'RANK'"), ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"), ({"WORLD_SIZE": "two"}, "two")],
)
def test_a_launcher_that_says_half_is_refused(variables, what, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train"]) == 2
    assert what in capsys.readouterr().err


def test_it_runs_as_a_module_too(tmp_path):
    done = run_fastast("train", "--data", tmp_path / "absent", cwd=ROOT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
