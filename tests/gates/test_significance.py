from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastast.errors import InputError
from fastast.gates.memory import SCORES
from fastast.gates.registry import LEAST_SHARE
from fastast.gates.sampling import adaptive_share
from fastast.gates.significance import KINDS, Significance, significance

NUM_CLASSES = 5


def batch(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, NUM_CLASSES, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (size,), generator=generator)
    images = torch.randn(size, 3, 6, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    return logits, labels, images


def plain_terms(logits, labels, images, smoothing=0.0):
    """Every term of one sample after another, in Python floats."""
    terms = {name: [] for name in ("loss", "std", "margin", "el2n", "gce", "uncertainty", "variance")}
    for row, label, image in zip(logits.tolist(), labels.tolist(), images, strict=True):
        total = sum(math.exp(x) for x in row)
        p = [math.exp(x) / total for x in row]
        surest = 1 - smoothing + smoothing / NUM_CLASSES
        terms["loss"].append(max(0.0, math.log(surest) - math.log(p[label])))
        p = [min(1.0, max(0.0, (x - smoothing / NUM_CLASSES) / (1 - smoothing))) for x in p]
        other = max(x for i, x in enumerate(p) if i != label)
        terms["margin"].append((1 - (p[label] - other)) / 2)
        terms["el2n"].append(math.sqrt(sum((x - (i == label)) ** 2 for i, x in enumerate(p))))
        terms["gce"].append(math.sqrt(p[label]) * (1 - p[label]))
        terms["variance"].append(p[label] * (1 - p[label]))
        terms["uncertainty"].append(math.sqrt(p[label] * (1 - p[label])))
        stds = []
        for channel in image:
            pixels = [float(x) for x in channel.flatten()]
            mean = sum(pixels) / len(pixels)
            stds.append(math.sqrt(sum((x - mean) ** 2 for x in pixels) / len(pixels)))
        terms["std"].append(sum(stds) / len(stds))
    return {name: torch.tensor(values) for name, values in terms.items()}


PARTS = {
    "loss": {"loss": 1.0},
    "loss+std": {"loss": 0.7, "std": 0.3},
    "margin": {"margin": 1.0},
    "el2n": {"el2n": 1.0},
    "gce": {"gce": 1.0},
    "uncertainty": {"uncertainty": 1.0},
    "variance": {"variance": 1.0},
}
HARDNESS = ("loss", "loss+std", "margin", "el2n")
assert PARTS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_formula(kind, smoothing):
    terms = plain_terms(*batch(), smoothing)
    terms = {name: torch.maximum(term, plain_terms(*batch())[name] / 100) for name, term in terms.items()}
    plain = sum(weight * terms[name] / terms[name].mean() for name, weight in PARTS[kind].items())
    ours = significance(*batch(), kind=kind, label_smoothing=smoothing)
    assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)
    assert float(ours.mean()) == pytest.approx(1.0, rel=1e-4)
    running = torch.tensor([2.0, 0.5])
    plain = sum(w * terms[name] / running[i] for i, (name, w) in enumerate(PARTS[kind].items()))
    ours = significance(*batch(), kind=kind, running=running, label_smoothing=smoothing)
    assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SCORES)
def test_scores_are_those_of_memory(kind):
    logits, labels, _ = batch(size=400)
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    theirs = torch.from_numpy(SCORES[kind](losses, 0.1, NUM_CLASSES))
    ours = significance(logits, labels, kind=kind, running=torch.ones(2), label_smoothing=0.1)
    assert (theirs == 0).any()
    assert torch.allclose(torch.where(theirs > 0, ours, 0.0), theirs, rtol=1e-4, atol=0.01)
    assert (ours > 0).all()


@pytest.mark.parametrize("kind", ["loss", "margin", "el2n", "gce"])
def test_what_a_smoothed_network_knows_keeps_no_score(kind):
    """1 in 20 pictures is unknown, all others are as sure as the smoothed loss wants them, and a bit more or less."""
    logits = torch.zeros(400, NUM_CLASSES)
    logits[20:, 0] = math.log(0.92 / 0.02) + torch.linspace(-0.1, 0.1, 380)
    labels = torch.zeros(400, dtype=torch.int64)
    ours, plain = (significance(logits, labels, kind=kind, label_smoothing=s).numpy() for s in (0.1, 0.0))
    assert adaptive_share(ours) == LEAST_SHARE
    assert adaptive_share(plain) > 1.5 * LEAST_SHARE
    assert len(set(ours[20:].tolist())) > 350  # a threshold can tell them apart


@pytest.mark.parametrize("kind", HARDNESS)
def test_harder_samples_score_higher(kind):
    """From a sure hit to a sure miss, with pictures alike."""
    sure = torch.tensor([8.0, 3.0, 1.0, 0.0, -3.0, -8.0])
    logits = torch.zeros(6, NUM_CLASSES)
    logits[:, 0] = sure
    scores = significance(logits, torch.zeros(6, dtype=torch.int64), torch.zeros(6, 3, 4, 4), kind=kind)
    assert (scores >= 0).all()
    assert (scores.diff() > 0).all()


@pytest.mark.parametrize("kind", ["gce", "uncertainty", "variance"])
def test_what_is_sure_scores_lowest(kind):
    """Hits, and misses that speak for a wrong label; the network is undecided in the middle."""
    logits = torch.zeros(5, 2)
    logits[:, 0] = torch.tensor([9.0, 3.0, 0.0, -3.0, -9.0])
    labels = torch.zeros(5, dtype=torch.int64)
    scores = significance(logits, labels, kind=kind)
    assert scores.argsort().tolist()[-1] == 2
    assert kind == "gce" or torch.allclose(scores, scores.flip(0), rtol=1e-3)
    assert all(0 < score < 0.04 * float(scores[2]) for score in scores[[0, 4]].tolist())
    assert torch.equal(scores.isnan(), torch.zeros(5, dtype=torch.bool))


@pytest.mark.parametrize("kind", PARTS)
def test_half_precision_scores_in_float32(kind):
    logits, labels, images = batch()
    half = significance(logits.bfloat16(), labels, images.bfloat16(), kind=kind)
    assert half.dtype == torch.float32
    assert torch.equal(half, significance(logits.bfloat16().float(), labels, images.bfloat16().float(), kind=kind))


@pytest.mark.parametrize("kind", PARTS)
def test_running_means_weigh_valid_samples_alike(kind):
    module = Significance(kind)
    weights, counts, sums = [], [], []
    for k in range(6):
        logits, labels, images = batch(seed=k)
        valid = torch.rand(16, generator=torch.Generator().manual_seed(k)) < 0.6
        scores, loss, own = module(logits, labels, images, valid)
        terms = plain_terms(logits, labels, images)
        assert torch.allclose(loss, terms["loss"], rtol=1e-4, atol=1e-5)
        names = list(PARTS[kind])
        own_sums = {name: terms[name][valid].sum() for name in names}
        running = [own_sums[name] / valid.sum() for name in names]
        if k:  # the first batch has nothing but itself to be compared with
            count = sum(w * n for w, n in zip(weights, counts, strict=True))
            running = [sum(w * s[name] for w, s in zip(weights, sums, strict=True)) / count for name in names]
        plain = sum(w * terms[name] / mean for (name, w), mean in zip(PARTS[kind].items(), running, strict=True))
        assert torch.allclose(scores, plain, rtol=1e-4, atol=1e-5)
        module.update(own)
        weights = [0.98 * w for w in weights] + [1.0]
        counts.append(valid.sum())
        sums.append(own_sums)


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_bad_sample_reaches_no_other(kind, poison):
    logits, labels, images = batch()
    valid = torch.ones(16, dtype=torch.bool)
    without = valid.clone()
    without[3] = False
    module, clean = Significance(kind), Significance(kind)
    _, _, sums = clean(logits, labels, images, without)
    clean.update(sums)
    logits[3, 1] = poison
    images[3, 0, 0, 0] = poison
    scores, _, sums = module(logits, labels, images, valid)
    module.update(sums)
    assert scores.isnan().tolist() == [row == 3 for row in range(16)]
    assert torch.equal(module.totals, clean.totals)


def test_all_bad_batch_changes_nothing():
    module = Significance()
    logits, labels, images = batch()
    module.update(module(logits, labels, images, torch.ones(16, dtype=torch.bool))[2])
    before = module.totals.clone()
    module.update(module(logits * float("nan"), labels, images, torch.ones(16, dtype=torch.bool))[2])
    assert torch.equal(module.totals, before)


def test_bad_use_is_refused():
    logits, labels, _ = batch()
    with pytest.raises(InputError, match="el2n"):
        significance(logits, labels, kind="loss+luck")
    with pytest.raises(InputError, match="loss\\+std"):
        Significance("loss+luck")
    with pytest.raises(InputError, match="images"):
        significance(logits, labels)
