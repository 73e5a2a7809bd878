"""Which rank sets the limits of which GPU, and what is said where there is none."""

from types import SimpleNamespace

import pytest

from fastast.config import TrainConfig
from fastast.distributed.environment import WorldInfo
from fastast.distributed.ranks import Ranks
from fastast.energy.nvml import Device
from fastast.errors import InputError
from fastast.session import gpu_limits


class Limits:
    """Stands for `GpuLimits`."""

    opened: list[str]
    refusal = None

    def __init__(self, device, power_limit, lock_clocks):
        self.device, self.notes, self.is_restored = device, [], False

    def open(self):
        self.opened.append(self.device.uuid)
        return self.refusal

    def restore(self):
        self.is_restored = True


def set_limits(monkeypatch, rank, uuids, refusal=None):
    """Runs rank `rank` of several; `uuids` has the GPU of each. Returns what it opened, what it set, and its notes."""
    notes, was_set = [], []
    monkeypatch.setattr(gpu_limits, "GpuLimits", Limits)
    monkeypatch.setattr(Limits, "opened", [], raising=False)
    monkeypatch.setattr(Limits, "refusal", refusal)

    def gather(value):
        asked_uuids = isinstance(value, list) and value == uuids[rank] and not was_set
        return uuids if asked_uuids else [value] * len(uuids)

    energy = SimpleNamespace(
        meter=SimpleNamespace(devices=[Device(0, uuid, "T4") for uuid in uuids[rank]]),
        set_limits=was_set.append,
        restore_limits=lambda: None,
    )
    ranks = Ranks(WorldInfo(rank, len(uuids)))
    ranks.all_gather_object = gather
    reporter = SimpleNamespace(note=notes.append)
    with gpu_limits.limits_set(TrainConfig(power_limit=200), energy, ranks, reporter):
        assert not any(limits.is_restored for limits in was_set)
    assert all(limits.is_restored for limits in was_set)
    return Limits.opened, len(was_set), notes


def test_each_gpu_is_set_once(monkeypatch):
    two, shared = [["GPU-a"], ["GPU-b"]], [["GPU-a"], ["GPU-a"]]
    assert set_limits(monkeypatch, 0, two)[:2] == (["GPU-a"], 1)
    assert set_limits(monkeypatch, 1, two)[:2] == (["GPU-b"], 1)
    assert set_limits(monkeypatch, 0, shared)[:2] == (["GPU-a"], 1)
    assert set_limits(monkeypatch, 1, shared)[:2] == ([], 0)


def test_limits_without_a_gpu_are_noted(monkeypatch):
    assert set_limits(monkeypatch, 0, [[]])[2] == [
        "--power-limit and --lock-clocks: no effect without an NVIDIA GPU that can be metered"
    ]


def test_limit_that_a_gpu_does_not_have_is_refused(monkeypatch):
    with pytest.raises(InputError, match="takes 100 to 350 W"):
        set_limits(monkeypatch, 0, [["GPU-a"]], refusal="--power-limit 90: H200 takes 100 to 350 W")
