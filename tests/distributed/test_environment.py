"""Rank and world size from the variables of a launcher."""

from __future__ import annotations

import pytest

from fastast.distributed.environment import WorldInfo, find_world
from fastast.errors import InputError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, not a step
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process(environ):
    assert find_world(environ) == WorldInfo(rank=0, size=1, local_rank=0, local_size=1)


@pytest.mark.parametrize("slurm", [{}, SLURM])
def test_torchrun(slurm):
    environ = {**slurm, **TORCHRUN}
    assert find_world(environ) == WorldInfo(rank=5, size=8, local_rank=1, local_size=4)
    assert environ == {**slurm, **TORCHRUN}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[003-004]", "gpu003"),
        ("gpu[003,9-12],login1", "gpu003"),
        ("gpu7,gpu9", "gpu7"),
        ("one", "one"),
        ("rack1-node[08-11]", "rack1-node08"),
    ],
)
def test_slurm_step(nodes, first):
    environ = {**SLURM, "SLURM_STEP_NODELIST": nodes}
    assert find_world(environ) == WorldInfo(rank=3, size=4, local_rank=1, local_size=2)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == (first, "24567")


def test_slurm_step_with_an_address():
    environ = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    find_world(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "environ",
    [
        {**TORCHRUN, "RANK": "8"},
        {**TORCHRUN, "RANK": "-1"},
        {**TORCHRUN, "WORLD_SIZE": "many"},
        {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"},
        {**SLURM, "SLURM_STEP_NODELIST": "[1-2]"},
    ],
)
def test_contradictory_variables_are_refused_in_one_line(environ):
    with pytest.raises(InputError) as refused:
        find_world(environ)
    assert "\n" not in str(refused.value)
