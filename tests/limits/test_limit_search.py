"""`--power-limit auto` on a clock that the test moves: GPUs that react to limits in different ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastast.energy import parts
from fastast.energy.nvml import Device
from fastast.energy.parts import PartMeter
from fastast.energy.reading import DeviceReading, Reading
from fastast.energy.storage_reads import Reads
from fastast.limits import limit_search
from fastast.limits.limit_search import STEADY_STEPS, LimitSearch
from fastast.limits.limits import GpuLimits

BEFORE_W, MIN_W, BATCH = 300.0, 100.0, 32


class Gpu(GpuLimits):
    """A GPU whose power and speed follow its limit, with a clock, a meter, and no guardian."""

    def __init__(self, power_w: Callable[[float], float], speed: Callable[[float], float]) -> None:
        super().__init__(Device(0, "GPU-a", "T4"), "auto", None, before_w=BEFORE_W, min_w=MIN_W)
        self.power_w, self.speed = power_w, speed
        self.now_s = self.joules = 0.0
        self.limit_w = self.power_limit_w = BEFORE_W

    def set_power(self, watts: float) -> bool:
        self.limit_w = self.power_limit_w = watts
        return True

    def reading(self) -> Reading:
        moves = int(self.now_s * 10)
        device = DeviceReading("GPU-a", "T4", self.now_s, self.joules, moves, self.joules, "instant", moves)
        return Reading(self.now_s, [device])

    def train_batch(self) -> None:
        seconds = BATCH / self.speed(self.limit_w)
        self.now_s += seconds
        self.joules += self.power_w(self.limit_w) * seconds


def train(gpu: Gpu, part: PartMeter, steps: int, *, wait: float = 0.0) -> None:
    """Trains, with a long evaluation in between."""
    part.start()
    for step in range(steps):
        gpu.train_batch()
        part.step(BATCH, wait_s=wait * BATCH / gpu.speed(gpu.limit_w))
        if step % 200 == 199:
            part.stop()
            gpu.now_s += 20
            gpu.joules += 20 * 500
            part.start()
    part.stop()


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu], PartMeter]:
    def begin(gpu: Gpu) -> PartMeter:
        for module in (parts, limit_search):
            monkeypatch.setattr(module, "monotonic", lambda: gpu.now_s)
        part = PartMeter(gpu)  # type: ignore[arg-type]
        part.search = LimitSearch(gpu, gpu)  # type: ignore[arg-type]
        return part

    return begin


def gpu_of(exponent: float, draws_w: float = 280.0) -> Gpu:
    """Speed is (power / draw)^exponent, at most 1000 pictures a second."""
    return Gpu(lambda limit_w: min(limit_w, draws_w), lambda limit_w: 1000 * min(limit_w / draws_w, 1.0) ** exponent)


def test_least_energy_within_5_percent_of_the_speed_is_found(search: Callable[[Gpu], PartMeter]) -> None:
    gpu = gpu_of(0.2)
    part = search(gpu)
    train(gpu, part, 4000)
    # 0.7 of what is drawn costs 7 % of the speed: 0.8, at 4 %, is the lowest that is allowed.
    assert gpu.power_limit_w == 224.0
    assert [trial.watts for trial in gpu.trials] == [300.0, 252.0, 224.0, 196.0, 300.0]
    assert "power limit 224 W: 16.3 % fewer joules a picture, 4.4 % slower" in gpu.notes
    energy = part.energy()
    assert energy is not None
    # The search is no part of what the savings compare, and evaluations are no part of a trial.
    assert energy.steady.j_per_sample == pytest.approx(224 / (1000 * 0.8**0.2), rel=1e-3)
    assert energy.unsettled_s > 40
    assert gpu.trials[0].j_per_sample == pytest.approx(0.28)


@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_limits_that_only_slow_down_are_not_taken(search: Callable[[Gpu], PartMeter], exponent: float) -> None:
    gpu = gpu_of(exponent)
    train(gpu, search(gpu), 4000)
    assert gpu.power_limit_w == BEFORE_W
    assert len(gpu.trials) == 3  # the first lower one was too slow
    assert "no lower power limit saves energy" in gpu.notes[0]


def test_limits_below_the_least_of_the_gpu_are_not_tried(search: Callable[[Gpu], PartMeter]) -> None:
    gpu = gpu_of(0.01, draws_w=130.0)
    train(gpu, search(gpu), 4000)
    assert [trial.watts for trial in gpu.trials] == [300.0, 117.0, 104.0, 300.0]
    assert gpu.power_limit_w == 104.0


def test_drift_is_no_saving_of_the_limit_that_was_there(search: Callable[[Gpu], PartMeter]) -> None:
    gpu = gpu_of(3.0)
    gpu.power_w = lambda limit_w: min(limit_w, 280.0) * (1.04 if gpu.trials else 1)
    train(gpu, search(gpu), 4000)
    assert gpu.power_limit_w == BEFORE_W
    assert gpu.trials[-1].j_per_sample > 1.03 * gpu.trials[0].j_per_sample
    assert "no lower power limit saves energy" in gpu.notes[0]


def test_conditions_that_change_leave_the_limit(search: Callable[[Gpu], PartMeter]) -> None:
    gpu = gpu_of(0.2)
    gpu.speed = lambda limit_w: 1000 if gpu.now_s < 40 else 1100  # pictures came from the page cache from then on
    train(gpu, search(gpu), 4000)
    assert gpu.power_limit_w == BEFORE_W
    assert "joules per picture changed by -9 % during the search" in gpu.notes[0]


def test_search_that_is_cut_short_leaves_the_limit(search: Callable[[Gpu], PartMeter]) -> None:
    gpu = gpu_of(0.2)
    part = search(gpu)
    train(gpu, part, STEADY_STEPS + 900)
    assert gpu.limit_w < BEFORE_W
    assert isinstance(part.search, LimitSearch)
    part.search.give_up()
    assert gpu.power_limit_w == gpu.limit_w == BEFORE_W
    assert "too short" in gpu.notes[0]


def test_search_waits_for_a_cold_page_cache(
    search: Callable[[Gpu], PartMeter], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, reads, is_cold = gpu_of(0.2), Reads(0, 0), True

    def cold() -> Reads:
        nonlocal reads
        reads = Reads(reads.read_b + 1000, reads.storage_b + 1000 * is_cold)
        return reads

    real = limit_search.PartMeter
    monkeypatch.setattr(limit_search, "PartMeter", lambda *args, **options: real(*args, **options, reads=cold))
    part = search(gpu)
    train(gpu, part, 1000, wait=0.2)
    assert gpu.trials == []
    is_cold = False
    train(gpu, part, 5000)
    assert gpu.power_limit_w == 224.0
