"""The command line: its frozen surface, and one line with a remedy for every mistake."""

import argparse
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from fastast import __version__
from fastast.cli import build_parser, main
from tests.conftest import ROOT, run_fastast

COMMON = (
    "--help --help-all --config --data --arch --weights --preset --image-size --batch-size --lr --target --seed "
    "--device --nproc"
)
ADVANCED = (
    "--train-dir --val-dir --val-split --lr-warmup --momentum --weight-decay --label-smoothing --min-crop --no-flip "
    "--selection --explore --unbiased --prune --warmup-epochs --anneal --significance --checkpoint-every "
    "--stall-timeout --dense-calibration --power-limit --lock-clocks --price-per-kwh --gco2-per-kwh --precision "
    "--compile --decode --deterministic --threads --log-every --log --eval-every --train-size --class-weights "
    "--start --freeze --freeze-bn --ema --optimizer"
)
TRAIN = "--out --gate --epochs --budget --resume --max-time"
BENCH = "--out --arms --budgets --seeds --time --dry-run"
SURFACE = {
    "train": f"{COMMON} {ADVANCED} {TRAIN} --force",
    "bench": f"{COMMON} {ADVANCED} {BENCH}",
    "evaluate": "--help --data --arch --image-size --out --batch-size --device",
    "predict": "--help --arch --image-size --top --out --format --batch-size --device",
    "export": "--help --arch --image-size --to --data --out",
    "audit": "--help --data --out --batch-size --device",
    "report": "--help --baseline --out",
    "pack": "--help --bits --max-side --shard-size --quality --verify --workers",
    "meter": "--help --json --plot --interval --price-per-kwh --gco2-per-kwh",
    "doctor": "--help --json --quick",
}


def commands():
    return build_parser()._subparsers._group_actions[0].choices


def refused(capsys, *arguments):
    """What a command that exits with code 2 says: one line."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_command_line_surface():
    found = {
        name: {
            option
            for action in parser._actions
            if action.help != "==SUPPRESS=="
            for option in action.option_strings
            if option != "-h"
        }
        for name, parser in commands().items()
    }
    assert found == {name: set(options.split()) for name, options in SURFACE.items()}


@pytest.mark.parametrize(("command", "own"), [("train", TRAIN), ("bench", BENCH)])
def test_help_shows_common_options_and_help_all_every_one(capsys, command, own):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as caught:
            main([command, flag])
        assert caught.value.code == 0
        shown[flag] = capsys.readouterr().out
        assert "example" in shown[flag]
        assert "(default 224)" in shown[flag]
        assert "--proxy-size" not in shown[flag]
    lines = [line.split()[0].rstrip(",") for line in shown["--help"].splitlines() if line.startswith("  -")]
    assert {"-h", *lines} == {"-h", *COMMON.split(), *own.split()} - {"--help"}
    assert all(option in shown["--help-all"] for option in SURFACE[command].split())


@pytest.mark.parametrize("command", list(SURFACE))
def test_options_are_not_abbreviated(command):
    assert not commands()[command].allow_abbrev


def test_abbreviated_option_is_refused(capsys):
    assert "--gat" in refused(capsys, "train", "--gat", "dense")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--proxy-size", "112"], "--proxy-size was removed with the proxy gate; use --gate memory"),
        (["train", "--proxy-arch=tiny"], "--proxy-arch was removed"),
        (["train", "--proxy-bn-every", "8"], "--proxy-bn-every was removed"),
        (["train", "--clip-weights", "3"], "--explore"),
        (["train", "--target-schedule", "linear"], "--warmup-epochs and --anneal"),
        (["train", "--read", "mmap"], "pread"),
        (["train", "--gate", "proxy"], "--gate proxy was removed, as it was never better than random"),
        (["train", "--significance", "loss+entropy"], "use loss+std"),
        (["bench", "--read", "mmap"], "pread"),
        (["bench", "--out", "b", "--arms", "dense;proxy"], "--arms proxy was removed"),
        (["bench", "--out", "b", "--gates", "random"], "--gates is --arms now"),
        (["bench", "--out", "b", "--budget", "30m"], "the time that the whole bench may take is --time 30m"),
        (["bench", "--out", "b", "--epochs", "4"], "name what each may spend in --budgets"),
        (["pack", "--thumbnails", "64", "a", "b"], "packs that hold thumbnails can still be read"),
    ],
)
def test_removed_option_names_its_replacement(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_run_with_removed_option_is_not_resumed(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"gate": "memory", "read": "auto", "proxy_size": null}')
    error = refused(capsys, "train", "--out", str(tmp_path), "--resume")
    assert "--proxy-size was removed" in error
    assert "another version" in error
    (tmp_path / "config.json").write_text('{"gate": "proxy"}')
    assert "--gate proxy was removed" in refused(capsys, "train", "--out", str(tmp_path), "--resume")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--target", "30"], "--target 30: must be in (0, 1]"),
        (["train", "--out", "new", "--resume", "--target", "30"], "--target 30: must be in (0, 1]"),
        (["train", "--config", "run.toml"], "run.toml: --seed 1.5: expected int"),
        (["train", "--out", "old", "--resume", "--config", "run.toml"], "run.toml: --seed 1.5: expected int"),
        (["train", "--gate", "magic"], "--gate magic: choose from dense"),
        (["bench", "--data", "D", "--out", "new", "--target", "30"], "--target 30"),
        (["evaluate", "nowhere", "--data", "D"], "nowhere: no such run folder"),
        (["--version"], None),
        (["--help"], None),
        (["train", "--help-all"], None),
    ],
)
def test_options_are_checked_without_torch(tmp_path, arguments, words):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    (tmp_path / "run.toml").write_text("seed = 1.5")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "fastast", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == (2 if words else 0), done.stderr
    assert (words or "") in done.stderr
    assert done.stderr.count("\n") == (1 if words else 0)


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
def test_broken_data_is_one_line(tmp_path, capsys, how, words):
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (i * 9, 0, 0)).save(root / split / name / f"{i}.jpg")
    _break(root, how)
    error = refused(capsys, "train", "--data", str(root), "--out", str(tmp_path / "run"))
    assert error.startswith("fastast train: error: ")
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "resnet19"], ["--arch resnet19", "resnet18"]),
        (["--dense-calibration", "4096"], ["--dense-calibration 4096", "of 40 epochs", "use 599 or fewer"]),
        (["--weights", "absent.pth"], ["absent.pth", "no such file"]),
        (["--device", "cuda"], ["--device cuda", "doctor"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--selection", "firm"], ["--selection firm", "soft, hard"]),
        (["--out", "/proc/run"], ["--out /proc/run"]),
    ],
)
def test_bad_option_is_one_line(pictures, tmp_path, capsys, arguments, words):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    common = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "16"]
    error = refused(capsys, "train", "--data", str(pictures), *common, *out, *arguments)
    for word in words:
        assert word in error
    assert not (tmp_path / "run").exists()


def text_arguments():
    """Each option and positional argument that takes text, with what else its command needs."""
    needed = {"bench": ["--out", "b"], "evaluate": ["run", "--data", "d"], "report": ["run"], "pack": ["a", "b"]}
    needed |= {"predict": ["run", "d"], "export": ["run", "--to", "onnx"], "audit": ["run"]}
    for name, parser in commands().items():
        for action in parser._actions:
            if action.type in (None, str) and action.nargs not in (0, argparse.REMAINDER) and not action.choices:
                words = needed.get(name, [])
                if action.option_strings and action.help != "==SUPPRESS==":
                    yield [name, *words, action.option_strings[0], ""]
                elif not action.option_strings:
                    yield [name, *("" if word == words[0] else word for word in words)]


@pytest.mark.parametrize("arguments", list(text_arguments()), ids=" ".join)
def test_empty_argument_is_refused(capsys, arguments):
    """`--data ""`, as of a variable that is not set, must not become the default."""
    assert "is empty; give a value, or leave it out" in refused(capsys, *arguments)


def test_metered_command_may_have_empty_arguments():
    assert build_parser().parse_args(["meter", "--", "true", ""]).measured[-2:] == ["true", ""]


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--target", "a tenth"], ["--epochs"]])
def test_parser_error_is_one_line(capsys, arguments):
    assert "--help" in refused(capsys, "train", *arguments)


@pytest.mark.parametrize(
    ("variables", "what"),
    [({"WORLD_SIZE": "2"}, "'RANK'"), ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"), ({"WORLD_SIZE": "two"}, "two")],
)
def test_incomplete_launcher_variables_are_refused(variables, what, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert what in refused(capsys, "train")


def test_python_m_fastast(tmp_path):
    done = run_fastast("train", "--data", tmp_path / "absent", cwd=ROOT)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_completion_of_a_shell(capsys, monkeypatch):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert caught.value.code == 0
    typed = {"report --ba": ["--baseline"], "bench --device c": ["cuda", "cpu"], "train --gate mem": ["memory"]}
    script = capsys.readouterr().out
    for words, expected in typed.items():
        at = len(words.split())
        ask = f"COMP_WORDS=(fastast {words}); COMP_CWORD={at}; _shtab_fastast; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected, words
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "needs shtab: pip install shtab" in refused(capsys, "--print-completion", "zsh")
