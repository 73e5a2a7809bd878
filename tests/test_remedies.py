"""Whoever follows the remedy of a message gets further: what it names exists and is accepted.

Messages about several processes: `distributed/test_rank_remedies.py`. A GPU's order (CUDA_DEVICE_ORDER):
`energy/test_nvml.py`. A batch that fits after out of memory: `session/test_out_of_memory.py`. Not followed, since it
would change this machine or takes one that is not there: installing or updating torch, DALI, Triton, a compiler or a
driver, a reboot, a container's --gpus, --shm-size and NVIDIA_DRIVER_CAPABILITIES, chmod of RAPL's files (root reads
them all).
"""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from fastast.cli import main
from fastast.commands import doctor_checks
from fastast.energy.nvml import NO_DRIVER, NvmlSystem
from fastast.session import session
from tests.conftest import write_pictures
from tests.nets import tiny

NET = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "4", "--epochs", "1", "--gate", "dense"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Bare class folders, the same for validation, and the current folder beside them."""
    for seed, name in enumerate(("bare", "held")):
        write_pictures(tmp_path / name, num_classes=2, per_class=4, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(capsys, *arguments):
    """The exit code of a command and what it said last."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.err.strip()


@pytest.mark.parametrize("remedy", [["--val-dir", "held"], ["--val-split", "0.25"]])
def test_class_folders_without_a_validation_split(folders, capsys, remedy):
    """--val-dir was answered by "--data and --train-dir/--val-dir exclude each other"."""
    code, error = say(capsys, "train", *NET, "--data", "bare", "--out", "run")
    assert (code, remedy[0] in error) == (2, True)
    assert say(capsys, "train", *NET, "--data", "bare", "--out", "run", *remedy) == (0, "")


def test_split_that_holds_nothing_out(tmp_path, capsys, monkeypatch):
    """Classes of one picture: --val-split refuses them, --val-dir takes them."""
    monkeypatch.chdir(tmp_path)
    for name in ("bare", "held"):
        write_pictures(tmp_path / name, num_classes=4, per_class=1, seed=3)
    code, error = say(capsys, "train", *NET, "--data", "bare", "--val-split", "0.5")
    assert (code, "--val-split" in error) == (2, True)
    assert say(capsys, "train", *NET, "--data", "bare", "--val-dir", "held", "--out", "run") == (0, "")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["--data", "bare", "--train-dir", "bare"], ["--data", "bare"]),
        (["--val-dir", "held"], ["--val-dir", "held", "--data", "bare"]),
        (["--val-dir", "held"], ["--val-dir", "held", "--train-dir", "bare"]),
        (["--data", "bare", "--val-dir", "held", "--val-split", "0.1"], ["--data", "bare", "--val-dir", "held"]),
        (["--train-dir", "bare,,held"], ["--train-dir", "bare,held"]),
        (["--force"], ["--out", "new"]),
        (["--epochs", "0.5", "--gate", "random"], ["--epochs", "0.5", "--gate", "random", "--warmup-epochs", "0"]),
        (["--target", "30"], ["--target", "0.1"]),
        (["--max-time", "8"], ["--max-time", "8h50m"]),
        (["--unbiased", "--selection", "hard"], ["--unbiased", "--selection", "soft"]),
        (["--data", ""], []),
        (["--arch", "resnet19"], ["--arch", "resnet18"]),
        (["--no-flips"], ["--no-flip"]),
        (["--nproc", "two"], ["--nproc", "1"]),
        (["--nproc", "0"], ["--nproc", "auto", "--device", "cpu"]),
    ],
)
def test_contradicting_options(folders, capsys, monkeypatch, wrong, right):
    monkeypatch.setattr(session, "_run", lambda *_, **__: 0)
    if wrong[0] != "--arch":  # which is checked where the run starts
        code, error = say(capsys, "train", *wrong)
        assert (code, error.count("\n")) == (2, 0)
    assert say(capsys, "train", *right) == (0, "")


@pytest.mark.parametrize(("number", "batch"), [(9, 8), (4, 4), (2, 2)])
def test_batch_larger_than_the_set(tmp_path, capsys, number, batch):
    data = tmp_path / "data"
    write_pictures(data / "train", num_classes=1, per_class=number, seed=0)
    write_pictures(data / "val", num_classes=1, per_class=2, seed=1)
    arguments = ["train", *NET, "--data", data, "--out", tmp_path / "run", "--batch-size"]
    assert main([*map(str, arguments), "64"]) == 0
    assert (
        f"--batch-size 64: larger than the training set of {number} pictures; {batch} is used"
        in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == batch


def test_set_of_one_picture(tmp_path, capsys):
    """It was told to use --batch-size 2, which is larger than the set again."""
    write_pictures(tmp_path / "data" / "train", num_classes=1, per_class=1, seed=0)
    write_pictures(tmp_path / "data" / "val", num_classes=1, per_class=1, seed=1)
    code, error = say(capsys, "train", *NET, "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert (code, error[-12:]) == (2, "add pictures")


def test_pack_reads_what_training_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "webp" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), (i * 9, 0, 0)).save(tmp_path / "webp" / name / f"{i}.jpg", "WEBP")
    code, error = say(capsys, "train", *NET, "--data", "webp", "--val-split", "0.25")
    assert (code, "WebP" in error) == (2, True)
    assert say(capsys, "pack", "webp", "packed")[0] == 0
    assert say(capsys, "train", *NET, "--data", "packed", "--val-split", "0.25", "--out", "run") == (0, "")


def test_pack_without_a_folder(folders, capsys):
    code, error = say(capsys, "pack", "bare")
    assert (code, "fastast pack SRC OUT" in error) == (2, True)
    assert say(capsys, "pack", "bare", "packed")[0] == 0


def test_run_that_is_there_already(folders, capsys):
    arguments = ["train", *NET, "--data", "bare", "--val-dir", "held", "--out"]
    assert say(capsys, *arguments, "a") == (0, "")
    code, error = say(capsys, *arguments, "a")
    assert (code, "continue it with --resume, or name another folder" in error) == (2, True)
    assert say(capsys, *arguments, "a", "--resume") == (0, "")
    (wanted,) = re.findall(r"continue from last.pt, or start with (--weights)", say(capsys, *_best("a"))[1])
    assert say(capsys, *arguments, "b", wanted, "a/checkpoints/best.pt") == (0, "")
    code, error = say(capsys, *arguments, "c", wanted, "a/checkpoints/last.pt")
    assert (code, "name best.pt beside it, or the run's model.safetensors" in error) == (2, True)
    assert say(capsys, *arguments, "c", wanted, "a/model.safetensors") == (0, "")
    code, error = say(capsys, "report", "bare")
    assert (code, "name the --out of a `fastast train`" in error) == (2, True)
    code, error = say(capsys, "report", "a")
    assert (code, "\nnext: fastast report a --baseline" in error) == (0, True)


def _best(run):
    return ["train", "--resume", f"{run}/checkpoints/best.pt"]


@pytest.mark.parametrize(
    ("wrong", "rights"),
    [
        (["--device", "cuda"], [["--device", "cpu"]]),
        (["--precision", "fp16"], [["--precision", name] for name in ("auto", "fp32", "bf16")]),
        (["--compile", "reduce-overhead"], [["--compile", "off"]]),
        (["--arch", "tests.test_remedies:noisy", "--compile", "on"], [["--compile", "off"]]),
        (["--lr", "1e30", "--warmup-epochs", "0", "--epochs", "20"], [["--lr", "0.1"]]),
    ],
)
def test_what_a_cpu_cannot_do(folders, capsys, monkeypatch, wrong, rights):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["train", *NET, "--data", "bare", "--val-dir", "held", "--out"]
    code, error = say(capsys, *arguments, "a", *wrong)
    assert (code, error.count("\n")) == (2, 0)
    for number, right in enumerate(rights):
        assert right[1] in error or right[0] in error
        assert say(capsys, *arguments, f"b{number}", *wrong, *right) == (0, "")


def noisy(num_classes):
    """A network with a print, which no compiler takes as one graph."""
    network = tiny(num_classes)
    network.register_forward_hook(lambda *_: print(end=""))
    return network


def test_compiler_is_lacking(monkeypatch):
    """ "Train with --compile off", which the test above does."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    check = doctor_checks.check_compiler()
    assert (check.status, "or train with --compile off" in check.remedy) == ("warn", True)


def test_doctor_says_why_there_is_no_gpu(capsys, monkeypatch):
    """As the refusal of --device cuda promises."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings = doctor_checks.gpu_findings(NvmlSystem(reason=NO_DRIVER), torch.version.cuda, False, [], [])
    assert [(check.name, NO_DRIVER in check.value) for check in findings] == [("GPU", True)]


def test_metered_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = say(capsys, "meter")
    assert (code, "fastast meter -- python train.py" in error) == (2, True)
    assert say(capsys, "meter", "--json", "no/a.json", "--", "true")[0] == 2
    assert say(capsys, "meter", "--json", "a.json", "--", "true")[0] == 0
