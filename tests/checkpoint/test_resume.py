"""Stopped runs resume to the same bits, and nothing else is taken for such a run."""

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.checkpoint.file_format import load_checkpoint, save_checkpoint
from fastast.checkpoint.resume import find_start
from fastast.cli import main
from fastast.config.presets import PRESETS
from fastast.errors import InputError
from fastast.gates.registry import GATES
from fastast.run_folder import RunFolder
from fastast.session import session
from fastast.session.checkpointer import Checkpointer
from fastast.signals import StopRequest
from tests.conftest import damaged_png
from tests.session.test_disk import assert_resumes
from tests.stops import stopping_at
from tests.train.test_run import gated, lines_of, losses, options, summary_of

__all__ = ["gated"]


def stopped_run(monkeypatch, data, out, **changes):
    """A run that was interrupted right after its first epoch."""
    finish = Checkpointer.finish_epoch

    def finish_and_signal(*arguments):
        finish(*arguments)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "finish_epoch", finish_and_signal)
        assert main(["train", *options(data, out, **changes)]) == 130


@pytest.mark.parametrize(
    ("gate", "target"), [*((gate, 0.3) for gate in GATES), ("memory", "auto"), ("forward", "auto")]
)
def test_resumed_run_equals_undisturbed_run(pictures, tmp_path, monkeypatch, gate, target):
    """Three stops, in warm-up, gated part and evaluation, wherever the count of batches happens to fall."""
    changes = {
        "gate": gate,
        "target": target,
        "warmup_epochs": 0.7,
        "epochs": 2.6,
        "anneal": 0.3,
        "prune": 0.6,
        "log_every": 2,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *options(pictures, whole, **changes), "--unbiased"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", stopping_at([6, 9, 5]))
        arguments = [*options(pictures, parts, **changes), "--unbiased", "--resume"]
        codes = [main(["train", *arguments]) for _ in range(4)]
    assert codes == [128 + signal.SIGUSR1] * 3 + [0]
    assert differences(RunFolder(parts), RunFolder(whole)) == []
    assert len(summary_of(parts)["resumes"]) == 3


def test_line_of_the_last_batch_survives_a_stop(pictures, tmp_path, monkeypatch):
    """Stops after the last batches of the warm-up and of the epoch, which are logged one batch late."""
    changes = {"gate": "forward", "epochs": 1.4, "warmup_epochs": 0.7, "log_every": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *options(pictures, whole, **changes)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", stopping_at([11, 5]))
        codes = [main(["train", *options(pictures, parts, **changes), "--resume"]) for _ in range(3)]
    assert codes == [128 + signal.SIGUSR1] * 2 + [0]
    assert differences(RunFolder(parts), RunFolder(whole)) == []


def test_resumed_run_keeps_what_its_preset_was(pictures, tmp_path, monkeypatch):
    """A later version may change the preset, but not a run that started from it."""
    out = tmp_path / "run"
    words = [word for word in options(pictures, out) if word not in ("--epochs", "3")]
    words += ["--preset", "scratch", "--train-size", "24:32", "--max-time", "0.001s"]
    assert main(["train", *words]) == 3
    config = json.loads((out / "config.json").read_text())
    assert (config["preset"], config["budget"]) == ("scratch", PRESETS["scratch"]["budget"])
    monkeypatch.setitem(PRESETS, "scratch", {"budget": "3ep", "ema": "auto"})
    start = find_start({"preset": "scratch", "out": str(out)}, "auto")
    assert (start.config.budget, start.config.ema) == (config["budget"], "off")
    with pytest.raises(InputError, match="--preset finetune: the run was started with scratch"):
        find_start({"preset": "finetune", "out": str(out)}, "auto", force=True)


def test_max_time_stops_with_a_checkpoint_and_its_exit_code(gated, pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out), "--max-time", "0.001s"]) == 3
    assert "--max-time is up" in capsys.readouterr().out
    assert summary_of(out)["stopped"] == "max_time"
    assert_resumes(out, gated, "--max-time", "1h")


def test_checkpoints_within_an_epoch_change_nothing(gated, pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out), "--checkpoint-every", "1e-9"]) == 0
    assert losses(out) == losses(gated)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "previous.pt", "best.pt"}


def test_force_resumes_with_other_options(pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out), "--force"]) == 2
    assert "--resume" in capsys.readouterr().err
    stopped_run(monkeypatch, pictures, out)
    assert main(["train", *options(pictures, out, target=0.5), "--resume"]) == 2
    assert "started with 0.3" in capsys.readouterr().err
    assert main(["train", *options(pictures, out, gate="memory"), "--resume", "--force"]) == 2
    assert "started with forward" in capsys.readouterr().err
    assert main(["train", *options(pictures, out, target=0.5, epochs=4), "--resume", "--force"]) == 0
    summary = summary_of(out)
    (resumed,) = summary["resumes"]
    assert resumed["changed"] == ["--epochs 3.0 -> 4.0", "--target 0.3 -> 0.5"]
    assert json.loads((out / "config.json").read_text())["target"] == 0.5
    samples = summary["samples"]
    assert samples["offered"] == 4 * 240
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["gate"]["activation_rate"] == pytest.approx(0.5, rel=0.1)
    # A finished run goes on if there is more to do.
    assert main(["train", *options(pictures, out, target=0.5, epochs=5), "--resume", "--force"]) == 0
    assert [line["epoch"] for line in lines_of(out) if line["kind"] == "epoch"] == [1, 2, 3, 4, 5]


def test_other_pictures_are_refused_even_with_force(pictures, tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    stopped_run(monkeypatch, data, out)
    picture = data / "train" / "class_0" / "0000.jpg"
    more = shutil.copy(picture, picture.with_name("more.jpg"))
    for force in ([], ["--force"]):
        assert main(["train", *options(data, out), "--resume", *force]) == 2
        assert "the data has changed" in capsys.readouterr().err
    more.unlink()
    assert main(["train", "--resume", str(out / "checkpoints" / "last.pt")]) == 0


def test_a_damaged_checkpoint_falls_back_to_the_previous(gated, pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out), "--checkpoint-every", "0", "--max-time", "0.001s"]) == 3
    assert main(["train", "--out", str(out), "--resume", "--max-time", "0.001s"]) == 3
    last, previous = RunFolder(out).last, RunFolder(out).previous
    damaged, whole = bytearray(last.read_bytes()), previous.read_bytes()
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    previous.write_bytes(whole[: len(whole) // 2])
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert "last.pt: damaged" in capsys.readouterr().err
    previous.write_bytes(whole)
    assert_resumes(out, gated, "--max-time", "1h")
    assert "continuing from the one before" in capsys.readouterr().out


def test_a_folder_with_a_run_needs_resume(gated, pictures, capsys):
    arguments = options(pictures, gated)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--out" in error
    before = (gated / "metrics.jsonl").read_bytes()
    assert main(["train", *arguments, "--resume", "auto"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (gated / "metrics.jsonl").read_bytes() == before
    assert main(["train", *options(pictures, gated, target=0.5), "--resume"]) == 0  # finished: only shown


def test_a_run_resumes_from_another_directory_and_in_another_folder(gated, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    stopped_run(monkeypatch, pictures.name, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert main(["train", "--resume", str(last), "--out", "elsewhere"]) == 0
    assert losses(tmp_path / "elsewhere") == losses(gated)
    assert main(["train", "--resume", str(last), "--out", str(gated)]) == 2
    assert main(["train", "--out", "run", "--data", str(pictures), "--resume"]) == 0
    assert losses(tmp_path / "run") == losses(gated)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("nosuch.pt", "no such checkpoint"), ("best.pt", "holds weights only"), ("text.pt", "damaged")],
)
def test_other_files_are_refused_in_one_line(gated, tmp_path, monkeypatch, capsys, checkpoint, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("text")
    shutil.copy(gated / "checkpoints" / "best.pt", tmp_path / "best.pt")
    assert main(["train", "--resume", checkpoint]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "text.pt"]


def test_step_lines_and_quarantine_survive_a_resume(pictures, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for split in ("train", "val"):  # damage that the header scan cannot see
        picture = data / split / "class_1" / "0003.jpg"
        picture.with_suffix(".png").write_bytes(damaged_png())
        picture.unlink()
    assert main(["train", *options(data, tmp_path / "whole", log_every=4)]) == 0
    stopped_run(monkeypatch, data, tmp_path / "parts", log_every=4)
    assert_resumes(tmp_path / "parts", tmp_path / "whole")
    assert summary_of(tmp_path / "parts")["data"]["quarantined"] == 2


def test_lost_logs_are_not_padded(gated, pictures, tmp_path, monkeypatch):
    stopped_run(monkeypatch, pictures, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert [line["epoch"] for line in lines_of(tmp_path / "run") if line["kind"] == "epoch"] == [2, 3]


def test_a_summary_of_another_version_is_refused(gated, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(gated, out)
    (out / "summary.json").write_text('{"stopped": null}')
    assert main(["train", "--out", str(out), "--resume"]) == 2
    assert "another version" in capsys.readouterr().err


def test_renamed_classes_are_refused_even_with_force(pictures, tmp_path, monkeypatch, capsys):
    """The outputs keep their order, so that a renamed class would give its label to another."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    stopped_run(monkeypatch, data, out)
    before = (out / "classes.json").read_bytes()
    for split in ("train", "val"):
        (data / split / "class_0").rename(data / split / "class_9")
    for force in ([], ["--force"]):
        assert main(["train", "--out", str(out), "--resume", *force]) == 2
        error = capsys.readouterr().err
        assert "the classes have changed since (class_0 -> class_9)" in error
        assert "name the folders as they were" in error
    assert (out / "classes.json").read_bytes() == before
    for split in ("train", "val"):
        (data / split / "class_9").rename(data / split / "class_0")
    assert main(["train", "--out", str(out), "--resume"]) == 0


def test_files_of_others_are_not_replaced(pictures, tmp_path, monkeypatch, capsys):
    """A folder with a `model.safetensors` but no run is not ours; that file was deleted."""
    monkeypatch.setattr(session, "_run", lambda *_, **__: 0)
    names = ("model.safetensors", "classes.json", "metrics.jsonl", "report.html", "checkpoints/best.pt", "thumbs/1.jpg")
    for number, name in enumerate(names):
        out = tmp_path / str(number)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        for resume in ([], ["--resume"]):
            assert main(["train", *options(pictures, out), *resume]) == 2
            assert f"holds {name.replace('thumbs/1.jpg', 'thumbs')} but no run" in capsys.readouterr().err
        assert (out / name).read_text() == "mine"
        (out / name.split("/")[0]).rename(tmp_path / f"away-{number}")
        assert main(["train", *options(pictures, out)]) == 0


def test_resuming_elsewhere_replaces_no_files_of_others(gated, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text("mine")
    last = gated / "checkpoints" / "last.pt"
    assert main(["train", "--resume", str(last), "--out", str(tmp_path)]) == 2
    assert "holds model.safetensors but no run" in capsys.readouterr().err


def test_config_of_another_program_is_no_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("mine")
    assert main(["train", "--out", str(tmp_path), "--resume"]) == 2
    assert "not the options of a run" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_resume_says_what_it_finds_no_run_in(gated, pictures, tmp_path, monkeypatch, capsys):
    """`--resume --out TYPO` must not train the demo set, nor `--resume` alone a new run each time."""
    monkeypatch.setattr(session, "_run", lambda *_, **__: 0)
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["--resume", "--out", "typo"], "no run in " + str(tmp_path / "typo")),
        (["--resume"], "name the run with --out DIR, or its checkpoint with --resume FILE"),
        (["--resume", "--data", str(pictures)], "name the run with --out DIR"),
        (["--resume", str(gated)], f"continue it with --out {gated} --resume"),
        (["--resume", "absent.pt"], "absent.pt: no such checkpoint; check it"),
    ):
        assert main(["train", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    for arguments in (
        ["--out", "typo"],
        ["--resume", "--out", "typo", "--data", str(pictures)],
        ["--out", str(gated), "--resume"],
        ["--resume", str(gated / "checkpoints" / "last.pt")],
    ):
        assert main(["train", *arguments]) == 0


def test_the_data_folder_is_refused_as_a_run_folder(pictures, capsys):
    assert main(["train", *options(pictures, pictures)]) == 2
    assert "is the data folder" in capsys.readouterr().err


def test_runs_that_start_in_the_same_second_get_a_folder_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastast.checkpoint.resume.time.strftime", lambda _: "20270101-120000")
    with ThreadPoolExecutor(8) as threads:
        starts = list(threads.map(lambda _: find_start({"arch": "resnet18"}, None), range(8)))
    assert len({start.folder.path for start in starts}) == 8
    assert all(start.folder.path.is_dir() for start in starts)
    shutil.rmtree("runs")
    assert main(["train", "--data", "absent"]) == 2  # nor does a run that is refused leave one behind
    assert "absent" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_version_names_it(pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    stopped_run(monkeypatch, pictures, out)
    capsys.readouterr()
    written = load_checkpoint(RunFolder(out).last)
    del written["trainer"]["shared"]["log"]
    for version, words in (
        (written["version"], "last.pt: does not fit this run (KeyError: 'log'); start anew with another --out"),
        ("0.0.9", "last.pt: was written by fastast 0.0.9, whose state fastast 0."),
        (None, "last.pt: was written by an earlier version of fastast, whose state"),
    ):
        save_checkpoint(RunFolder(out).last, {**written, "version": version})
        assert main(["train", "--out", str(out), "--resume"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "another --out (--weights takes this run's model.safetensors)" in error
        assert error.count("\n") == 1
        assert ("continue with that version" in error) == (version != written["version"])


def test_run_that_went_back_is_not_brought_forward_again_by_a_kill(tmp_path):
    """What it continues from is its last checkpoint from then on."""
    folder = RunFolder(tmp_path)
    folder.create()
    folder.metrics.write_bytes(b"{}\n{}\n")
    folder.last.write_bytes(b"newer")
    folder.previous.write_bytes(b"older")
    folder.continue_from(folder.previous, {"metrics.jsonl": 3, "quarantine.jsonl": 0})
    assert folder.last.read_bytes() == folder.previous.read_bytes() == b"older"
    assert folder.metrics.read_bytes() == b"{}\n"
