"""`--tensorboard`: the event files say what `metrics.jsonl` says, once, also after a resume."""

import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastast.cli import main
from fastast.loggers.console import Reporter
from fastast.loggers.tensorboard import EPOCH_TAGS, STEP_TAGS, EventWriter, events_written
from fastast.run_folder import RunFolder
from tests.train.test_run import lines_of, options


def points(folder):
    """(offered, value) by tag, from the files alone."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


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


def test_resumed_run_has_every_point_once(pictures, tmp_path, monkeypatch):
    out = tmp_path / "run"
    arguments = options(pictures, out, gate="memory", epochs=3)
    taken = []
    append = RunFolder.append_metrics

    def stop_in_the_second_epoch(self, line):
        append(self, line)
        taken.append(line)
        if len(taken) == 20:  # 15 batches, the line of their epoch, and four batches that no checkpoint has
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_metrics", stop_in_the_second_epoch)
    assert main(["train", *arguments, "--tensorboard"]) == 130
    monkeypatch.undo()
    lost = points(out)
    assert lost == expected(taken)
    assert len(lost["train/lr"]) == 19
    assert main(["train", "--out", str(out), "--resume"]) == 0
    lines = lines_of(out)
    found = points(out)
    assert found == expected(lines)
    assert [offered for offered, _ in found["val/top1"]] == [240, 480, 720]
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_missing_package_is_one_line(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *options(pictures, tmp_path / "run"), "--tensorboard"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--tensorboard" in error
    assert "pip install tensorboard" in error
    assert not (tmp_path / "run").exists()


def test_full_disk_ends_the_events_only(tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path)
    line = dict.fromkeys(STEP_TAGS, 1.0) | {"kind": "step", "offered": 16}

    def full(self, line):
        raise OSError(28, "No space left on device")

    with events_written(folder, Reporter()):
        folder.append_metrics(line)
        monkeypatch.setattr(EventWriter, "add", full)
        folder.append_metrics(line)
        folder.append_metrics(line)
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == line
    assert points(tmp_path)["train/loss"] == [(16, 1.0)]
