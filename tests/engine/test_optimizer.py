"""A step counts only when it is finite; otherwise it changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastast.engine.optimizer import GuardedStep, build_optimizer
from tests.sync_guard import no_sync


def network() -> nn.Module:
    torch.manual_seed(0)
    # No bias before BatchNorm: its gradient is rounding error, which AdamW makes as large as any.
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def step(guard: GuardedStep, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, factor: float = 1.0):
    guard.save_buffers()
    return guard.backward_and_step(factor * F.cross_entropy(model(inputs), labels))


def guarded(model: nn.Module, *, lr: float = 0.1, scale_loss: bool = False, kind: str = "sgd") -> GuardedStep:
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=0.01, kind=kind)
    guard = GuardedStep(model, optimizer, scale_loss=scale_loss, compiled=False)
    guard.set_lr(lr)
    return guard


def plain_optimizer(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """torch's own, with the groups of `build_optimizer`."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == decays], "weight_decay": 0.01 * decays}
        for decays in (True, False)
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999))
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def random_batch(generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_finite_steps_equal_the_plain_optimizer(kind):
    ours, plain = network(), network()
    guard = guarded(ours, kind=kind)
    reference = plain_optimizer(plain, kind)
    for i in range(8):
        inputs, labels = random_batch()
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
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nonfinite_step_changes_nothing(poison, first, kind):
    model = network()
    guard = guarded(model, kind=kind)
    inputs, labels = random_batch()
    if not first:
        step(guard, model, inputs, labels)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = [value.clone() for state in guard.optimizer.state.values() for value in state.values()]
    bad = inputs.clone()
    bad[3, 2] = poison
    assert bool(step(guard, model, bad, labels))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    now = [value for state in guard.optimizer.state.values() for value in state.values()]
    if kind == "adamw" and first:  # which sets up its state at the first step
        assert not any(value.any() for value in now)
    else:
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    assert not bool(step(guard, model, inputs, labels))
    assert guard.counts.tolist()[1:] == [1, 0, 0]


@pytest.mark.parametrize(("scale_loss", "counts"), [(False, [30, 30, 30, 0]), (True, [30, 14, 14, 16])])
def test_nonfinite_gradient_under_a_finite_loss(scale_loss, counts):
    """The loss is 0 and its gradient NaN. While a scale falls from 2^16 to 1, the skips count as the scaler's."""
    model = nn.Linear(2, 1, bias=False)
    guard = guarded(model, scale_loss=scale_loss)
    before = model.weight.clone()
    for _ in range(30):
        guard.save_buffers()
        guard.backward_and_step((model.weight * 0).sum().sqrt())
    assert guard.counts.tolist() == counts
    assert guard.scale.item() == 1.0
    assert torch.equal(model.weight, before)


def test_counts_of_steps():
    """A good step ends a row of non-finite ones; the scaler's own skip neither lengthens nor ends it."""
    model = network()
    guard = guarded(model, scale_loss=True)
    inputs, labels = random_batch()
    for _ in range(3):
        step(guard, model, inputs * float("nan"), labels)
    assert guard.counts.tolist() == [3, 3, 3, 0]
    guard.scale.fill_(1e38)
    step(guard, model, inputs * 1e3, labels)
    assert guard.counts.tolist() == [4, 3, 3, 1]
    guard.scale.fill_(1.0)
    step(guard, model, inputs, labels)
    assert guard.counts.tolist() == [5, 3, 0, 1]


def half_gradients(model):
    """Gradients as fp16 kernels leave them: rounded, flushed to zero below 6e-8, infinite above 65,504."""
    for p in model.parameters():
        p.register_hook(lambda grad: grad.half().float())


def test_loss_scale_equals_torchs_gradscaler():
    """Step by step, through overflows, growth after 2,000 good steps, and the steps between them."""
    ours, plain = network(), network()
    for model in (ours, plain):
        half_gradients(model)
    guard = guarded(ours, scale_loss=True)
    guard.growth_tracker.fill_(1980)
    optimizer = plain_optimizer(plain, "sgd")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))  # makes its tensors
    scaler._growth_tracker.fill_(1980)
    generator = torch.Generator().manual_seed(0)
    scales, skipped = [], 0
    for number in range(60):
        inputs, labels = random_batch(generator)
        factor = 300.0 if number in (3, 4, 30) else 1.0  # its scaled gradients overflow
        step(guard, ours, inputs, labels, factor)
        optimizer.zero_grad()
        buffers = {name: value.clone() for name, value in plain.named_buffers()}
        scaler.scale(factor * F.cross_entropy(plain(inputs), labels)).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < before:  # torch's own leaves a skipped step's statistics in BatchNorm; ours does not
            skipped += 1
            for name, value in plain.named_buffers():
                value.copy_(buffers[name])
        scales.append(scaler.get_scale())
        assert guard.scale.item() == scales[-1], number
        assert guard.growth_tracker.item() == scaler._get_growth_tracker(), number
        for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)  # rounding to half enlarges the last bit
    assert skipped >= 3
    assert max(scales) > min(scales)
    assert guard.counts.tolist() == [60, 0, 0, skipped]


@pytest.mark.parametrize("scale_loss", [False, True])
def test_never_waits_for_the_device(scale_loss):
    model = network()
    guard = guarded(model, scale_loss=scale_loss)
    inputs, labels = random_batch()
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


def test_one_fused_operator_for_each_weight_decay():
    model = network()
    guard = guarded(model)
    rates = [group["lr"] for group in guard.optimizer.param_groups]
    guard.set_lr(0.01)
    assert all(rate is group["lr"] for rate, group in zip(rates, guard.optimizer.param_groups, strict=True))
    assert [rate.item() for rate in rates] == pytest.approx([0.01, 0.01])
    inputs, labels = random_batch()
    loss = F.cross_entropy(model(inputs), labels)
    with Calls() as calls:
        guard.save_buffers()
        guard.backward_and_step(loss)
    assert calls.names.count("_fused_sgd_") == 2
    assert calls.names.count("_foreach_copy_") == 2  # float and integer buffers
