"""Segments cover each epoch once, and progress ends at 1 whatever the gate."""

import pytest

from fastast.phases import ANNEAL, DENSE, WARMUP
from fastast.plan.schedule import Schedule, lr_at


@pytest.mark.parametrize("epochs", [1.0, 2.5, 3.0, 0.3])
@pytest.mark.parametrize(("warmup", "anneal"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.5), (1.5, 1.0), (0.0, 9.0)])
@pytest.mark.parametrize("gated", [True, False])
def test_segments_cover_the_planned_samples(epochs, warmup, anneal, gated):
    num = 1000
    phases = {"warmup_epochs": warmup, "anneal_epochs": anneal}
    schedule = Schedule(num, epochs=epochs, planned_share=0.1, gated_cost=0.3, gated=gated, **phases)
    segments = list(schedule.segments())
    position = 0
    for segment in segments:
        assert segment.offered_before == position == segment.epoch * num + segment.start
        assert 0 <= segment.start < segment.stop <= num
        assert segment.evaluates <= segment.ends_epoch
        assert schedule.segment_at(position) == segment  # so a run resumes at any of them
        position += segment.stop - segment.start
        assert segment.ends_epoch == (segment.stop == num or position == schedule.num_offered)
    assert position == schedule.num_offered == round(epochs * num)
    assert segments[-1].evaluates
    assert schedule.segment_at(position) is None
    size = {p: sum(s.stop - s.start for s in segments if s.phase == p) for p in (WARMUP, ANNEAL, DENSE)}
    if gated:
        assert size[WARMUP] == min(position, round(warmup * num))
        assert size[ANNEAL] == min(position - size[WARMUP], round(anneal * num))
        assert size[DENSE] == 0
    else:
        assert size[DENSE] == position


def test_progress_follows_planned_backward_work():
    schedule = Schedule(1000, epochs=4, warmup_epochs=1, anneal_epochs=1, planned_share=0.3, gated_cost=0.9, gated=True)
    work = 1000 + 300 + 300 + 1000
    for offered, done in ((0, 0), (1000, 1000), (1500, 1150), (3000, 1600), (4000, work)):
        assert schedule.progress(offered) == pytest.approx(done / work)
    assert schedule.num_epochs == 4
    dense = Schedule(1000, epochs=2.5, planned_share=0.1, gated_cost=0.3, gated=False)
    assert dense.progress(1250) == pytest.approx(0.5)
    assert dense.num_epochs == 3


def test_cost_share_counts_scoring():
    schedule = Schedule(1000, epochs=2, warmup_epochs=1, planned_share=0.1, gated_cost=1.3, gated=True)
    assert schedule.cost_share(1000) == pytest.approx(3 / 4.3)
    assert schedule.cost_share(2000) == 1


def test_planned_work_follows_the_size_of_the_pictures():
    """Twin: sample by sample, at the size that it has."""
    units = [0.25, 0.5, 0.8]
    phases = {"warmup_epochs": 0.5, "anneal_epochs": 0.25, "planned_share": 0.2, "gated_cost": 0.6}
    schedule, sums = Schedule(1000, epochs=2, gated=True, units=units, **phases), [0.0]
    for sample in range(2000):
        progress = schedule.progress(sample + 0.5)
        unit = units[2] if progress >= 0.75 else units[progress >= 0.375]
        sums.append(sums[-1] + unit * (0.6 if 500 <= sample < 1750 else 3))
    for offered in (0, 300, 500, 800, 1500, 1750, 2000):
        assert schedule.units(offered) == pytest.approx(sums[offered], abs=3)
    assert schedule.cost_share(2000) == 1


@pytest.mark.parametrize(
    ("progress", "warmup", "lr"),
    [(0.0, 0.1, 0.0), (0.05, 0.1, 1.0), (0.1, 0.1, 2.0), (0.55, 0.1, 1.0), (1.0, 0.1, 0.0), (0.0, 0.0, 2.0)],
)
def test_learning_rate_rises_then_decays_fully(progress, warmup, lr):
    assert lr_at(progress, peak=2.0, warmup=warmup) == pytest.approx(lr)
