from __future__ import annotations

import numpy as np
import pytest
import torch

from fastast.gates.lagged_reader import LaggedReader
from fastast.gates.queue import SampleQueue

SHAPE = (3, 4, 5)


def rows(generator, size, first_id, dtype=torch.float32):
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


def test_popped_images_are_channels_last_views_of_the_ring():
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


def test_other_layouts_and_precisions_are_converted():
    queue = SampleQueue(4, SHAPE, dtype=torch.bfloat16)
    images = torch.randn(4, *SHAPE)
    queue.push(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert torch.equal(queue.pop().images, images.bfloat16())


def test_a_row_of_odd_bytes():
    queue = SampleQueue(2, (1, 3, 3), dtype=torch.float16)
    images = torch.randn(2, 1, 3, 3).half()
    queue.push(images, torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.ones(2, dtype=torch.bool))
    assert torch.equal(queue.pop().images, images)


def test_overflow_is_raised_and_nothing_waiting_is_lost():
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


def test_popping_what_is_not_there_is_raised():
    queue = SampleQueue(4, SHAPE)
    queue.pop()
    with pytest.raises(RuntimeError, match="4 rows popped"):
        queue.check(queue.status().numpy())


def test_state_dict_continues_exactly(tmp_path):
    generator = torch.Generator().manual_seed(1)
    first = SampleQueue(4, SHAPE)
    for k in range(5):
        first.push(*rows(generator, 4, 4 * k)[:3], torch.tensor([True, True, True, False]))
        if k in (2, 4):
            first.pop()
    torch.save(first.state_dict(), tmp_path / "queue.pt")
    second = SampleQueue(4, SHAPE)
    second.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    assert second.check(second.status().numpy()) == 15 - 8
    assert second.state_dict()["_extra_state"]["images"].shape[0] == 15 - 8
    part = rows(generator, 4, 100)
    for queue in (first, second):
        queue.push(*part[:3], torch.ones(4, dtype=torch.bool))
    for _ in range(2):
        for a, b in zip(first.pop(), second.pop(), strict=True):
            assert torch.equal(a, b)


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
