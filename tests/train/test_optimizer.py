"""A step counts only when it is finite; the rest leaves no trace."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastast.train.optimizer import GuardedStep, build_optimizer, lr_at
from tests.sync_guard import no_sync


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def step(guard: GuardedStep, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    guard.save_buffers()
    return guard.backward_and_step(F.cross_entropy(model(inputs), labels))


def guarded(model: nn.Module, *, lr: float = 0.1, scale_loss: bool = False) -> GuardedStep:
    guard = GuardedStep(
        model, build_optimizer(model, momentum=0.9, weight_decay=0.01), scale_loss=scale_loss, compiled=False
    )
    guard.set_lr(lr)
    return guard


def test_finite_steps_equal_plain_sgd():
    ours, plain = network(), network()
    guard = guarded(ours)
    decay = [p for p in plain.parameters() if p.ndim > 1]
    rest = [p for p in plain.parameters() if p.ndim <= 1]
    reference = torch.optim.SGD(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    for i in range(8):
        inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
        lr = 0.1 / (i + 1)
        guard.set_lr(lr)
        step(guard, ours, inputs, labels)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.zero_grad()
        F.cross_entropy(plain(inputs), labels).backward()
        reference.step()
    for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert guard.counts.tolist() == [8, 0, 0, 0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_nonfinite_step_leaves_parameters_momentum_and_buffers_as_they_were(poison, first):
    model = network()
    guard = guarded(model)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    if not first:
        step(guard, model, inputs, labels)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    momenta = [state["momentum_buffer"].clone() for state in guard.optimizer.state.values()]
    bad = inputs.clone()
    bad[3, 2] = poison
    assert bool(step(guard, model, bad, labels))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    now = [state["momentum_buffer"] for state in guard.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, momenta, strict=True))
    assert not bool(step(guard, model, inputs, labels))
    assert guard.counts.tolist()[1:] == [1, 0, 0]


def test_a_nonfinite_gradient_under_a_finite_loss_is_caught():
    model = nn.Linear(2, 1, bias=False)
    guard = guarded(model)
    before = model.weight.clone()
    guard.save_buffers()
    loss = (model.weight * 0).sum().sqrt()  # value 0, gradient nan
    assert math.isfinite(loss.item())
    assert bool(guard.backward_and_step(loss))
    assert torch.equal(model.weight, before)


def test_steps_in_a_row_are_counted_and_a_good_one_ends_the_row():
    model = network()
    guard = guarded(model)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    for _ in range(3):
        step(guard, model, inputs * float("nan"), labels)
    assert guard.counts.tolist() == [3, 3, 3, 0]
    step(guard, model, inputs, labels)
    assert guard.counts.tolist() == [4, 3, 0, 0]


def test_the_loss_scale_backs_off_on_overflow_and_counts_it_apart():
    model = network()
    guard = guarded(model, scale_loss=True)
    plain = network()
    reference = guarded(plain)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    guard.scale.fill_(1e38)  # a scaled gradient overflows, the loss itself is finite
    assert bool(step(guard, model, inputs * 1e3, labels))
    assert guard.counts.tolist() == [1, 0, 0, 1]
    assert guard.scale.item() == pytest.approx(0.5e38)
    guard.scale.fill_(2.0**16)
    step(guard, model, inputs, labels)
    step(reference, plain, inputs, labels)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_that_never_is_finite_counts_as_such_under_the_loss_scale_too():
    model = nn.Linear(2, 1, bias=False)
    guard = guarded(model, scale_loss=True)
    before = model.weight.clone()
    for _ in range(30):
        guard.save_buffers()
        guard.backward_and_step((model.weight * 0).sum().sqrt())  # value 0, gradient nan
    steps, nonfinite, run, skips = guard.counts.tolist()
    assert (steps, skips) == (30, 16)  # from 2^16 down to 1
    assert nonfinite == run == 14
    assert guard.scale.item() == 1.0
    assert torch.equal(model.weight, before)


def test_a_scaler_skip_neither_lengthens_nor_ends_a_row():
    model = network()
    guard = guarded(model, scale_loss=True)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    step(guard, model, inputs * float("nan"), labels)
    guard.scale.fill_(1e38)
    step(guard, model, inputs * 1e3, labels)
    assert guard.counts.tolist() == [2, 1, 1, 1]
    guard.scale.fill_(1.0)
    step(guard, model, inputs, labels)
    assert guard.counts.tolist() == [3, 1, 0, 1]


def test_state_round_trips():
    model = network()
    guard = guarded(model, scale_loss=True)
    for _ in range(3):
        step(guard, model, torch.randn(16, 6), torch.randint(0, 3, (16,)))
    other_model = network()
    other = guarded(other_model, scale_loss=True)
    other_model.load_state_dict(model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(guard.optimizer.state_dict()))
    other.load_state_dict(guard.state_dict())
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    for each, net in ((guard, model), (other, other_model)):
        each.set_lr(0.05)
        step(each, net, inputs, labels)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))
    assert torch.equal(guard.counts, other.counts)


@pytest.mark.parametrize("scale_loss", [False, True])
def test_a_step_and_its_learning_rate_wait_for_nothing(scale_loss):
    model = network()
    guard = guarded(model, scale_loss=scale_loss)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    broken = inputs * float("nan")
    with no_sync():
        for k, each in enumerate((inputs, broken, inputs)):
            guard.set_lr(0.1 / (k + 1))
            step(guard, model, each, labels)
    assert guard.counts.tolist() == [3, 1, 0, 0]


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_optimizer_is_one_fused_operator_for_each_weight_decay_with_a_tensor_for_the_rate():
    model = network()
    guard = guarded(model)
    rates = [group["lr"] for group in guard.optimizer.param_groups]
    guard.set_lr(0.01)
    assert all(rate is group["lr"] for rate, group in zip(rates, guard.optimizer.param_groups, strict=True))
    assert [rate.item() for rate in rates] == pytest.approx([0.01, 0.01])
    loss = F.cross_entropy(model(torch.randn(16, 6)), torch.randint(0, 3, (16,)))
    with Calls() as calls:
        guard.save_buffers()
        guard.backward_and_step(loss)
    assert calls.names.count("_fused_sgd_") == 2
    assert calls.names.count("_foreach_copy_") == 2  # float and integer buffers


def test_the_learning_rate_rises_then_decays_fully():
    assert lr_at(0.0, peak=2.0, warmup=0.1) == 0.0
    assert lr_at(0.05, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert lr_at(0.1, peak=2.0, warmup=0.1) == pytest.approx(2.0)
    assert lr_at(0.55, peak=2.0, warmup=0.1) == pytest.approx(1.0)
    assert lr_at(1.0, peak=2.0, warmup=0.1) == pytest.approx(0.0)
    assert lr_at(0.0, peak=2.0, warmup=0.0) == pytest.approx(2.0)
