from __future__ import annotations

import pytest
import torch

from tests.sync_guard import no_sync

WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.any()),
    "if": lambda x: 1 if x[0] > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "assign by mask": lambda x: x.__setitem__(x > 0, x[:4]),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: torch.unique_consecutive(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.long()),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "bincount": lambda x: x.long().bincount(),
    "to another device": lambda x: x.to("meta"),
    "copy to another device": lambda x: torch.empty(4, device="meta").copy_(x),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waiting_fails(wait):
    with pytest.raises(AssertionError), no_sync():
        wait(torch.rand(4))


def test_not_waiting_passes():
    x, place = torch.rand(4, requires_grad=True), torch.tensor([2, 0])
    with no_sync():
        y = torch.where(x > 0.5, x, 0.0)[place].bfloat16().float()
        y = y + x.sort().values.gather(0, place) + x.index_select(0, place)
        x.repeat_interleave(torch.tensor([1, 1, 1, 1]), output_size=4)
        y.sum().backward()
        torch.optim.SGD([x], lr=0.1, momentum=0.9).step()


def test_named_function_may_read_the_host():
    def read(x):
        return x.numpy()

    with no_sync(read):
        read(torch.rand(4))
        with pytest.raises(AssertionError):
            torch.rand(4).numpy()
        with pytest.raises(AssertionError):
            read(torch.rand(4)[torch.rand(4) > 0.5])
