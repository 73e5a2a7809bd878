"""What a T4 needs (sm_75: fp16 with a loss scale, no bf16, 15 GB), as far as a CPU can show it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.gpu.traffic import estimate_memory
from fastast.config import TrainConfig
from fastast.feed import Batch
from fastast.device import Runtime, choose_compile, open_runtime
from fastast.train import setup
from fastast.train.engine import Engine
from fastast.train.optimizer import GuardedStep, build_optimizer
from fastast.train.steps import Objective, logits_of
from tests.nets import tiny
from tests.sync_guard import no_sync

B, SIDE, CLASSES = 16, 16, 4
CUDA = torch.device("cuda", 0)


@pytest.fixture
def t4(monkeypatch):
    """CUDA as torch describes it on a T4, where bf16 is emulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    for name in ("benchmark", "deterministic", "allow_tf32"):  # to be put back
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)


def test_a_t4_trains_in_fp16_and_says_why(t4, monkeypatch):
    monkeypatch.setattr(setup, "choose_compile", lambda device, wanted, dtype: (False, "off"))
    runtime = open_runtime("auto")
    assert (runtime.device, runtime.dtype, runtime.image_dtype) == (CUDA, torch.float16, torch.float16)
    assert runtime.precision_note == "fp16 with loss scaling: capability 7.5 has no bf16"


def test_the_compiler_is_on_from_sm_70_where_a_probe_compiles_and_off_where_it_fails(t4, monkeypatch):
    ran = []
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, dtype: ran.append((device, dtype)))
    monkeypatch.setattr(torch, "compile", lambda probe, fullgraph: lambda x: None)
    assert choose_compile(CUDA, "auto", torch.float16) == (True, "on: the probe compiled on capability 7.5")
    assert ran == [(CUDA, torch.float16)]  # the type that it will have to compile

    def too_old(probe, fullgraph):
        raise RuntimeError("Triton needs 8.0")

    monkeypatch.setattr(torch, "compile", too_old)
    assert choose_compile(CUDA, "auto") == (False, "off: the probe failed to compile (RuntimeError)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 0))
    assert choose_compile(CUDA, "auto") == (False, "off: capability 6.0 is below 7.0, which Triton needs")


def test_no_operator_of_a_compiled_fp16_step_computes_in_bf16():
    """Where bf16 is emulated, one such operator would be the slowest of all."""
    dtypes = set()

    def look(module, example_inputs):
        for node in module.graph.nodes:
            value = node.meta.get("example_value")
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, torch.Tensor):
                    dtypes.add(tensor.dtype)
        return module.forward

    model = tiny(CLASSES).to(memory_format=torch.channels_last)
    objective = Objective(model, dtype=torch.float16, label_smoothing=0.1, compiled=False)
    step = torch.compile(objective._compute, backend=look, fullgraph=True)
    step(torch.randn(B, 3, SIDE, SIDE).half(), torch.zeros(B, dtype=torch.int64), torch.ones(B))
    assert torch.float16 in dtypes  # the network
    assert torch.float32 in dtypes  # the loss
    assert torch.bfloat16 not in dtypes


def half_gradients(model):
    """Gradients as fp16 kernels leave them: rounded, flushed to zero below 6e-8, infinite above 65,504."""
    for p in model.parameters():
        p.register_hook(lambda grad: grad.half().float())


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_the_loss_scale_is_that_of_torchs_gradscaler_step_by_step():
    """Through overflows, growth, and the steps between them."""
    ours, plain = network(), network()
    for model in (ours, plain):
        half_gradients(model)
    guard = GuardedStep(ours, build_optimizer(ours, momentum=0.9, weight_decay=0.01), scale_loss=True, compiled=False)
    guard.set_lr(0.05)
    guard.growth_tracker.fill_(1980)  # growth, after 2,000 good steps, lies within this test
    groups = [
        {"params": [p for p in plain.parameters() if (p.ndim > 1) == decays], "weight_decay": 0.01 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))  # makes its tensors
    scaler._growth_tracker.fill_(1980)
    generator = torch.Generator().manual_seed(0)
    scales, skipped = [], 0
    for number in range(60):
        inputs = torch.randn(16, 6, generator=generator)
        labels = torch.randint(0, 3, (16,), generator=generator)
        factor = 300.0 if number in (3, 4, 30) else 1.0  # its scaled gradients overflow
        guard.save_buffers()
        guard.backward_and_step(factor * F.cross_entropy(ours(inputs), labels))
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


def test_the_scale_grows_after_two_thousand_good_steps():
    model = network()
    guard = GuardedStep(model, build_optimizer(model, momentum=0.9, weight_decay=0.0), scale_loss=True, compiled=False)
    guard.growth_tracker.fill_(1998)
    scales = []
    for _ in range(3):
        guard.save_buffers()
        guard.backward_and_step(F.cross_entropy(model(torch.randn(16, 6)), torch.zeros(16, dtype=torch.int64)))
        scales.append(guard.scale.item())
    assert scales == [2.0**16, 2.0**17, 2.0**17]


def engine(**changes):
    config = TrainConfig(
        arch="tests.nets:tiny", image_size=SIDE, batch_size=B, lr=0.1, target=0.5, epochs=2, device="cpu", **changes
    )
    runtime = Runtime(torch.device("cpu"), torch.float16, "fp16: for this test", False, "off")
    return Engine(config, runtime, weights="none", num_classes=CLASSES, num_train=8 * B)


def batch(seed):
    """Pictures whose class is their brightness, as the feed of a GPU delivers them: half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (B,), generator=generator)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator) + labels[:, None, None, None]
    images = images.half().contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, torch.arange(B) + seed % 8 * B, torch.ones(B, dtype=torch.bool), B)


def test_a_whole_fp16_loop_learns_and_waits_for_nothing():
    """Scoring, queue, loss scale and optimizer, with the network really in half precision."""
    one = engine(gate="forward")
    one.set_lr(0.1)
    popped = 0
    for seed in range(24):
        with no_sync():
            one.score(batch(seed))
        if one.read_status().pushed - popped >= B:
            with no_sync():
                one.train()
            popped += B
    before = one.read_status()
    assert before.steps >= 8
    assert (before.nonfinite, before.scaler_skips) == (0, 0)
    assert one.guard.scale.item() == 2.0**16
    assert one.queue.images.dtype == torch.float16
    with torch.no_grad():
        full = batch(100)
        logits = logits_of(one.model.eval(), full.images, torch.float16)
        assert logits.dtype == torch.float32
        assert F.cross_entropy(logits, full.labels) < 0.8 * torch.tensor(float(CLASSES)).log()


def test_an_overflow_in_half_precision_costs_one_step_and_half_the_scale():
    """No gradient is poisoned by hand: the scaled ones really overflow on their way through fp16."""
    one = engine(gate="dense")
    one.set_lr(0.1)
    one.guard.scale.fill_(2.0**30)
    weights = [p.detach().clone() for p in one.model.parameters()]
    buffers = [b.clone() for b in one.model.buffers()]
    with no_sync():
        one.enqueue(batch(0))
        one.train()
    status = one.read_status()
    assert (status.scaler_skips, status.nonfinite) == (1, 0)
    assert one.guard.scale.item() == 2.0**29
    assert all(torch.equal(a, b) for a, b in zip(weights, one.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(buffers, one.model.buffers(), strict=True))


# --------------------------------------------------------------------------------------------------- memory, estimated


class Wide(nn.Module):
    """Convolutions, normalisation, an addition and pooling; wide enough that activations are what matters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(32), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)), inplace=True)
        x = F.relu(self.norm2(self.second(x)) + x, inplace=True)
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


def test_the_estimate_counts_what_autograd_really_keeps_in_half_precision():
    with torch.device("meta"):
        counted = estimate_memory(Wide(), 32, 8)["saved"]
    model, kept, found = Wide(), [], {}
    parameters = {id(p) for p in model.parameters()}

    def pack(tensor):
        if id(tensor) not in parameters and not isinstance(tensor, nn.Parameter) and tensor.numel() > 40_000:
            kept.append(tensor)
            found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.randn(8, 3, 32, 32).half()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits_of(model, images, torch.float16).log_softmax(1).mean()
    assert counted == pytest.approx(sum(found.values()), rel=0.1)


@pytest.mark.parametrize(("arch", "batch_size"), [("resnet50", 128), ("resnet18", 256)])
def test_an_fp16_step_is_estimated_to_fit_a_t4(arch, batch_size):
    """An estimate from shapes; the GPU suite measures it (item `precisions`)."""
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    parts = estimate_memory(model, 224, batch_size)
    ring = 2 * (4 * batch_size + 1) * 3 * 224 * 224  # the queue's four batches, in half
    assert parts["saved"] > 0.5 * sum(parts.values())  # activations dominate
    assert sum(parts.values()) + ring + 2e9 < 15e9  # 2 GB: context, decoder, workspaces, the allocator's slack
