"""Energy of one part of a run, dense or gated; the measured savings compare the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.reading import Reading, merge_ranks
from fastast.energy.storage_reads import Reads, storage_reads

# A block is cold if more than this share of what it read came from storage ...
COLD_READS = 0.1
# ... and training waited for pictures for more than this share of its time.
COLD_WAIT = 0.05


@dataclass(slots=True)
class Blocks:
    """Sums over blocks of a part, about 10 s of training each."""

    reading: Reading
    num_samples: int = 0  # offered
    wait_s: float = 0.0  # training waited for pictures; of several ranks, the mean
    samples_on_cpu: float = 0.0  # of `num_samples`, decoded on the CPU (of a run on a GPU)
    read_b: int | None = 0  # None where the kernel does not tell
    storage_b: int = 0  # of these, from storage and not from the page cache
    # Joules and samples offered of each block, for the standard error.
    rows: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return self.reading.seconds

    @property
    def j_per_sample(self) -> float | None:
        """GPU joules per offered sample, or None."""
        return self._per_sample(self.reading.joules)

    @property
    def cpu_j_per_sample(self) -> float | None:
        """Joules of CPU packages and DRAM per offered sample, or None."""
        return self._per_sample(self.reading.cpu_j)

    def _per_sample(self, joules: float | None) -> float | None:
        return None if joules is None or self.num_samples == 0 else joules / self.num_samples

    @property
    def j_per_sample_error(self) -> float | None:
        """Standard error of `j_per_sample` (ratio estimator over blocks), or None with fewer than two blocks."""
        n = len(self.rows)
        num_samples = sum(samples for _, samples in self.rows)
        if n < 2 or num_samples == 0:
            return None
        rate = sum(joules for joules, _ in self.rows) / num_samples
        squares = sum((joules - rate * samples) ** 2 for joules, samples in self.rows)
        return (squares * n / (n - 1)) ** 0.5 / num_samples

    @property
    def data_wait(self) -> float | None:
        """Share of the time in which training waited for pictures."""
        return self.wait_s / self.seconds if self.seconds > 0 else None

    @property
    def on_cpu(self) -> float | None:
        """Share of the samples decoded on the CPU."""
        return self.samples_on_cpu / self.num_samples if self.num_samples else None

    @property
    def from_storage(self) -> float | None:
        """Share of what was read that came from storage; None where the kernel does not tell."""
        return None if self.read_b is None else self.storage_b / self.read_b if self.read_b else 0.0

    @property
    def is_cold(self) -> bool:
        """Whether training waited for pictures that were not in the page cache."""
        return (self.from_storage or 0.0) > COLD_READS and (self.data_wait or 0.0) > COLD_WAIT

    def __add__(self, later: Blocks) -> Blocks:
        """Blocks that ran at other times."""
        return self._combined(later, self.reading + later.reading, self.wait_s + later.wait_s)

    def _combined(self, other: Blocks, reading: Reading, wait_s: float) -> Blocks:
        return Blocks(
            reading,
            self.num_samples + other.num_samples,
            wait_s,
            self.samples_on_cpu + other.samples_on_cpu,
            None if self.read_b is None or other.read_b is None else self.read_b + other.read_b,
            self.storage_b + other.storage_b,
            self.rows + other.rows,
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Blocks:
        """The blocks that `dataclasses.asdict` made plain."""
        rows = [(joules, samples) for joules, samples in state["rows"]]
        return cls(**{**state, "reading": Reading.from_state(state["reading"]), "rows": rows})


@dataclass(slots=True)
class PartEnergy:
    """Energy of one part of a run (dense or gated), over training intervals only."""

    whole: Reading  # every training interval of the part
    steady: Blocks  # without the first steps, and without the blocks of the next two
    cold: Blocks  # blocks that waited for pictures which were not in the page cache
    unsettled_s: float = 0.0  # blocks in which the share that the CPU decodes or a power limit changed

    @property
    def is_cold(self) -> bool:
        """Whether most of the part waited for storage: the pictures do not fit into the page cache."""
        return self.cold.seconds > self.steady.seconds

    def blocks(self, *, with_cold: bool) -> Blocks:
        """What joules per sample are taken from."""
        return self.steady + self.cold if with_cold else self.steady

    def __add__(self, later: PartEnergy) -> PartEnergy:
        """Two intervals of one part, one after the other (a resumed run, or warm-up and anneal)."""
        return PartEnergy(
            self.whole + later.whole,
            self.steady + later.steady,
            self.cold + later.cold,
            self.unsettled_s + later.unsettled_s,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PartEnergy:
        """Restores what `state_dict` returned."""
        steady, cold = (Blocks.from_state(state[name]) for name in ("steady", "cold"))
        return cls(Reading.from_state(state["whole"]), steady, cold, state["unsettled_s"])


def merge_part_ranks(parts: Iterable[PartEnergy]) -> PartEnergy:
    """`merge_ranks` for parts; ranks that share a GPU give no standard error."""
    parts = list(parts)
    return PartEnergy(
        merge_ranks(part.whole for part in parts),
        _merge_blocks([part.steady for part in parts]),
        _merge_blocks([part.cold for part in parts]),
        max(part.unsettled_s for part in parts),
    )


def _merge_blocks(ranks: list[Blocks]) -> Blocks:
    uuids = [device.uuid for blocks in ranks for device in blocks.reading.devices]
    merged = ranks[0]
    for blocks in ranks[1:]:
        merged = merged._combined(blocks, merged.reading, merged.wait_s)
    merged = dataclasses.replace(merged, reading=merge_ranks(blocks.reading for blocks in ranks))
    merged.wait_s = sum(blocks.wait_s for blocks in ranks) / len(ranks)
    merged.rows = [] if len(set(uuids)) < len(uuids) else merged.rows
    return merged


class Search(Protocol):
    """Changes what a part runs under, for a while."""

    def start(self) -> None:
        """A training interval begins."""

    def step(self, num_samples: int, *, wait_s: float, on_cpu: float) -> bool:
        """A batch, as for `PartMeter.step`; returns whether nothing will change any more."""

    def stop(self) -> None:
        """A training interval ends."""


class PartMeter:
    """Adds up one part of a run over its training intervals, in blocks.

    Args:
        meter: a started meter.
        skip_steps: steps at the start of the part that count in `whole` only.
        block_s: length of a block, seconds.
        reads: what the process has read.

    Attributes:
        search: looks for a power limit meanwhile, or None; blocks in which it does are left out.

    Call `start` where training begins, `step` after each offered batch, and `stop` before evaluation, checkpoints
    and the end; start and stop may alternate as often as needed.
    """

    def __init__(
        self,
        meter: EnergyMeter,
        *,
        skip_steps: int = 50,
        block_s: float = 10.0,
        reads: Callable[[], Reads | None] = storage_reads,
    ) -> None:
        self._meter = meter
        self._skip_left = skip_steps
        self._block_s = block_s
        self._reads = reads
        self._interval_start: Reading | None = None
        self._block_start: Reading | None = None
        self._block = Blocks(Reading(0.0))
        self._block_on_cpu: float | None = None
        self._block_reads: Reads | None = None
        self._block_end_s = 0.0
        self._is_settled = True
        self._energy: PartEnergy | None = None
        self.search: Search | None = None

    def start(self) -> None:
        """Begins a training interval; harmless within one."""
        if self._interval_start is not None:
            return
        if self.search is not None:
            self.search.start()
        now = self._meter.reading()
        self._interval_start = now
        if self._energy is None:
            empty = now.since(now)
            self._energy = PartEnergy(empty, Blocks(empty), Blocks(empty))
        if self._skip_left == 0:
            self._start_block(now)

    def step(self, num_samples: int, *, wait_s: float = 0.0, on_cpu: float = 0.0) -> None:
        """Counts one offered batch.

        Args:
            num_samples: offered.
            wait_s: seconds that training waited for it.
            on_cpu: share of the batches that the CPU decodes at present.
        """
        is_settled = self.search is None or self.search.step(num_samples, wait_s=wait_s, on_cpu=on_cpu)
        if self._skip_left > 0:
            self._skip_left -= 1
            if self._skip_left == 0:
                self._start_block(self._meter.reading())
            return
        if is_settled and not self._is_settled:
            now = self._meter.reading()
            self._end_block(now)
            self._start_block(now)
            return
        self._is_settled = is_settled and self._is_settled and self._block_on_cpu in (None, on_cpu)
        self._block_on_cpu = on_cpu
        self._block.num_samples += num_samples
        self._block.wait_s += wait_s
        self._block.samples_on_cpu += on_cpu * num_samples
        if monotonic() >= self._block_end_s:
            now = self._meter.reading()
            self._end_block(now)
            self._start_block(now)

    def stop(self) -> None:
        """Ends a training interval."""
        if self._interval_start is None or self._energy is None:
            return
        if self.search is not None:
            self.search.stop()
        now = self._meter.reading()
        self._energy.whole += now.since(self._interval_start)
        self._interval_start = None
        if self._block_start is not None:
            self._end_block(now)

    def energy(self) -> PartEnergy | None:
        """The sums up to the last `stop`; None if the part never started."""
        return self._energy

    def _start_block(self, now: Reading) -> None:
        self._block_start, self._block = now, Blocks(now.since(now))
        self._block_on_cpu, self._block_reads, self._is_settled = None, self._reads(), True
        self._block_end_s = monotonic() + self._block_s

    def _end_block(self, now: Reading) -> None:
        assert self._block_start is not None
        assert self._energy is not None
        block, reads = self._block, self._reads()
        block.reading = now.since(self._block_start)
        block.read_b = None
        if reads is not None and self._block_reads is not None:
            block.read_b, block.storage_b = (a - b for a, b in zip(reads, self._block_reads, strict=True))
        if block.reading.joules is not None:
            block.rows = [(block.reading.joules, block.num_samples)]
        if not self._is_settled:
            self._energy.unsettled_s += block.seconds
        elif block.is_cold:
            self._energy.cold += block
        else:
            self._energy.steady += block
        self._block_start = None
