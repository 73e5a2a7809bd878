"""Every command that README and docs/ show: its options exist, and what can be run on small pictures runs."""

from __future__ import annotations

import configparser
import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from fastast.checkpoint.file_format import export_weights
from fastast.cli import build_parser, main
from fastast.config.options import command_words
from fastast.config.presets import PRESETS
from fastast.models.weights_info import WeightsInfo
from tests.conftest import ROOT
from tests.docs.pages import PAGES, blocks, commands, name_of

OUR_PROGRAMS = {"fastast", "torchrun", "python", "python3"}
# Programs of others, whose options are not ours to check.
OTHERS = {"bash", "cd", "docker", "export", "git", "gzip", "mkdir", "nvidia-smi", "pip", "pytest", "sbatch", "tar"}
OTHERS |= {"mkdocs", "mypy", "ruff", "sha256sum", "source"}
# Options in running text that are those of other programs, or of our benchmarks.
OF_OTHERS = {"--gpus", "--shm-size", "--ipc", "--user", "--security-opt", "--max-restarts", "--no-deps", "--all"}
OF_OTHERS |= {"--items"}
# In place of what the pages say, so that a command takes a second or two; the last of two equal options counts.
SMALL = ["--arch", "tests.nets:tiny", "--batch-size", "4", "--threads", "1"]
SMALL_PICTURES = ["--image-size", "32"]  # where the page does not say another size
# What in a command of ours says that it is parsed, but not run, and why.
NOT_RUN = {
    "--weights imagenet": "downloads",
    "--preset finetune": "downloads",
    "--budget 40m": "takes that long",
    "--budget 500kJ": "needs a GPU",
    "--gate cycle": "the test of the example runs it",
    "--config": "the tests of the recipes run it",
    "--nproc": "the tests of ranks run it",
    "/data": "of a container",
    "doctor": "its own tests run it",
}
# Pages whose commands run in the default suite: what does not train is quick.
QUICK = ("docs/reports.md",)


def of_fastast(page: Path) -> list[list[str]]:
    """The arguments of each call of the command line, however it is started."""
    found = []
    for words in commands(page):
        if words[0] == "docker" and "fastast" in words[:-1]:
            words = words[words.index("fastast") + 1 :]  # what runs in the image
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[0].endswith("fastast"):
            found.append(words[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_call_of_the_command_line_parses(page):
    for words in of_fastast(page):
        build_parser().parse_args(words)


def test_shell_blocks_are_bash():
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh"))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_programs_modules_and_extras_exist(page):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    for words in commands(page):
        program = Path(words[0]).name
        if program in ("python", "python3") and words[1] == "-m" and words[2].startswith("benchmarks."):
            spec = importlib.util.find_spec(words[2])
            assert spec is not None, words
            folder = Path(spec.origin).parent
            source = folder.rglob("*.py") if spec.submodule_search_locations else [Path(spec.origin)]
            text = "".join(path.read_text() for path in [*source, ROOT / "benchmarks/common.py"])
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), words
        else:
            assert program in OUR_PROGRAMS | OTHERS, words
    for extra in re.findall(r"(?:fastast|\.)\[(\w+)\]'", page.read_text()):
        assert extra in setup["options.extras_require"], extra


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_running_text_exist(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(--[a-z0-9][a-z0-9-]*)", text)) <= known_options() | OF_OTHERS


def test_presets_are_as_documented():
    page = (ROOT / "docs" / "fine-tuning.md").read_text()
    for name, options in PRESETS.items():
        assert f"| `{name}` | `{' '.join(command_words(options))}` |" in page


@functools.cache
def known_options() -> set[str]:
    """The options of all commands."""
    (subparsers,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    parsers = subparsers.choices.values()
    return {option for parser in parsers for action in parser._actions for option in action.option_strings}


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: imagenette, packed, pictures, holiday.jpg, and the runs a, dense and RUN."""
    root = tmp_path_factory.mktemp("shown")
    (root / "imagenette").symlink_to(pictures)
    words = ["train", "--data", str(pictures), "--out", str(root / "runs/a"), "--epochs", "2", "--lr", "0.01"]
    assert main([*words, *SMALL_PICTURES, *SMALL]) == 0
    shutil.copytree(root / "runs/a", root / "runs/dense")
    shutil.copytree(pictures / "val", root / "pictures")
    holiday = Image.open(pictures / "val/class_0/0000.jpg")
    holiday.save(root / "holiday.jpg")
    holiday.save(root / "pictures/holiday.png")
    (root / "RUN").mkdir()
    network = torchvision.models.resnet18(num_classes=4)
    info = WeightsInfo.of("resnet18", [f"class_{label}" for label in range(4)], 32)
    export_weights(root / "RUN" / "model.safetensors", network.state_dict(), info.to_metadata())
    return root


def run_page(page: Path) -> None:
    for words in of_fastast(page):
        shown = " ".join(words)
        if shown == "train" or any(f" {part} " in f" {shown} " for part in NOT_RUN):  # the demo set has its own tests
            continue
        if "--out" in words and "--resume" not in words:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        if words[0] in ("train", "bench"):
            words = [words[0], *SMALL_PICTURES, *words[1:], *SMALL, *(["--dry-run"] if words[0] == "bench" else [])]
        elif words[:2] == ["export", "RUN"]:
            words = [*words, "--data", "imagenette/val", "--out", "RUN/exported"]
        assert main(words) == 0, shown


@pytest.mark.parametrize("name", QUICK)
def test_quick_commands_run(name, trained, monkeypatch):
    monkeypatch.chdir(trained)
    run_page(ROOT / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in QUICK], ids=name_of)
def test_commands_run(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    run_page(page)
