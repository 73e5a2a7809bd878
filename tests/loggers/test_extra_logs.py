"""`--log`: loggers say what `metrics.jsonl` says, once, also after a resume; one that fails ends no run."""

import json
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastast.cli import main
from fastast.loggers import extra_logs
from fastast.loggers.console import Reporter
from fastast.loggers.extra_logs import EPOCH_TAGS, STEP_TAGS, ExtraLogs
from fastast.loggers.tensorboard import TensorBoardLogger
from fastast.run_folder import RunFolder
from tests.train.test_run import lines_of, options

STEP = dict.fromkeys(STEP_TAGS, 1.0) | {"kind": "step", "offered": 16}


def tensorboard_points(folder):
    """(offered, value) by tag, from the files alone."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_points(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(json.loads((folder / "loggers.json").read_text())["mlflow"])
    tags = [tag for tag in run.data.metrics if tag in {*STEP_TAGS.values(), *EPOCH_TAGS.values()}]
    return {tag: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)) for tag in tags}


def expected(lines):
    found, ended = {}, 0
    for line in lines:
        ended += line["offered"] if line["kind"] == "epoch" else 0
        tags = EPOCH_TAGS if line["kind"] == "epoch" else STEP_TAGS
        for name, tag in tags.items():
            if line[name] is not None:
                place = ended if line["kind"] == "epoch" else line["offered"]
                found.setdefault(tag, []).append((place, pytest.approx(line[name])))
    return found


def stopped_run(pictures, out, monkeypatch, logger):
    """Stops a run in its second epoch; returns its lines, of which the last four are in no checkpoint."""
    taken = []
    append = RunFolder.append_metrics

    def stop(self, line):
        append(self, line)
        taken.append(line)
        if len(taken) == 20:  # 15 batches, the line of their epoch, and four batches
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_metrics", stop)
    assert main(["train", *options(pictures, out, gate="memory", epochs=3), "--log", logger]) == 130
    monkeypatch.setattr(RunFolder, "append_metrics", append)
    return taken


def test_resumed_run_has_every_point_once(pictures, tmp_path, monkeypatch):
    out = tmp_path / "run"
    taken = stopped_run(pictures, out, monkeypatch, "tensorboard")
    lost = tensorboard_points(out)
    assert lost == expected(taken)
    assert len(lost["train/lr"]) == 19
    assert main(["train", "--out", str(out), "--resume"]) == 0
    found = tensorboard_points(out)
    assert found == expected(lines_of(out))
    assert [offered for offered, _ in found["val/top1"]] == [240, 480, 720]
    assert len(list((out / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_mlflow_keeps_every_point_once(pictures, tmp_path, monkeypatch):
    """It cannot take points back: those of the part that was lost stay, and are not sent again."""
    pytest.importorskip("alembic")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    out = tmp_path / "run"
    taken = stopped_run(pictures, out, monkeypatch, "mlflow")
    lost = mlflow_points(out)
    assert lost == expected(taken)
    assert main(["train", "--out", str(out), "--resume"]) == 0
    found, whole = mlflow_points(out), expected(lines_of(out))
    assert {tag: [place for place, _ in points] for tag, points in found.items()} == {
        tag: [place for place, _ in points] for tag, points in whole.items()
    }
    assert found["train/lr"] == whole["train/lr"]  # which are the same in both


def test_wandb_writes_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder(tmp_path)
    with ExtraLogs(["wandb"], folder, {"lr": 0.1}, Reporter()) as logs:
        folder.append_metrics(STEP)
        logs.finish({group: {"val_top1": 0.5, "source": "text"} for group in extra_logs.SUMMARY_GROUPS})
    assert capsys.readouterr().out == ""
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    shown = [json.loads((tmp_path / "loggers.json").read_text())["wandb"], "train/loss", "accuracy/val_top1"]
    # Its service writes on after the end of the run; a process that exits waits for it.
    until = time.monotonic() + 30
    while missing := [text for text in shown if text.encode() not in written.read_bytes()]:
        assert time.monotonic() < until, missing
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("tensorboard", "torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_missing_package_is_one_line(pictures, tmp_path, monkeypatch, capsys, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["train", *options(pictures, tmp_path / "run"), "--log", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--log {name}" in error
    assert f"pip install {package}" in error
    assert not (tmp_path / "run").exists()


def test_logger_that_fails_or_hangs_is_left_out(tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path)

    def full(self, offered, values):
        raise OSError(28, "No space left on device")

    with ExtraLogs(["tensorboard"], folder, {}, Reporter()):
        folder.append_metrics(STEP)
        monkeypatch.setattr(TensorBoardLogger, "add", full)
        folder.append_metrics(STEP)
        folder.append_metrics(STEP)
    monkeypatch.undo()
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [STEP] * 3
    monkeypatch.setattr(extra_logs, "CLOSE_S", 0.1)
    monkeypatch.setattr(TensorBoardLogger, "close", lambda self: time.sleep(3))
    with ExtraLogs(["tensorboard"], folder, {}, Reporter()):
        pass
    assert "not done after 0.1 s" in capsys.readouterr().out


def test_unknown_logger_is_refused(capsys):
    assert main(["train", "--data", str(Path()), "--log", "tensorboard,printer"]) == 2
    assert "printer is no logger; choose from tensorboard, wandb, mlflow" in capsys.readouterr().err
