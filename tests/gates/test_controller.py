from __future__ import annotations

import math

import pytest
import torch

from fastast.errors import InputError
from fastast.gates.controller import PIController, _soft_start
from tests.gates.controller_twin import Twin

TARGETS = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)


def exponential(generator, shape):
    return -torch.log1p(-torch.rand(shape, generator=generator))


def lognormal(generator, shape):
    return (3 * torch.randn(shape, generator=generator)).exp()


def bimodal(generator, shape):
    x = torch.rand(shape, generator=generator)
    return torch.where(x < 0.5, 1e-3 * (1 + x), 1 + x)


# Each stream: how its scores are drawn, and the factor on them as a function of progress in [0, 1).
STREAMS = (
    (exponential, lambda progress: 1.0),
    (exponential, lambda progress: 10.0**-progress),  # as the loss falls in training
    (exponential, lambda progress: 1e4 if progress >= 0.4 else 1.0),
    (exponential, lambda progress: 1e-4 if progress >= 0.4 else 1.0),
    (lognormal, lambda progress: 1e-4),
    (lambda generator, shape: torch.rand(shape, generator=generator), lambda progress: 1e4),
    (lambda generator, shape: 1 + 0.01 * torch.randn(shape, generator=generator), lambda progress: 1.0),
    (bimodal, lambda progress: 1.0),
    (lambda generator, shape: torch.ones(shape), lambda progress: 1e4 if progress >= 0.4 else 1.0),
    (lambda generator, shape: torch.randint(0, 4, shape, generator=generator).float(), lambda progress: 1.0),  # ties
)


def controllers(targets, selection, explore=0.0):
    """As many controllers in one as there are targets."""
    controller = PIController(0.5, selection=selection, explore=explore)
    for name, buffer in list(controller.named_buffers()):
        setattr(controller, name, buffer.expand(len(targets)).clone())
    controller.target.copy_(torch.tensor(targets))
    controller.rate.copy_(controller.target)
    return controller


def run_streams(selection, batch, num_batches, targets, explore):
    """Selected samples per batch for each (target, stream): int64 [num_batches, targets * streams]."""
    generator = torch.Generator().manual_seed(batch)
    cells = [(target, stream) for target in targets for stream in STREAMS]
    controller = controllers([target for target, _ in cells], selection, explore)
    counts = []
    offered = torch.full((len(cells),), batch)
    for k in range(num_batches):
        ids = torch.arange(len(cells) * batch).view(len(cells), batch) + k * len(cells) * batch
        drawn = [draw(generator, (len(targets), batch)) * scale(k / num_batches) for draw, scale in STREAMS]
        scores = torch.stack(drawn, 1).view(len(cells), batch)
        mask = controller.decide(scores, ids)
        controller.update(mask.sum(-1), offered, controller.probability.sum(-1))
        counts.append(mask.sum(-1))
        assert torch.isfinite(controller.log_threshold).all()
    return cells, torch.stack(counts)


@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize(
    ("batch", "num_batches", "targets", "explore"),
    [
        (16, 660, TARGETS, 0.0),
        (64, 240, TARGETS, 0.0),
        (256, 205, (0.02, 0.3, 0.9), 0.0),
        (16, 230, (0.1, 0.5), 0.05),
        (64, 230, (0.05, 0.3), 0.04),
    ],
)
def test_activation_within_5_percent_over_any_200_batches(selection, batch, num_batches, targets, explore):
    """From the first batch on, over step changes, with ties and constants; and no stream starves."""
    cells, counts = run_streams(selection, batch, num_batches, targets, explore)
    total = torch.cat([torch.zeros(1, len(cells), dtype=torch.int64), counts.cumsum(0)])
    some = torch.cat([torch.zeros(1, len(cells), dtype=torch.int64), (counts > 0).cumsum(0)])
    for i, (target, _) in enumerate(cells):
        shortest = max(200, math.ceil(200 / (target * batch)))
        for span in (shortest, (shortest + num_batches) // 2, num_batches):
            share = (total[span:, i] - total[:-span, i]).double() / (span * batch)
            assert (share / target - 1).abs().max() <= 0.05, cells[i]
        patience = math.floor(max(10, 4 / (target * batch)))
        assert (some[patience:, i] - some[:-patience, i]).min() >= 1, cells[i]


@pytest.mark.parametrize("explore", [0.0, 0.05])
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_limiter_rests_in_a_steady_state(selection, explore):
    """So the soft rule's probabilities are those of min(1, s / threshold), not of a cut within the batch."""
    batch = 64
    controller = controllers([0.1, 0.3, 0.5, 0.9], selection, explore)
    generator = torch.Generator().manual_seed(1)
    moved = torch.zeros(4)
    num_batches = 200
    for k in range(num_batches):
        scores = exponential(generator, (4, batch))
        mask = controller.decide(scores, torch.arange(4 * batch).view(4, batch) + k * 4 * batch)
        moved += controller.slip.abs() > 1e-6 if k else 0
        controller.update(mask.sum(-1), torch.full((4,), batch), controller.probability.sum(-1))
    assert (moved / num_batches).max() < 0.02


@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize(("target", "explore"), [(0.03, 0), (0.1, 0.05), (0.5, 0.2), (0.9, 0)])
def test_equals_plain_twin(selection, target, explore):
    """Ragged batches, NaN and infinite scores, zeros, jumps of scale and a new target."""
    generator = torch.Generator().manual_seed(3)
    ours = PIController(target, selection=selection, seed=11, explore=explore)
    twin = Twin(target, selection, 11, explore)
    for k in range(100):
        scores = lognormal(generator, (24,)) * (1e4 if 40 <= k < 65 else 1.0)
        scores[torch.rand(24, generator=generator) < 0.03] = float("nan")
        scores[torch.rand(24, generator=generator) < 0.02] = float("inf")
        scores[torch.rand(24, generator=generator) < 0.05] = 0.0
        valid = torch.rand(24, generator=generator) < (0.0 if k == 30 else 0.9)
        ids = torch.randint(0, 2**40, (24,), generator=generator)
        if k == 80:
            ours.set_target(0.25)
            twin.set_target(0.25)
        mask = ours.decide(scores, ids, k % 3, valid)
        expected, distance = twin.decide(scores.tolist(), ids, k % 3, valid.tolist())
        # float32 against float64: rows may differ only where a key lies on the threshold.
        for row in range(24):
            assert mask[row] == expected[row] or distance[row] < 1e-4, (k, row)
        usable = valid & torch.isfinite(scores)
        selected, offered = (mask & usable).sum(), usable.sum()
        for row in usable.nonzero()[:, 0].tolist():
            assert float(ours.probability[row]) == pytest.approx(twin.p[row], abs=2e-2 if selection == "hard" else 1e-3)
        ours.update(selected, offered, (ours.probability * usable).sum())
        twin.update(int(selected), int(offered), sum(twin.p.values()))
        state = (ours.log_threshold, ours.rate, ours.mean_probability, ours.debt, ours.batch, ours.starved)
        plain = (twin.log_threshold, twin.rate, twin.mean_p, twin.debt, twin.batch, twin.starved)
        assert ours.nan_count == twin.nan_count
        assert [float(x) for x in state] == pytest.approx(plain, rel=1e-3, abs=1e-3), k


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_first_batch_is_on_target(selection):
    for scale in (1e-4, 1.0, 1e4):
        scores = exponential(torch.Generator().manual_seed(0), (20000,)) * scale
        controller = PIController(0.1, selection=selection)
        assert controller.select(scores).float().mean() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("target", [0.02, 0.3, 0.97, 1.0])
def test_soft_start_equals_bisection(target):
    scores = lognormal(torch.Generator().manual_seed(5), (200,))
    ours = _soft_start(scores.log(), torch.tensor(target), torch.tensor(200))
    twin = Twin(target, "soft", 0).soft_start(scores.log().tolist())
    if target < 1:
        assert float(ours) == pytest.approx(twin, abs=1e-4)
    else:
        assert float(ours) == pytest.approx(float(scores.log().min()), abs=1e-4)


def test_soft_probability_is_the_published_one():
    scores = torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0])
    controller = PIController(0.5)
    controller.select(scores, torch.arange(5))
    assert float(controller.probability.mean()) == pytest.approx(0.5, abs=1e-5)
    assert torch.allclose(controller.probability, (scores / controller.threshold).clamp(max=1.0), rtol=1e-5)


@pytest.mark.parametrize(("selection", "explore"), [("soft", 0.0), ("soft", 0.1), ("hard", 0.1)])
def test_draws_match_their_probability(selection, explore):
    """With an explore share, negligible scores are selected as often as it says, and high ones always."""
    scores = torch.tensor([1e-6, 0.5, 1.0, 30.0]).repeat(64)
    controller = PIController(0.5, selection=selection, explore=explore)
    share, probability = torch.zeros(256), torch.zeros(256)
    for epoch in range(200):
        share += controller.select(scores, torch.arange(256), epoch) / 200
        probability += controller.probability / 200
    share, probability = share.view(64, 4).mean(0), probability.view(64, 4).mean(0)
    assert float(share[0]) == pytest.approx(explore, abs=0.01)  # 12,800 draws: a standard error of 0.003
    assert float(share[3]) == pytest.approx(1.0)
    assert share.tolist() == pytest.approx(probability.tolist(), abs=0.02)


def test_hard_selects_the_highest():
    scores = torch.linspace(0.1, 5.0, 100)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    mask = PIController(0.2, selection="hard").select(scores)
    assert mask.sum() == 20
    assert scores[mask].min() > scores[~mask].max()


def test_draws_are_keyed_by_seed_epoch_and_id():
    scores = torch.ones(256)
    ids = torch.arange(256)

    def mask(seed=0, epoch=0, ids=ids):
        return PIController(0.5, seed=seed).select(scores, ids, epoch)

    assert torch.equal(mask(), mask())
    assert torch.equal(mask(epoch=torch.tensor(3)), mask(epoch=3))
    assert torch.equal(mask(ids=ids.flip(0)), mask().flip(0))
    for other in (mask(seed=1), mask(epoch=1), mask(ids=ids + 256)):
        assert not torch.equal(mask(), other)


def test_without_ids_the_count_of_scores_keys_the_draws():
    controller, twin = PIController(0.5), PIController(0.5)
    for k in range(5):
        scores = torch.ones(32)
        assert torch.equal(controller.select(scores), twin.select(scores, torch.arange(32) + 32 * k))
    assert controller.seen == 160


@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_unusable_scores_are_selected_and_leave_no_trace(selection, poison):
    """The state equals that of a stream without those rows; and `select` equals `decide`, then `update`."""
    generator = torch.Generator().manual_seed(2)
    ours, clean = PIController(0.2, selection=selection), PIController(0.2, selection=selection)
    num_bad = 0
    for k in range(60):
        scores = exponential(generator, (32,))
        bad = torch.rand(32, generator=generator) < (1.0 if k in (0, 20, 21) else 0.1)
        ids = torch.arange(32) + 32 * k
        mask = ours.select(torch.where(bad, poison, scores), ids)
        without = clean.decide(scores, ids, valid=~bad)
        clean.update(without.sum(), (~bad).sum(), (clean.probability * ~bad).sum())
        num_bad += int(bad.sum())
        assert torch.equal(mask, without | bad)
        assert (ours.probability[bad] == 1).all()
    ours_state, clean_state = ours.state_dict(), clean.state_dict()
    assert int(ours_state.pop("nan_count")) == num_bad
    clean_state.pop("nan_count")
    for name, value in ours_state.items():
        assert torch.equal(value, clean_state[name]), name


def test_invalid_rows_are_never_selected():
    controller = PIController(1.0)
    scores = torch.tensor([1.0, float("nan"), 2.0, float("nan")])
    valid = torch.tensor([True, True, False, False])
    assert controller.decide(scores, torch.arange(4), 0, valid).tolist() == [True, True, False, False]
    assert controller.probability.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert controller.nan_count == 1


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_state_dict_resumes_exactly(selection, tmp_path):
    generator = torch.Generator().manual_seed(6)
    batches = [exponential(generator, (48,)) for _ in range(60)]
    whole = PIController(0.1, selection=selection)
    masks = [whole.select(scores) for scores in batches]
    first = PIController(0.1, selection=selection)
    for scores in batches[:30]:
        first.select(scores)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = PIController(0.9, selection=selection)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for scores, mask in zip(batches[30:], masks[30:], strict=True):
        assert torch.equal(second.select(scores), mask)
    for name, value in second.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_set_target_moves_the_rate_at_once():
    generator = torch.Generator().manual_seed(7)
    controller = PIController(0.7)
    shapes = {name: buffer.shape for name, buffer in controller.named_buffers()}
    for target in (0.1, 1.0, 0.3):
        controller.set_target(target)
        selected = sum(int(controller.select(exponential(generator, (64,))).sum()) for _ in range(200))
        assert selected / (200 * 64) == pytest.approx(target, rel=0.05)
        assert float(controller.rate) == pytest.approx(target, rel=0.5)
    assert {name: buffer.shape for name, buffer in controller.named_buffers()} == shapes


def test_target_1_selects_everything():
    controller = PIController(1.0, selection="hard")
    for scale in (0.0, 1.0, 1e4):
        assert controller.select(torch.rand(32) * scale).all()
    assert torch.isfinite(controller.log_threshold)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.5, float("nan")])
def test_bad_target_is_refused(target):
    with pytest.raises(InputError, match="target"):
        PIController(target)
    with pytest.raises(InputError, match="target"):
        PIController(0.5).set_target(target)


def test_bad_selection_and_explore_are_refused():
    with pytest.raises(InputError, match="explore"):
        PIController(0.1, explore=0.1)
    with pytest.raises(InputError, match="explore"):
        PIController(0.5, explore=0.2).set_target(0.1)
    with pytest.raises(InputError, match="soft, hard"):
        PIController(0.5, selection="firm")
