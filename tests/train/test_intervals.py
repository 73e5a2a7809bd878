"""Seconds and joules of training are those of the work that they were spent on."""

from fastast.cli import main
from fastast.energy.parts import PartMeter
from fastast.train.engine import Engine
from tests.train.test_run import options


def test_intervals_end_once_the_device_is_done(pictures, tmp_path, monkeypatch):
    calls = []
    for owner, name in ((Engine, "synchronize"), (PartMeter, "start"), (PartMeter, "stop")):
        monkeypatch.setattr(owner, name, spied(calls, name, getattr(owner, name)))
    assert main(["train", *options(pictures, tmp_path / "run", epochs=2, checkpoint_every=0.0005)]) == 0
    assert calls.count("start") > 2  # checkpoints within an epoch as well
    assert calls == ["start", "synchronize", "stop"] * calls.count("start")


def spied(calls, name, method):
    def call(*arguments):
        calls.append(name)
        return method(*arguments)

    return call
