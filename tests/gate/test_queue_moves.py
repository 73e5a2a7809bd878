"""Rows that move from one rank's queue to another's."""

from __future__ import annotations

import pytest
import torch

from fastast.gates.queue import SampleQueue
from tests.gate.test_queue import SHAPE, rows

B = 5


def waiting(queue):
    """The ids of the rows that wait, oldest first, and how many the counters tell of."""
    state = queue.get_extra_state()
    assert len(state["ids"]) == queue.check(queue.status().numpy())
    return state["ids"].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_queues_that_give_and_take_equal_lists(dtype):
    """Random pushes, moves and pops of two queues, over many turns of the rings."""
    generator = torch.Generator().manual_seed(0)
    queues = [SampleQueue(B, SHAPE, dtype=dtype, num_batches=6) for _ in range(2)]
    plain, num_pushed, num_moved = [[], []], [0, 0], 0
    for turn in range(300):
        for place, queue in enumerate(queues):
            part = rows(generator, B, 2 * B * turn + B * place, dtype)
            mask = torch.rand(B, generator=generator) < (0.9 if place == turn // 50 % 2 else 0.1)
            queue.push(*part[:3], mask, part[3])
            plain[place] += [[tensor[i] for tensor in part] for i in range(B) if mask[i]]
            num_pushed[place] += int(mask.sum())
        full = 0 if len(plain[0]) > len(plain[1]) else 1
        surplus = len(plain[full]) - len(plain[1 - full])
        if surplus >= B:
            num_rows = min(B, surplus // 2)
            given = queues[full].give(num_rows)
            queues[1 - full].take(given, num_rows)
            cut = len(plain[full]) - num_rows
            plain[1 - full] += plain[full][cut:]
            del plain[full][cut:]
            num_moved += num_rows
        while min(map(len, plain)) >= B:
            for place, queue in enumerate(queues):
                expected, plain[place] = plain[place][:B], plain[place][B:]
                for ours, theirs in zip(queue.pop(), zip(*expected, strict=True), strict=True):
                    assert torch.equal(ours, torch.stack(theirs))
        for place, queue in enumerate(queues):
            assert waiting(queue) == [int(row[2]) for row in plain[place]]
            assert int(queue.pushed - queue.moved) == num_pushed[place]
    assert num_moved > 20 * B
    assert int(queues[0].moved) == -int(queues[1].moved)
    assert int(queues[0].popped) > 10 * 6 * B


def test_the_newest_rows_are_given_and_the_oldest_stay():
    generator = torch.Generator().manual_seed(0)
    queue, other = (SampleQueue(B, SHAPE) for _ in range(2))
    queue.push(*rows(generator, B, 0)[:3], torch.ones(B, dtype=torch.bool))
    given = queue.give(2)
    assert given.ids[:2].tolist() == [3, 4]
    assert waiting(queue) == [0, 1, 2]
    other.take(given, 2)
    assert waiting(other) == [3, 4]
    assert other.status().tolist() == [2, 0, 0]


def test_blank_rows_have_the_layout_of_given_ones():
    queue = SampleQueue(B, SHAPE, dtype=torch.float16)
    for blank, given in zip(queue.blank(), queue.give(0), strict=True):
        assert (blank.shape, blank.dtype, blank.stride()) == (given.shape, given.dtype, given.stride())
        assert not blank.any()


def test_what_moved_is_kept_in_the_state():
    generator = torch.Generator().manual_seed(0)
    queue, other = (SampleQueue(B, SHAPE) for _ in range(2))
    queue.push(*rows(generator, B, 0)[:3], torch.ones(B, dtype=torch.bool))
    other.take(queue.give(3), 3)
    for one, moved in ((queue, -3), (other, 3)):
        copy = SampleQueue(B, SHAPE)
        copy.load_state_dict(one.state_dict())
        assert int(copy.moved) == moved
        assert waiting(copy) == waiting(one)


def test_taking_more_than_fits_is_an_overflow():
    generator = torch.Generator().manual_seed(0)
    queue, other = (SampleQueue(B, SHAPE, num_batches=1) for _ in range(2))
    for one in (queue, other):
        one.push(*rows(generator, B, 0)[:3], torch.ones(B, dtype=torch.bool))
    other.take(queue.give(2), 2)
    with pytest.raises(RuntimeError, match="2 rows did not fit"):
        other.check(other.status().numpy())
