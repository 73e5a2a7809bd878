"""Which process of how many this is, and which rows ranks give one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastast.distributed.environment import WorldInfo, find_world
from fastast.distributed.ranks import fullest_to_emptiest
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


def test_a_process_that_nobody_placed_is_the_only_one():
    assert find_world({}) == WorldInfo(rank=0, size=1, local_rank=0, local_size=1)


def test_the_variables_of_torchrun():
    environ = dict(TORCHRUN)
    assert find_world(environ) == WorldInfo(rank=5, size=8, local_rank=1, local_size=4)
    assert environ == TORCHRUN
    assert find_world({**SLURM, **TORCHRUN}).rank == 5  # torchrun within a SLURM job
    assert find_world({"RANK": "0", "WORLD_SIZE": "1"}) == WorldInfo()


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
def test_the_variables_of_a_slurm_step(nodes, first):
    environ = {**SLURM, "SLURM_STEP_NODELIST": nodes}
    assert find_world(environ) == WorldInfo(rank=3, size=4, local_rank=1, local_size=2)
    assert environ["MASTER_ADDR"] == first
    assert environ["MASTER_PORT"] == "24567"


def test_an_address_that_was_given_stays():
    environ = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    find_world(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_a_slurm_job_without_a_step_is_one_process():
    batch_script = {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert find_world(batch_script) == WorldInfo()
    assert find_world({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == WorldInfo()


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
def test_variables_that_contradict_one_another_are_one_line(environ):
    with pytest.raises(InputError) as refused:
        find_world(environ)
    assert "\n" not in str(refused.value)


FILLS = st.lists(st.integers(0, 40), min_size=1, max_size=9)


@given(FILLS, st.integers(2, 16))
def test_moves_even_out_and_lose_nothing(fills, batch_size):
    moves = fullest_to_emptiest(fills, batch_size)
    after = list(fills)
    for full, empty, num_rows in moves:
        assert 0 < num_rows <= batch_size
        assert fills[full] - fills[empty] >= batch_size
        after[full] -= num_rows
        after[empty] += num_rows
    ranks = [rank for full, empty, _ in moves for rank in (full, empty)]
    assert len(set(ranks)) == len(ranks)
    assert sum(after) == sum(fills)
    assert min(after) >= min(fills)
    assert max(after) <= max(fills)
    assert (not moves) == (max(fills) - min(fills) < batch_size)


def test_the_fullest_gives_to_the_emptiest():
    assert fullest_to_emptiest([30, 0, 2, 9], 8) == [(0, 1, 8)]
    assert fullest_to_emptiest([30, 0, 2, 12], 8) == [(0, 1, 8), (3, 2, 5)]
    assert fullest_to_emptiest([0, 7], 8) == []
    assert fullest_to_emptiest([0, 8], 8) == [(1, 0, 4)]


def test_a_rank_that_selects_all_rows_never_overflows():
    """One of n ranks gets B rows a batch and the others none, reported one batch late: the ring holds 6 B."""
    batch_size = 8
    for size in (2, 3, 4, 8, 16):
        fills, known = [0] * size, [0] * size
        for _ in range(200):
            before = list(fills)
            fills[0] += batch_size
            assert max(fills) <= 6 * batch_size
            known = before
            for full, empty, num_rows in fullest_to_emptiest(known, batch_size):
                for counts in (fills, known):
                    counts[full] -= num_rows
                    counts[empty] += num_rows
            steps = min(known) // batch_size
            fills = [fill - steps * batch_size for fill in fills]
