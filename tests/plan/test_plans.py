"""Plans that are too small say so, and the summary says what the warm-up really was."""

import pytest
import torch

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.errors import InputError
from fastast.train.defaults import check_plan
from tests.train.test_run import options, summary_of


def plan(num_train=1000, **chosen):
    return check_plan(TrainConfig(**{"batch_size": 256, "gate": "dense", "epochs": 5, **chosen}), num_train)


def test_few_steps_are_counted_and_named():
    (line,) = plan()
    assert "only about 20 optimizer steps" in line
    assert "--epochs" in line
    assert "--batch-size below 256" in line
    (line,) = plan(gate="memory", target=0.1, warmup_epochs=1, anneal=0.5)
    assert f"only about {1000 / 256 * (1.5 + 0.1 * 3.5):.0f} optimizer steps" in line
    assert plan(batch_size=32) == []
    assert plan(epochs=None, budget="1m") == []


def test_calibration_that_leaves_the_gate_nothing_is_refused():
    message = (
        r"--dense-calibration 20: these steps are 5.12 of 5 epochs and leave --gate memory nothing; use 19 or fewer"
    )
    with pytest.raises(InputError, match=message):
        plan(gate="memory", dense_calibration=20)
    assert plan(gate="memory", dense_calibration=19)
    assert plan(gate="dense", dense_calibration=20)
    with pytest.raises(InputError, match=r"--dense-calibration 1000: .* of 2 epochs"):
        plan(gate="random", dense_calibration=1000, epochs=None, budget="2ep", batch_size=2)


def test_warmup_of_the_summary_is_what_happened(pictures, tmp_path):
    changes = {"epochs": 2, "warmup_epochs": 0.5, "dense_calibration": 20, "gate": "memory"}
    assert main(["train", *options(pictures, tmp_path / "run", **changes)]) == 0
    assert summary_of(tmp_path / "run")["gate"]["warmup_epochs"] == pytest.approx(20 * 16 / 240)


def test_shrunk_batch_goes_on_with_the_same_command(pictures, tmp_path, capsys):
    def train(batch_size, *more):
        return main(["train", *options(pictures, tmp_path / "run", batch_size=batch_size, epochs=2), *more])

    assert train(300, "--max-time", "0.001s") == 3
    assert "--batch-size 300: larger than the training set of 240 pictures; 128 is used" in capsys.readouterr().out
    assert train(300, "--resume", "--max-time", "0.001s") == 3
    for other in (100, 200):
        assert train(other, "--resume", "--force") == 2
        assert f"--batch-size {other}: the run was started with 128" in capsys.readouterr().err
    assert train(300, "--resume", "--max-time", "1h") == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt")["config"]["batch_size"] == 128
