from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastast.gates.lagged_reader import LaggedReader
from fastast.gates.queue import SampleQueue

SHAPE = (3, 4, 5)
B = 5


def rows(generator, size, first_id, dtype=torch.float32):
    """Images, labels, ids and weights of so many samples."""
    images = torch.randn(size, *SHAPE, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (size,), generator=generator)
    ids = torch.arange(first_id, first_id + size)
    weights = torch.rand(size, generator=generator)
    return images, labels, ids, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("num_batches", [2, 4])
def test_equals_a_list(dtype, num_batches):
    """Random masks, many turns of the ring: the same rows in the same order as from a plain list."""
    generator = torch.Generator().manual_seed(0)
    queue = SampleQueue(6, SHAPE, dtype=dtype, num_batches=num_batches)
    plain, popped = [], 0
    for k in range(120):
        images, labels, ids, weights = rows(generator, 6, 6 * k, dtype)
        mask = torch.rand(6, generator=generator) < (0.0, 0.2, 0.8, 1.0)[k % 4]
        queue.push(images, labels, ids, mask, weights)
        plain += [(images[i], labels[i], ids[i], weights[i]) for i in range(6) if mask[i]]
        assert queue.check(queue.status().numpy()) == len(plain)
        while len(plain) >= 6:
            ours = queue.pop()
            expected, plain = plain[:6], plain[6:]
            for ours_part, plain_part in zip(ours, zip(*expected, strict=True), strict=True):
                assert torch.equal(ours_part, torch.stack(plain_part))
            popped += 6
    assert popped > 6 * 6 * num_batches
    assert queue.status().tolist() == [popped + len(plain), popped, 0]


def test_popped_images_are_channels_last_views():
    queue = SampleQueue(4, SHAPE)
    generator = torch.Generator().manual_seed(0)
    for k in range(2):
        queue.push(*rows(generator, 4, 4 * k)[:3], torch.ones(4, dtype=torch.bool))
    first, second = queue.pop(), queue.pop()
    for batch in (first, second):
        assert batch.images.shape == (4, *SHAPE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.untyped_storage().data_ptr() == queue.images.untyped_storage().data_ptr()
        assert batch.weights.tolist() == [1.0] * 4
    assert first.ids.tolist() == [0, 1, 2, 3]
    assert second.ids.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPE, torch.bfloat16), ((1, 3, 3), torch.float16)])
def test_other_layouts_precisions_and_odd_row_sizes(shape, dtype):
    queue = SampleQueue(4, shape, dtype=dtype)
    images = torch.randn(4, *shape)
    queue.push(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert torch.equal(queue.pop().images, images.to(dtype))


def test_overflow_is_raised_and_loses_nothing():
    queue = SampleQueue(4, SHAPE, num_batches=2)
    generator = torch.Generator().manual_seed(0)
    pushed = [rows(generator, 4, 4 * k) for k in range(3)]
    for part in pushed[:2]:
        queue.push(*part[:3], torch.ones(4, dtype=torch.bool))
    assert queue.check(queue.status().numpy()) == 8
    queue.push(*pushed[2][:3], torch.tensor([False, True, True, False]))
    with pytest.raises(RuntimeError, match="2 rows did not fit"):
        queue.check(queue.status().numpy())
    for part in pushed[:2]:
        batch = queue.pop()
        assert torch.equal(batch.images, part[0])
        assert torch.equal(batch.ids, part[2])


def test_popping_too_much_is_raised():
    queue = SampleQueue(4, SHAPE)
    queue.pop()
    with pytest.raises(RuntimeError, match="4 rows popped"):
        queue.check(queue.status().numpy())


def test_state_dict_resumes_exactly(tmp_path):
    generator = torch.Generator().manual_seed(1)
    first = SampleQueue(4, SHAPE)
    for k in range(5):
        first.push(*rows(generator, 4, 4 * k)[:3], torch.tensor([True, True, True, False]))
        if k in (2, 4):
            first.pop()
    torch.save(first.state_dict(), tmp_path / "queue.pt")
    second = SampleQueue(4, SHAPE)
    second.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    assert waiting(second) == waiting(first)
    assert second.num_waiting(second.get_extra_state()) == 15 - 8
    part = rows(generator, 4, 100)
    for queue in (first, second):
        queue.push(*part[:3], torch.ones(4, dtype=torch.bool))
    for _ in range(2):
        for a, b in zip(first.pop(), second.pop(), strict=True):
            assert torch.equal(a, b)


def plain_resize(picture, height, width):
    """Twin: each new pixel is the mean of its four neighbours, weighted by their distances; [C, H, W]."""
    picture, (old_height, old_width) = picture.float().numpy(), picture.shape[1:]
    found = np.empty((len(picture), height, width), np.float32)
    for y in range(height):
        for x in range(width):
            top = min(max((y + 0.5) * old_height / height - 0.5, 0), old_height - 1)
            left = min(max((x + 0.5) * old_width / width - 0.5, 0), old_width - 1)
            rows = int(top), min(int(top) + 1, old_height - 1)
            columns = int(left), min(int(left) + 1, old_width - 1)
            down, right = top - rows[0], left - columns[0]
            found[:, y, x] = (
                (1 - down) * (1 - right) * picture[:, rows[0], columns[0]]
                + (1 - down) * right * picture[:, rows[0], columns[1]]
                + down * (1 - right) * picture[:, rows[1], columns[0]]
                + down * right * picture[:, rows[1], columns[1]]
            )
    return torch.from_numpy(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_waiting_rows_are_resized_once_and_keep_their_order(dtype):
    """Random pushes and pops over many turns of the ring, at sizes that grow; then down again, to where it began."""
    generator = torch.Generator().manual_seed(0)
    queue, address = SampleQueue(B, (3, 16, 16), dtype=dtype, num_batches=3), None
    address, plain, first_id = queue.images.data_ptr(), [], 0
    for side in (4, 7, 16):
        queue.resize(side, side)
        plain = [(plain_resize(row[0], side, side).to(dtype), *row[1:]) for row in plain]
        for turn in range(10):
            images = torch.randn(B, 3, side, side, generator=generator).to(dtype)
            part = (images.contiguous(memory_format=torch.channels_last), *rows(generator, B, first_id)[1:])
            mask = torch.rand(B, generator=generator) < 0.7
            queue.push(*part[:3], mask, part[3])
            plain += [[tensor[i] for tensor in part] for i in range(B) if mask[i]]
            first_id += B
            if len(plain) >= 2 * B or (len(plain) >= B and turn < 9):
                ours, expected, plain = queue.pop(), plain[:B], plain[B:]
                for image, row in zip(ours.images, expected, strict=True):
                    torch.testing.assert_close(image, row[0], atol=2e-3 if dtype == torch.float16 else 1e-5, rtol=0)
                assert [list(each) for each in zip(*map(Tensor.tolist, ours[1:]), strict=True)] == [
                    [value.item() for value in row[1:]] for row in expected
                ]
        assert queue.images.data_ptr() == address
        assert plain
        assert waiting(queue) == [int(row[2]) for row in plain]
    before = queue.get_extra_state()
    queue.resize(4, 4)
    assert waiting(queue) == before["ids"].tolist()
    small = torch.nn.functional.interpolate(
        before["images"].permute(0, 3, 1, 2).float(), (4, 4), mode="bilinear", antialias=True
    )
    assert torch.equal(queue.get_extra_state()["images"], small.permute(0, 2, 3, 1).to(dtype))


def test_state_is_of_the_size_that_it_was_saved_at():
    first, second = (SampleQueue(B, (3, 16, 16)) for _ in range(2))
    first.resize(8, 8)
    first.push(torch.randn(B, 3, 8, 8), *rows(torch.Generator(), B, 0)[1:3], torch.arange(B) < 3)
    second.load_state_dict(first.state_dict())
    assert second.image_size == (8, 8)
    assert torch.equal(second.get_extra_state()["images"], first.get_extra_state()["images"])
    empty = SampleQueue(B, (3, 16, 16))
    empty.resize(12, 12)
    second.set_extra_state(empty.get_extra_state())
    assert second.image_size == (12, 12)


def waiting(queue):
    """The ids of the rows that wait, oldest first; the counters agree with their number."""
    state = queue.get_extra_state()
    assert len(state["ids"]) == queue.check(queue.status().numpy())
    return state["ids"].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_moving_rows_equals_lists(dtype):
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
            queues[1 - full].append(queues[full].remove_newest(num_rows), num_rows)
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


def pair(num_batches=4):
    """Two queues, the first with five rows."""
    queue, other = (SampleQueue(B, SHAPE, num_batches=num_batches) for _ in range(2))
    queue.push(*rows(torch.Generator().manual_seed(0), B, 0)[:3], torch.ones(B, dtype=torch.bool))
    return queue, other


def test_moved_rows_are_kept_in_the_state():
    queue, other = pair()
    other.append(queue.remove_newest(2), 2)
    for one, ids, moved in ((queue, [0, 1, 2], -2), (other, [3, 4], 2)):
        copy = SampleQueue(B, SHAPE)
        copy.load_state_dict(one.state_dict())
        assert waiting(copy) == waiting(one) == ids
        assert int(copy.moved) == moved


@pytest.mark.parametrize("size", [1, 2, 5])
def test_resharding_keeps_rows_and_counts(size):
    """Rows stay in rank order; together the ranks count what was selected, and all have popped alike."""
    queue, other = pair()
    other.append(queue.remove_newest(1), 1)
    states = SampleQueue.reshard([queue.get_extra_state(), other.get_extra_state()], size)
    queues = [SampleQueue(B, SHAPE) for _ in range(size)]
    for each, state in zip(queues, states, strict=True):
        each.set_extra_state(state)
    assert [i for each in queues for i in waiting(each)] == [0, 1, 2, 3, 4]
    assert [int(each.pushed - each.moved) for each in queues] == [5, *[0] * (size - 1)]


def test_empty_rows_have_the_layout_of_removed_ones():
    queue = SampleQueue(B, SHAPE, dtype=torch.float16)
    for empty, removed in zip(queue.empty_rows(), queue.remove_newest(0), strict=True):
        assert (empty.shape, empty.dtype, empty.stride()) == (removed.shape, removed.dtype, removed.stride())
        assert not empty.any()


def test_appending_too_much_is_an_overflow():
    queue, other = pair(num_batches=1)
    other.push(*rows(torch.Generator(), B, 0)[:3], torch.ones(B, dtype=torch.bool))
    other.append(queue.remove_newest(2), 2)
    with pytest.raises(RuntimeError, match="2 rows did not fit"):
        other.check(other.status().numpy())


def test_lagged_reader_returns_the_push_before():
    reader = LaggedReader(2, "cpu", torch.int64)
    assert reader.flush() is None
    source = torch.zeros(2, dtype=torch.int64)
    seen = []
    for k in range(5):
        source.fill_(k)
        seen.append(reader.push(source))
    seen.append(reader.flush())
    assert seen[0] is None
    assert np.array_equal(np.stack(seen[1:]), np.arange(5)[:, None].repeat(2, 1))
    assert reader.flush() is None
    assert reader.push(source) is None


@pytest.mark.gpu
def test_lagged_reader_on_a_gpu_never_tears():
    reader = LaggedReader(4, "cuda")
    for k in range(100):
        before = reader.push(torch.full((4,), float(k), device="cuda"))
        assert before is None if k == 0 else before.tolist() == [k - 1.0] * 4
    assert reader.flush().tolist() == [99.0] * 4
