"""What a run names as the next command is that command."""

import shlex

import torch

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.distributed.environment import WorldInfo
from fastast.distributed.ranks import Ranks
from fastast.run_folder import RunFolder
from fastast.session import session
from fastast.session.session_notes import resume_command
from fastast.train.trainer import Trainer
from tests.train.test_run import options


def test_command_that_continues_a_run_names_what_starts_its_processes():
    folder, config = RunFolder("my runs/a"), TrainConfig(device="cpu", stall_timeout=7200.0, nproc="2")
    alone = ["fastast", "train", "--out", "my runs/a", "--resume"]
    assert shlex.split(resume_command(folder, config, Ranks())) == alone
    two = Ranks(WorldInfo(0, 2, 0, 2))
    more = ["--nproc", "2", "--device", "cpu", "--stall-timeout", "7200.0"]
    assert shlex.split(resume_command(folder, config, two)) == [*alone, *more]
    assert shlex.split(resume_command(folder, TrainConfig(), Ranks(WorldInfo(0, 4, 0, 2)))) == alone


def test_batch_that_fits_takes_a_new_folder_once_the_run_has_written_to_its_own(
    pictures, tmp_path, monkeypatch, capsys
):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "fit", run_out)
    monkeypatch.setattr(session, "fitting_batch", lambda *_: 8)
    assert main(["train", *options(pictures, tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "fits at --batch-size 8" in error
    assert error.endswith("that takes a new run, with another --out\n")


def test_network_with_nothing_to_train_is_refused(pictures, tmp_path, capsys):
    assert main(["train", *options(pictures, tmp_path / "run"), "--arch", "tests.nets:frozen"]) == 2
    assert "the network has no parameter that trains" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
