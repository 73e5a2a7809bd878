"""Training in fp16 with a loss scale, as on a T4 (sm_75, no bf16, 15 GB), as far as a CPU can show it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fastast.engine.steps import Objective, logits_of
from tests.engine.engines import CLASSES, SIDE, B, batch, engine
from tests.memory_estimate import estimate_memory
from tests.nets import tiny
from tests.sync_guard import no_sync


def test_compiled_step_computes_nothing_in_bf16():
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
    assert dtypes >= {torch.float16, torch.float32}  # the network, and the loss
    assert torch.bfloat16 not in dtypes


def test_fp16_loop_learns_without_waiting():
    """Scoring, queue, loss scale and optimizer, with the network really in half precision."""
    one = engine(torch.float16, gate="forward")
    one.set_lr(0.1)
    popped = 0
    for seed in range(40):
        with no_sync():
            one.score(batch(seed, dtype=torch.float16))
        if one.read_status().pushed - popped >= B:
            with no_sync():
                one.train()
            popped += B
    status = one.read_status()
    assert status.steps >= 12
    assert (status.nonfinite, status.scaler_skips) == (0, 0)
    assert one.guard.scale.item() == 2.0**16
    assert one.queue.images.dtype == torch.float16
    with torch.no_grad():
        full = batch(100, dtype=torch.float16)
        logits = logits_of(one.model.eval(), full.images, torch.float16)
        assert logits.dtype == torch.float32
        assert F.cross_entropy(logits, full.labels) < 0.8 * torch.tensor(float(CLASSES)).log()


def test_fp16_overflow_costs_one_step_and_half_the_scale():
    """The scaled gradients really overflow on their way through fp16."""
    one = engine(torch.float16, gate="dense")
    one.set_lr(0.1)
    one.guard.scale.fill_(2.0**30)
    before = [tensor.detach().clone() for tensor in (*one.model.parameters(), *one.model.buffers())]
    with no_sync():
        one.enqueue(batch(0, dtype=torch.float16))
        one.train()
    status = one.read_status()
    assert (status.scaler_skips, status.nonfinite) == (1, 0)
    assert one.guard.scale.item() == 2.0**29
    after = (*one.model.parameters(), *one.model.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


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


def test_memory_estimate_counts_what_autograd_keeps():
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
def test_fp16_step_is_estimated_to_fit_a_t4(arch, batch_size):
    """An estimate from shapes; the GPU suite measures it (item `precisions`)."""
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    parts = estimate_memory(model, 224, batch_size)
    ring = 2 * (4 * batch_size + 1) * 3 * 224 * 224  # the queue's four batches, in half
    assert parts["saved"] > 0.5 * sum(parts.values())  # activations dominate
    assert sum(parts.values()) + ring + 2e9 < 15e9  # 2 GB: context, decoder, workspaces, the allocator's slack
