"""The proxy gate's networks in training: what they learn, how well they rank, what they cost."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastast.config import TrainConfig
from fastast.data import Batch
from fastast.errors import InputError
from fastast.gate import Gate, SampleQueue
from fastast.train.decision import Decision
from fastast.train.engine import Engine
from fastast.train.model import scoring_twin
from fastast.train.planner import Planner
from fastast.train.proxy import PROXY_LR, proxy_size
from fastast.train.proxy_net import build_proxy, check_proxy_arch, forward_flops
from fastast.train.select import SelectStep
from fastast.train.setup import open_machine
from fastast.train.steps import ScoreStep
from tests.gate.test_proxy import plain_spearman
from tests.nets import tiny

B, SIDE, SMALL, CLASSES, NUM = 16, 32, 16, 3, 1000
TINY = "tests.nets:tiny"


def config(**changes):
    chosen = {"arch": TINY, "gate": "proxy", "proxy_arch": "tiny", "proxy_bn_every": 4, "significance": "loss"}
    chosen |= {"image_size": SIDE, "batch_size": B, "lr": 0.1, "target": 0.5, "epochs": 2.0, "device": "cpu"}
    return TrainConfig(**{**chosen, **changes})


def engine(thumbs=None, compiled=False, **changes):
    return Engine(
        config(**changes),
        open_machine("cpu", compile="on" if compiled else "off"),
        weights="none",
        num_classes=CLASSES,
        num_train=NUM,
        thumbnail_side=thumbs,
    )


def batch(seed, size=B, num_valid=None, side=SIDE):
    """Pictures of three colours; the more noise covers the colour, the harder the picture."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    colours = F.one_hot(labels, 3).float()[:, :, None, None].expand(-1, -1, side, side)
    hidden = torch.rand(size, 1, 1, 1, generator=generator)
    tint = torch.randn(size, 3, 1, 1, generator=generator)
    images = (1 - hidden) * colours + hidden * tint + 0.1 * torch.randn(size, 3, side, side, generator=generator)
    num_valid = size if num_valid is None else num_valid
    valid = torch.arange(size) < num_valid
    images = (images * valid[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    ids = torch.where(valid, (torch.arange(size) + seed * size) % NUM, 0)
    return Batch(images, labels * valid, ids, valid, num_valid)


def small(full):
    """Thumbnails of a batch in tensors of their own, as a loader gives them: the compiler tells shared ones apart."""
    images, (_, labels, ids, valid, num_valid) = F.avg_pool2d(full.images, SIDE // SMALL), full
    return Batch(images, labels.clone(), ids.clone(), valid.clone(), num_valid)


def plain_training(network, batches, lr):
    """The same by torch's own means."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    for one in batches:
        optimizer.zero_grad()
        F.cross_entropy(network.train()(small(one).images), one.labels).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("thumbs", [None, SMALL])
def test_the_proxy_network_trains_on_every_batch_after_it_was_scored(thumbs):
    one = engine(thumbs)
    net = one.proxy.scorer
    plain = copy.deepcopy(net.network)
    one.set_lr(0.05)
    batches = [batch(0), batch(1), batch(2), batch(3, num_valid=5), batch(4)]
    one.learn_proxy(batches[0])  # as in a dense warm-up
    for full in batches[1:]:
        expected = copy.deepcopy(net.network).eval()(small(full).images)
        seen = []
        net._scorer[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.clone()))
        one.score(full) if thumbs is None else one.select(small(full))
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
        net._scorer[0]._forward_hooks.clear()
    again = torch.arange(B) % 5  # the rows of the partial batch, over and over
    batches[3] = Batch(batches[3].images[again], batches[3].labels[again], *batches[3][2:])
    plain = plain_training(plain, batches, lr=0.5 * PROXY_LR * B / 256)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    full = batch(9)
    torch.testing.assert_close(net(full.images), plain(small(full).images), rtol=1e-4, atol=1e-5)
    assert not any(p.grad is not None for p in one.model.parameters())


def test_a_batch_that_is_not_finite_leaves_no_trace():
    one = engine()
    one.set_lr(0.1)
    one.learn_proxy(batch(0))
    before = copy.deepcopy(one.proxy.scorer.network.state_dict())
    bad = batch(1)
    bad.images[3, 0, 5, 5] = torch.inf
    one.learn_proxy(bad)
    after = one.proxy.scorer.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert one.proxy.scorer.guard.counts.tolist() == [2, 1, 1, 0]


def correlation(one):
    one.proxy.correlation.total.zero_()
    one.proxy.correlation.num_batches.zero_()
    for seed in range(50, 54):
        one.proxy.check(batch(seed, 64), batch(seed, 64))
    return one.proxy.read_correlation()["rank_correlation"]


def test_the_proxy_network_learns_to_rank_as_the_full_network_does():
    one = engine()
    before = correlation(one)
    for seed in range(160):
        one.set_lr(0.1)
        one.learn_proxy(batch(seed))
        one.enqueue(batch(seed))
        one.train()
    after = correlation(one)
    assert after > 0.6
    assert after > before + 0.3


def test_the_ranking_is_compared_sample_by_sample_whatever_their_order():
    one = engine(SMALL)
    thumbs, order = small(batch(3)), torch.randperm(B, generator=torch.Generator().manual_seed(1))
    full = batch(3)
    lost = order[:4]  # the full pictures of these could not be decoded
    shuffled = [part[order.roll(-4)] for part in full[:4]]
    shuffled[3] = torch.arange(B) < B - 4
    units = one.proxy.check(thumbs, Batch(*shuffled, B - 4))
    with torch.no_grad():
        net = copy.deepcopy(one.proxy.scorer.network).eval()
        low = F.cross_entropy(net(thumbs.images), full.labels, reduction="none")
        high = F.cross_entropy(scoring_twin(one.model)(full.images), full.labels, reduction="none")
    kept = np.setdiff1d(np.arange(B), lost)
    ranking = one.proxy.read_correlation()
    assert ranking["num_batches"] == 1
    assert ranking["rank_correlation"] == pytest.approx(plain_spearman(low.numpy()[kept], high.numpy()[kept]), abs=1e-5)
    assert units == B * (1 + one.proxy.score_units)


def test_costs_are_hand_counted_operations():
    network = build_proxy("tiny", CLASSES)
    by_hand = 16 * 16 * 32 * 27 + 8 * 8 * 64 * 288 + 4 * 4 * 96 * 576 + 96 * CLASSES  # at 32 px
    assert forward_flops(network, 32) == 2 * by_hand
    assert 70_000 < sum(p.numel() for p in network.parameters()) < 80_000
    assert forward_flops(tiny(CLASSES), 32) == 2 * (8 * 8 * 16 * 75 + 64 * CLASSES)

    one = engine(proxy_arch=TINY)
    ratio = (4 * 4 * 16 * 75 + 64 * CLASSES) / (8 * 8 * 16 * 75 + 64 * CLASSES)
    assert one.proxy.score_units == pytest.approx(ratio)
    policy = Planner(config(proxy_arch=TINY), NUM, one.proxy).policy
    assert policy.score_units == pytest.approx(ratio)
    assert policy.cost(0.1) == pytest.approx(4 * ratio + 0.3)
    assert any("--gate forward would cost less" in note for note in one.notes)

    twin = engine(proxy_arch=None)
    assert twin.proxy.score_units == (SMALL / SIDE) ** 2
    assert Planner(config(proxy_arch=None), NUM, twin.proxy).policy.cost(0.1) == pytest.approx(0.25 + 0.3)
    assert not twin.notes


@pytest.mark.parametrize("thumbs", [None, SMALL])
@pytest.mark.parametrize("arch", [None, "tiny"])
def test_extra_work_is_what_hooks_on_the_networks_count(arch, thumbs):
    one = engine(thumbs, proxy_arch=arch)
    rows = {"trained": 0, "scored": 0, "full": 0}

    def count(what):
        return lambda module, inputs: rows.update({what: rows[what] + len(inputs[0])})

    proxy = one.proxy
    proxy.scorer._scorer[0].register_forward_pre_hook(count("scored"))
    proxy._full[0].register_forward_pre_hook(count("full"))
    if arch is None:
        proxy.scorer._refresher[0].register_forward_pre_hook(count("trained"))
    else:
        proxy.scorer.network.register_forward_pre_hook(count("trained"))
    extra = sum(one.learn_proxy(batch(seed)) for seed in range(3))
    num_scored = 0
    for seed in range(11):
        full = batch(seed, num_valid=3 if seed in (1, 6) else None)
        num_scored += B
        if thumbs is None:
            extra += one.score(full)
        else:
            if proxy.check_due():
                extra += proxy.check(small(full), full)
            extra += one.select(small(full))[1]
    trained = (3 if arch else 1) * proxy.score_units * rows["trained"]
    assert extra == pytest.approx(trained + proxy.score_units * (rows["scored"] - num_scored) + rows["full"])
    assert rows["full"] == 3 * B  # batches 2, 6 and 10
    assert rows["trained"] == B * ((3 + 11) if arch else 5)  # refreshes: 0 to 4 and 8, but not with the partial batch 1


@pytest.mark.parametrize("options", [{}, {"unbiased": True, "clip_weights": 1.0}])
def test_a_select_step_decides_as_a_score_step_does(options):
    torch.manual_seed(0)
    scorer = tiny(CLASSES).eval()
    score = ScoreStep(
        scorer, Gate(0.3), SampleQueue(B, (3, SMALL, SMALL), num_batches=20), dtype=torch.float32, **options
    )
    select = SelectStep(scorer, Decision(Gate(0.3), **options), dtype=torch.float32, num_samples=NUM)
    ids, weights, last = [], [], {}
    for seed in range(12):
        images, labels, sample_ids, valid, num_valid = batch(seed, num_valid=7 if seed == 5 else None, side=SMALL)
        score(images, labels, sample_ids, valid, torch.tensor(seed // 4))
        decision = select(images, labels, sample_ids, valid, torch.tensor(seed // 4))
        assert decision.dtype == torch.float64
        row_ids, row_weights = decision.numpy().reshape(2, B)
        assert np.array_equal(row_ids, np.where(valid.numpy(), sample_ids.numpy(), NUM))
        assert not row_weights[num_valid:].any()
        ids += row_ids[row_weights > 0].astype(int).tolist()
        weights += row_weights[row_weights > 0].tolist()
        last |= dict(zip(row_ids[:num_valid].astype(int), row_weights[:num_valid], strict=True))
    assert 40 < len(ids) < 80
    assert score.queue.ids[: len(ids)].tolist() == ids
    assert int(score.queue.pushed) == len(ids)
    assert score.queue.weights[: len(ids)].double().tolist() == weights
    assert (len(set(weights)) > 1) == ("unbiased" in options)
    for name, value in score.decision.state_dict().items():
        assert torch.equal(value, select.decision.state_dict()[name]), name
    assert (int(select.decision.num_clipped) > 0) == ("clip_weights" in options)
    assert {i: float(select.weights[i]) for i in last} == last  # padding, which has the id 0, wrote nothing


def test_the_size_is_half_of_the_pictures_and_no_more_than_thumbnails_have():
    assert proxy_size(config()) == 16
    assert proxy_size(config(), 64) == 16
    assert proxy_size(config(), 12) == 12
    assert proxy_size(config(proxy_size=24), 12) == 24
    assert engine(12).proxy.size == 12


def test_bad_networks_are_refused_by_the_option_that_names_them():
    with pytest.raises(InputError, match="--proxy-arch resnet81: torchvision has no such"):
        check_proxy_arch("resnet81")
    check_proxy_arch("tiny")
    with pytest.raises(InputError, match=r"--proxy-arch tests\.nets:none: "):
        engine(proxy_arch="tests.nets:none")
    with pytest.raises(InputError, match="--proxy-arch alexnet takes no pictures of --proxy-size 32"):
        engine(proxy_arch="alexnet", image_size=64)
    with pytest.raises(InputError, match="--arch alexnet takes no pictures of --proxy-size 32"):
        engine(arch="alexnet", proxy_arch=None, image_size=64)


@pytest.mark.slow
@pytest.mark.parametrize("thumbs", [None, SMALL])
def test_a_compiled_engine_decides_and_learns_as_an_eager_one_without_recompiling(thumbs):
    torch._dynamo.reset()
    compiled, eager = engine(thumbs, compiled=True), engine(thumbs)
    compiled.warm_up()
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(8):
            full = batch(seed, num_valid=5 if seed == 3 else None)
            for one in (compiled, eager):
                one.set_lr(0.1)
                one.begin_epoch(seed // 4)
                one.learn_proxy(full)
                if thumbs is None:
                    one.score(full)
                else:
                    one.proxy.check(small(full), full)
                    one.select(small(full))
    for name, value in eager.state_dict()["proxy"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(compiled.state_dict()["proxy"][name], value, rtol=1e-3, atol=1e-4)
    assert torch.equal(compiled.score_step.decision.hist, eager.score_step.decision.hist)
    assert int(compiled.queue.pushed) == int(eager.queue.pushed)
