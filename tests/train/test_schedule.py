"""Stretches cover each epoch once, and progress ends at 1 whatever the gate."""

import pytest

from fastast.train.schedule import ANNEAL, DENSE, GATED, WARMUP, Schedule


def tenth(epoch):
    return 0.1


@pytest.mark.parametrize("epochs", [1.0, 2.5, 3.0, 0.3])
@pytest.mark.parametrize(("warmup", "anneal"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.5), (1.5, 1.0), (0.0, 9.0)])
@pytest.mark.parametrize("gated", [True, False])
def test_stretches_cover_the_planned_samples_in_order(epochs, warmup, anneal, gated):
    num = 1000
    schedule = Schedule(
        num, epochs=epochs, warmup_epochs=warmup, anneal_epochs=anneal, planned_share=tenth, gated=gated
    )
    position = 0
    for stretch in schedule.stretches:
        assert stretch.offered_before == position == stretch.epoch * num + stretch.start
        assert 0 <= stretch.start < stretch.stop <= num
        assert stretch.share == (0.1 if stretch.phase == GATED else 1.0)
        position += stretch.stop - stretch.start
        at_end = stretch.stop == num or position == schedule.num_offered
        assert stretch.ends_epoch == at_end
    assert position == schedule.num_offered == round(epochs * num)
    size = {p: sum(s.stop - s.start for s in schedule.stretches if s.phase == p) for p in (WARMUP, ANNEAL, DENSE)}
    if gated:
        assert size[WARMUP] == min(position, round(warmup * num))
        assert size[ANNEAL] == min(position - size[WARMUP], round(anneal * num))
        assert size[DENSE] == 0
    else:
        assert size[DENSE] == position


def test_progress_follows_planned_backward_work():
    schedule = Schedule(1000, epochs=4, warmup_epochs=1, anneal_epochs=1, planned_share=lambda e: 0.3 * e, gated=True)
    work = 1000 + 300 + 600 + 1000
    assert schedule.progress(0) == 0
    assert schedule.progress(1000) == pytest.approx(1000 / work)
    assert schedule.progress(1500) == pytest.approx(1150 / work)
    assert schedule.progress(3000) == pytest.approx(1900 / work)
    assert schedule.progress(4000) == 1
    assert schedule.num_epochs == 4


def test_the_share_of_cost_counts_scoring_too():
    schedule = Schedule(1000, epochs=2, warmup_epochs=1, planned_share=tenth, gated=True)
    assert schedule.cost_share(1000, lambda a: 1 + 3 * a) == pytest.approx(3 / 4.3)
    assert schedule.cost_share(2000, lambda a: 1 + 3 * a) == 1


def test_dense_progress_is_linear():
    schedule = Schedule(1000, epochs=2.5, planned_share=tenth, gated=False)
    assert schedule.progress(1250) == pytest.approx(0.5)
    assert schedule.num_epochs == 3
