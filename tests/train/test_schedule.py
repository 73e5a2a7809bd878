"""Stretches cover each epoch once, and progress ends at 1 whatever the gate."""

import pytest

from fastast.train.schedule import DENSE, GATED, WARMUP, Schedule


@pytest.mark.parametrize("epochs", [1.0, 2.5, 3.0, 0.3])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("gated", [True, False])
def test_stretches_cover_the_planned_samples_in_order(epochs, warmup, gated):
    num = 1000
    schedule = Schedule(num, epochs=epochs, warmup_epochs=min(warmup, epochs), target=0.1, gated=gated)
    position = 0
    for stretch in schedule.stretches:
        assert stretch.offered_before == position == stretch.epoch * num + stretch.start
        assert 0 <= stretch.start < stretch.stop <= num
        position += stretch.stop - stretch.start
        at_end = stretch.stop == num or position == schedule.num_offered
        assert stretch.ends_epoch == at_end
    assert position == schedule.num_offered == round(epochs * num)
    by_phase = {
        phase: sum(s.stop - s.start for s in schedule.stretches if s.phase == phase) for phase in (WARMUP, GATED, DENSE)
    }
    if gated:
        assert by_phase[WARMUP] == round(min(warmup, epochs) * num)
        assert by_phase[DENSE] == 0
    else:
        assert by_phase[DENSE] == schedule.num_offered


def test_progress_follows_planned_backward_work():
    schedule = Schedule(1000, epochs=3, warmup_epochs=1, target=0.3, gated=True)
    work = 1000 + 0.3 * 2000
    assert schedule.progress(0) == 0
    assert schedule.progress(1000) == pytest.approx(1000 / work)
    assert schedule.progress(2000) == pytest.approx(1300 / work)
    assert schedule.progress(3000) == 1
    assert schedule.num_epochs == 3


def test_dense_progress_is_linear():
    schedule = Schedule(1000, epochs=2.5, warmup_epochs=1, target=0.1, gated=False)
    assert schedule.progress(1250) == pytest.approx(0.5)
    assert schedule.num_epochs == 3
