"""Budgets of several ranks: all end at the same batch, and a resumed run equals an undisturbed one."""

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.run_folder import RunFolder
from tests.distributed.rank_processes import RankProcesses, command, train
from tests.distributed.test_world_size import stop_at
from tests.plan.test_budget import BATCH, NUM_TRAIN, budgeted
from tests.train.test_run import summary_of


@pytest.mark.parametrize(
    ("gate", "target"),
    [
        ("memory", "auto"),
        pytest.param("forward", 0.3, marks=pytest.mark.slow),
        pytest.param("forward", "auto", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_spend_a_budget_of_epochs_and_resume_exactly(pictures, tmp_path, gate, target):
    changes = {"gate": gate, "target": target, "batch_size": BATCH // 2, "warmup_epochs": 0.5, "threads": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(tmp_path, 2, budgeted(pictures, whole, "1.7ep", **changes)) == [0, 0]
    assert abs(summary_of(whole)["compute"]["forward_units"] / 3 / NUM_TRAIN - 1.7) <= BATCH / NUM_TRAIN
    arguments = [*budgeted(pictures, parts, "1.7ep", **changes), "--resume"]
    with RankProcesses(tmp_path, 2, command, arguments, stop_at, 70) as ranks:
        assert ranks.codes() == [138, 138]
    assert train(tmp_path, 2, arguments) == [0, 0]
    assert differences(RunFolder(parts), RunFolder(whole)) == []
