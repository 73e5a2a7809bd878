"""`fastast.train` in Python: the run of the command line, its callbacks, and what it returns."""

import json
import sys

import numpy as np
import pytest

import fastast
from fastast.cli import main
from fastast.errors import InputError
from fastast.loggers import notebook
from tests.train.test_run import lines_of, losses, options, summary_of

OPTIONS = {
    **{"arch": "tests.nets:tiny", "image_size": 32, "batch_size": 16, "epochs": 2, "lr": 0.05, "log_every": 5},
    **{"gate": "memory", "target": 0.3, "eval_every": 0.01, "anneal": 0.0},
}


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    return fastast.train(data=pictures, out=tmp_path_factory.mktemp("runs") / "a", quiet=True, **OPTIONS)


def test_run_is_that_of_the_command_line(run, pictures, tmp_path):
    out = tmp_path / "b"
    words = options(pictures, out, **OPTIONS)
    assert main(["train", *words]) == 0
    assert losses(out) == losses(run.path)
    assert (out / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    argv = run.summary["argv"]  # which other processes of a run would get
    assert argv[:3] == ["train", *words[:2]]
    assert argv[argv.index("--anneal") + 1] == "0.0"


def test_run_tells_what_its_folder_holds(run, pictures, monkeypatch):
    epochs = [line for line in lines_of(run.path) if line["kind"] == "epoch"]
    assert run.summary == summary_of(run.path)
    pandas = pytest.importorskip("pandas")
    assert isinstance(run.metrics, pandas.DataFrame)
    assert run.metrics["val_top1"].tolist() == [line["val_top1"] for line in epochs]
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run.metrics == epochs
    assert all(line["kind"] == "step" for line in run.steps)
    picture = sorted(pictures.glob("val/class_1/*.jpg"))[0]
    (said,) = run.predict(picture)
    assert fastast.load(run.path).predict(picture) == [said]
    assert said.top[0][0] in run.classes
    assert not run.model.training
    assert run._repr_html_().startswith("<iframe srcdoc=")
    alone = fastast.load(run.path / "model.safetensors", arch="tests.nets:tiny")
    assert alone._repr_html_() is None
    with pytest.raises(InputError, match="not a run folder"):
        alone.metrics  # noqa: B018


def test_callback_stops_a_run_that_continues_to_the_same_end(run, pictures, tmp_path):
    told = []

    def stop_after_the_first(line):
        told.append(line)
        return line["epoch"] == 1

    chosen = {"data": pictures, "out": tmp_path / "run", "quiet": True, **OPTIONS}
    stopped = fastast.train(**chosen, callbacks=[stop_after_the_first])
    assert stopped.summary["stopped"] == "callback"
    assert [line["epoch"] for line in told] == [1]
    whole = fastast.train(out=tmp_path / "run", resume=True, quiet=True, callbacks=[told.append])
    assert whole.summary["stopped"] is None
    assert [line["epoch"] for line in told] == [1, 2]
    assert told == [line for line in lines_of(whole.path) if line["kind"] == "epoch"]
    assert losses(whole.path) == losses(run.path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochz": 3}, "did you mean epochs"),
        ({"epochs": "three"}, "--epochs 'three': expected float, got str"),
        ({"gate": "proxy"}, "was removed"),
        ({"data": "no/such/folder"}, "check the path"),
        ({"nproc": 2, "callbacks": [print]}, "leave nproc out"),
        ({"resume": True}, "name the run"),
    ],
)
def test_mistakes_are_exceptions(wrong, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        fastast.train(quiet=True, **wrong)
    assert not list(tmp_path.iterdir())


def test_progress_in_a_notebook_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(notebook, "_INTERVAL_S", 0.0)
    reporter = notebook.NotebookReporter()
    reporter.begin("training", 1.0)
    for share in np.linspace(0.1, 0.9, 9):
        reporter.advance(share, f"loss {1 / share:.2f}")
    reporter.note("epoch 1 is done")
    reporter.end()
    written = capsys.readouterr().out
    assert written.count("\n") == 1
    assert written.count("\r") >= 10
    screen = [part.split("\r")[-1] for part in written.replace("\r\n", "\n").split("\n")]
    assert screen[0].strip() == "epoch 1 is done"
    assert "training 50 % loss 2.00" in written
    assert json.dumps(written).count("\\u001b") == 0
