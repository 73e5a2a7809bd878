"""Whoever follows the remedy of a message about several processes gets further.

Others are followed where their fault is tested: a lost rank and `--resume` in `test_rank_failure`, another number of
ranks and `--force` in `test_world_size`. Not followed, since it takes machines or GPUs that are not there: firewalls,
GLOO_SOCKET_IFNAME, `srun` itself, its --gpus-per-task, the same data on all machines.
"""

import datetime
import re
import socket

import pytest
import torch

from fastast.cli import main
from fastast.distributed import process_group
from fastast.distributed.launch import count_processes
from fastast.distributed.process_group import open_ranks
from fastast.errors import InputError
from tests.distributed.rank_processes import train
from tests.train.test_run import options


@pytest.fixture
def one_epoch(pictures, tmp_path):
    return [*options(pictures, tmp_path / "run", epochs=1, gate="dense", batch_size=8)]


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "5", "WORLD_SIZE": "2"}],
)
def test_half_a_launcher(one_epoch, monkeypatch, capsys, variables):
    """ "Start with torchrun", whose variables the ranks of the next test have."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *one_epoch]) == 2
    error = capsys.readouterr().err
    assert error.endswith("start with torchrun or srun\n")
    assert error.count("\n") == 1


def test_wrong_address(one_epoch, tmp_path, monkeypatch, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with monkeypatch.context() as patch:
            wrong = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": nobody.getsockname()[1]}
            for name, value in wrong.items():
                patch.setenv(name, str(value))
            patch.setattr(process_group, "_JOIN_TIMEOUT", datetime.timedelta(seconds=1))
            assert main(["train", *one_epoch]) == 2
    assert re.search(r"by way of 127.0.0.1:\d+ .*; check MASTER_ADDR", capsys.readouterr().err)
    assert train(tmp_path, 2, one_epoch) == [0, 0]  # their address is right


def test_more_processes_than_gpus(monkeypatch):
    """ "--nproc auto" starts as many as there are; the GPU is a stand-in."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match=r"2 processes .* 1 usable GPUs.*--nproc auto"), open_ranks("auto", 1):
        pass
    assert count_processes("auto", "auto") == 1


def test_restart_without_a_folder(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.chdir(tmp_path)
    words = options(pictures, "run", epochs=1, gate="dense")
    assert words[2:4] == ["--out", "run"]
    assert main(["train", *words[:2], *words[4:]]) == 2
    assert "start with --out" in capsys.readouterr().err
    assert main(["train", *words]) == 0
