from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastast.errors import InputError
from fastast.gate import ProxyTwin, RankCorrelation, rank_correlation, shrink
from tests.sync_guard import no_sync

SIDE, SMALL = 16, 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).to(memory_format=torch.channels_last)


def pictures(seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    images = 2 * torch.randn(size, 3, SIDE, SIDE, generator=generator) + 0.5
    return images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [16, 8, 4, 12, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shrink_averages_areas(size, dtype):
    images = pictures(size=2).to(dtype)
    small = shrink(images, size)
    assert small.dtype == dtype
    assert small.is_contiguous(memory_format=torch.channels_last)
    edges = [(i * SIDE // size, -(-(i + 1) * SIDE // size)) for i in range(size)]
    plain = torch.stack(
        [torch.stack([images[:, :, a:b, c:d].float().mean((2, 3)) for c, d in edges], -1) for a, b in edges], -2
    )
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(small.float(), plain, rtol=tolerance, atol=tolerance)


def plain_twin_outputs(model, batches):
    """The published way: swap the buffers out, run in train mode, score in eval mode, swap them back."""
    layers = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    own, outputs = [copy.deepcopy(dict(layer.named_buffers())) for layer in layers], []
    for images in batches:
        images = F.avg_pool2d(images, SIDE // SMALL)
        main = [copy.deepcopy(dict(layer.named_buffers())) for layer in layers]
        model.eval()
        for layer, buffers in zip(layers, own, strict=True):
            layer.load_state_dict(buffers, strict=False)
            layer.train()
            layer.momentum = 0.5
        with torch.no_grad():
            model(images)
            outputs.append(model.eval()(images))
        for layer, buffers, old in zip(layers, own, main, strict=True):
            buffers.update(copy.deepcopy(dict(layer.named_buffers())))
            layer.load_state_dict(old, strict=False)
            layer.momentum = 0.1
    model.train()
    return outputs


def train_a_little(model, images):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    model(images).square().sum(1).mean().backward()
    optimizer.step()


def test_equals_swapping_the_buffers_while_the_network_trains():
    model, other = network(), network()
    twin = ProxyTwin(model, SMALL)
    for seed in range(5):
        images = pictures(seed)
        twin.refresh(images)
        ours, plain = twin(images), plain_twin_outputs(other, [pictures(k) for k in range(seed + 1)][seed:])
        if seed == 0:
            torch.testing.assert_close(ours, plain[0])
        train_a_little(model, images)
        train_a_little(other, images)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_trained_network_is_untouched_bit_for_bit():
    model = network()
    model(pictures())
    before, modes = copy.deepcopy(model.state_dict()), [layer.training for layer in model]
    twin = ProxyTwin(model, SMALL)
    for seed in range(6):
        if twin.due():
            twin.refresh(pictures(seed))
        twin(pictures(seed))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [layer.training for layer in model] == modes
    assert not any(p.grad is not None for p in model.parameters())
    assert model[1].momentum == 0.1


def test_parameters_are_shared_and_statistics_converge_to_those_of_the_small_size():
    model = network()
    twin = ProxyTwin(model, SMALL)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    images = pictures(size=64)
    for _ in range(30):
        twin.refresh(images)
    activations = model[0](shrink(images, SMALL))
    own = dict(twin._own_norms()[0].named_buffers())
    torch.testing.assert_close(own["running_mean"], activations.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own["running_var"], activations.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin(images), twin(images))  # no dropout in either mode
    state = torch.get_rng_state()
    twin.refresh(images)
    assert torch.equal(torch.get_rng_state(), state)


def test_refreshes_come_first_and_then_every_so_often():
    twin = ProxyTwin(network(), SMALL, refresh_every=10)
    assert [step for step in range(35) if twin.due()] == [0, 1, 2, 3, 10, 20, 30]


def test_state_dict_holds_the_own_statistics_alone(tmp_path):
    model = network()
    twin = ProxyTwin(model, SMALL)
    for seed in range(6):
        twin.due()
        twin.refresh(pictures(seed))
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    state = torch.load(tmp_path / "twin.pt", weights_only=True)
    assert {name for norm in state["_extra_state"]["norms"] for name in norm} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    other_model = network()
    other = ProxyTwin(other_model, SMALL)
    assert not torch.allclose(other(pictures()), twin(pictures()))
    before = copy.deepcopy(other_model.state_dict())
    other.load_state_dict(state)
    assert torch.equal(other(pictures()), twin(pictures()))
    assert all(torch.equal(value, before[name]) for name, value in other_model.state_dict().items())
    assert other.num_steps == 6


def test_a_network_without_statistics_is_scored_as_it_is():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    twin = ProxyTwin(model, SMALL)
    twin.refresh(pictures())
    torch.testing.assert_close(twin(pictures()), model(shrink(pictures(), SMALL)))


def test_bad_sizes_are_refused():
    for options in ({"size": 0}, {"size": 8, "refresh_every": 0}):
        with pytest.raises(InputError, match="1 or more"):
            ProxyTwin(network(), **options)


def plain_spearman(a, b):
    def ranks(x):
        return np.array([np.sum(x < value) + (np.sum(x == value) + 1) / 2 for value in x])

    return np.corrcoef(ranks(a), ranks(b))[0, 1]


def test_rank_correlation_equals_its_plain_twin():
    generator, mean, values = torch.Generator().manual_seed(0), RankCorrelation(), []
    for k in range(20):
        a, noise = torch.randn(48, generator=generator), torch.randn(48, generator=generator)
        b = (a + k * 0.2 * noise).exp()
        if k % 3 == 0:
            a = a.round()  # ties
        valid = torch.rand(48, generator=generator) < 0.8
        a[k] = torch.nan
        b[2 * k] = torch.nan if k % 2 else torch.inf
        usable = (valid & ~a.isnan() & ~b.isnan()).numpy()
        values.append(plain_spearman(a.numpy()[usable], b.numpy()[usable]))
        assert float(rank_correlation(a, b, valid)) == pytest.approx(values[-1], abs=1e-5)
        with no_sync():
            mean.add(a, b, valid)
    assert float(mean.mean) == pytest.approx(np.mean(values), abs=1e-5)


def test_rank_correlation_at_its_ends():
    a, every = torch.rand(16), torch.ones(16, dtype=torch.bool)
    assert float(rank_correlation(a, a.exp(), every)) == pytest.approx(1.0)
    assert float(rank_correlation(a, -a, every)) == pytest.approx(-1.0)
    mean = RankCorrelation()
    assert mean.mean.isnan()
    mean.add(a, torch.ones(16), every)  # without an order there is nothing to compare
    mean.add(a, a, ~every)
    assert mean.mean.isnan()
    mean.add(a, a, every)
    assert float(mean.mean) == pytest.approx(1.0)


def test_scoring_and_refreshing_wait_for_nothing():
    twin = ProxyTwin(network(), SMALL)
    with no_sync():
        twin.refresh(pictures())
        twin(pictures())


@pytest.mark.slow
def test_both_passes_compile_to_one_graph_each():
    model, other = network(), network()
    torch._dynamo.reset()
    twin, eager = ProxyTwin(model, SMALL), ProxyTwin(other, SMALL)
    score = torch.compile(twin.forward, fullgraph=True, backend="aot_eager")
    refresh = torch.compile(twin.refresh, fullgraph=True, backend="aot_eager")
    for seed in range(5):
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            refresh(pictures(seed))
            ours = score(pictures(seed))
        eager.refresh(pictures(seed))
        torch.testing.assert_close(ours, eager(pictures(seed)))
        train_a_little(model, pictures(seed))
        train_a_little(other, pictures(seed))
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
