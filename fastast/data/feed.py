"""The engine under both loaders: reads ahead, keeps DALI busy, and takes out pictures that fail.

One slice of ids becomes one batch, always. A picture that cannot be read or decoded costs its own row: the batch
comes padded, the picture is quarantined and never offered again.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fastast.data.catalog import Catalog, UnreadableError
from fastast.data.decode_share import DecodeShare
from fastast.data.graph import MEAN, STD
from fastast.data.lane import Lane, reference_inputs
from fastast.data.reader import OnNote, OnWait, Read, Reader
from fastast.data.resize import MIN_SIDE, CropResizer

_READ_AHEAD = 3  # batches under way beyond those in DALI; bounds the memory held in encoded bytes

OnQuarantine = Callable[[int, str, str], None]
Geometry = Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Batch(NamedTuple):
    """One batch on the device. Rows from `num_valid` on are padding: zeros, label 0, id 0, valid False."""

    images: torch.Tensor  # [B, 3, S, S] channels-last
    labels: torch.Tensor  # int64[B]
    ids: torch.Tensor  # int64[B]
    valid: torch.Tensor  # bool[B]
    num_valid: int  # on the host


@dataclass
class _Flight:
    """A batch on its way. Holds the encoded bytes until its pixels are out: DALI reads them in place."""

    ids: np.ndarray
    reads: list[Read]
    lane: Lane
    inputs: tuple = ()  # encoded, then the geometry; empty until all is read


class Feed:
    """Turns slices of ids into batches; the base of the loaders.

    A yielded batch stays valid for as long as it is referenced. Slices are pulled by count alone: `depth` before the
    first batch and one before each further batch, however long reads and decodes take, so that a slice that depends
    on what the caller has done by then is the same in every run. Reads go on in threads, and DALI runs up to
    `prefetch` batches ahead of the caller.

    Args:
        catalog: the pictures.
        train: which graph.
        batch_size: rows, B.
        image_size: side, S, pixels.
        device: where the batches are made.
        dtype: of the images, torch.float32 or torch.float16.
        prefetch: batches in DALI at once.
        num_threads: decoder threads; None: the cores that this process may use, at most 8.
        decode: on a GPU, where pictures are decoded: gpu, cpu, or auto, which lets the CPU take as many of the train
            graph's batches as it can without being waited for.
        deterministic: on a GPU, use no decoder whose bits depend on the rest of the batch, and one kind only.
        on_quarantine: called as `on_quarantine(id, path, reason)` in the caller's thread.
        on_wait: called about every second while reads are waited for, in the caller's thread; what it raises ends the
            pass.
        on_note: called as `on_note(line)` in the caller's thread when the pictures' folder is gone, and when it is
            back; meanwhile the pass waits.

    Attributes:
        depth: batches under way at most.
        wait_s: seconds the caller waited inside `next()`, in all; time in the caller's own iterator of slices is not
            counted.
        num_decoded: pictures delivered.
        bad_ids: bool[N], the quarantined ones.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        train: bool,
        batch_size: int,
        image_size: int,
        device: torch.device,
        dtype: torch.dtype,
        prefetch: int,
        num_threads: int | None,
        decode: str,
        deterministic: bool,
        on_quarantine: OnQuarantine | None,
        on_wait: OnWait | None,
        on_note: OnNote | None,
    ) -> None:
        self.catalog = catalog
        self.wait_s = 0.0
        self.num_decoded = 0
        self.bad_ids = np.zeros(catalog.num_samples, bool)
        self.depth = prefetch + _READ_AHEAD
        self._train = train
        self._batch_size = batch_size
        self._image_size = image_size
        self._device = device
        self._dtype = dtype
        self._prefetch = prefetch
        self._num_threads = num_threads or min(8, len(os.sched_getaffinity(0)))
        self._deterministic = deterministic
        self._on_quarantine, self._on_wait, self._on_note = on_quarantine, on_wait, on_note
        self._resizer: CropResizer | None = None
        if train and device.type == "cpu" and image_size >= MIN_SIDE:
            self._resizer = CropResizer(image_size, dtype, MEAN, STD, self._num_threads)
        self._share = DecodeShare(
            decode, adaptive=train and device.type == "cuda" and not deterministic, settle=self.depth
        )
        self._reader = Reader(catalog, on_wait, on_note)
        self._flights: collections.deque[_Flight] = collections.deque()
        self._lanes: dict[bool, Lane] = {}  # by whether pictures are decoded on the CPU
        self._single: Lane | None = None
        self._decode_on_cpu = decode == "cpu"
        self._lane(self._decode_on_cpu)
        self._pass: object = None  # identifies the pass that owns the flights
        self._closed = False

    def close(self) -> None:
        """Stops the threads and frees the pipelines; a pass under way ends."""
        if self._closed:
            return
        self._drain()
        self._closed, self._pass = True, None
        self._reader.close()
        if self._resizer is not None:
            self._resizer.close()
        self._lanes.clear()
        self._single = None

    def _slices(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        return (ids[first : first + self._batch_size] for first in range(0, len(ids), self._batch_size))

    def _iterate(self, slices: Iterable[np.ndarray], geometry: Geometry) -> Generator[Batch, None, None]:
        """Yields one batch for each slice of ids."""
        if self._closed:
            raise RuntimeError("the loader was closed")
        self._drain()
        self._share.begin_pass()
        current = self._pass = object()
        pulls = iter(slices)
        try:
            while True:
                began = time.perf_counter()
                outside_s = self._pull(pulls, current)
                if not self._flights:
                    return
                self._launch(geometry, wait=True)
                batch = self._collect(self._flights.popleft())
                self._launch(geometry, wait=False)  # DALI works on while the caller does
                now = time.perf_counter()
                wait_s = now - began - outside_s
                self.wait_s += wait_s
                self._share.delivered(wait_s, now)
                yield batch
        finally:
            if self._pass is current:
                self._drain()

    def _pull(self, slices: Iterator[np.ndarray], current: object) -> float:
        """Takes slices until `depth` batches are under way, and starts their reads; returns the seconds they took."""
        outside_s = 0.0
        self._require(current)
        while len(self._flights) < self.depth:
            began = time.perf_counter()
            ids = next(slices, None)
            outside_s += time.perf_counter() - began
            self._require(current)  # the caller's iterator may do anything
            if ids is None:
                break
            if len(ids) > self._batch_size:
                raise ValueError(f"a slice of {len(ids)} ids: must be at most {self._batch_size}, the batch size")
            ids = ids[~self.bad_ids[ids]]
            self._flights.append(_Flight(ids, self._reader.start(ids), self._lane(self._share.next_on_cpu())))
        return outside_s

    def _require(self, current: object) -> None:
        if self._pass is not current:
            raise RuntimeError("this pass was abandoned: another began, or the loader was closed")

    def _launch(self, geometry: Geometry, *, wait: bool) -> None:
        """Schedules what is read, in order within each lane; with `wait` the first batch in any case."""
        held: list[Lane] = []
        for place, flight in enumerate(self._flights):
            if flight.inputs or flight.lane in held:
                continue
            is_read = (wait and place == 0) or all(read.done() for read in flight.reads)
            if is_read and not flight.lane.is_full:
                self._submit(flight, geometry)
            else:
                held.append(flight.lane)

    def _submit(self, flight: _Flight, geometry: Geometry) -> None:
        """Schedules a batch, less the pictures that could not be read."""
        encoded, good = [], np.ones(len(flight.ids), bool)
        for row, file in enumerate(self._reader.take(flight.reads)):
            if isinstance(file, UnreadableError):
                good[row] = False
                self._quarantine(int(flight.ids[row]), str(file))
            else:
                encoded.append(file)
        flight.ids = flight.ids[good]
        # Sizes only now: a file that changed since the scan was measured again when it was read.
        flight.inputs = (encoded, *geometry(flight.ids))
        if encoded:  # DALI takes no empty batch
            flight.lane.submit(flight.inputs)

    def _collect(self, flight: _Flight) -> Batch:
        """Waits for a scheduled batch and hands it over without a copy, unless it has to be padded."""
        ids = flight.ids
        if not len(ids):
            return self._finish(self._blank(), ids)
        try:
            pixels = self._outputs(flight.lane, flight.inputs)  # [n, S, S, 3]
        except RuntimeError:
            return self._salvage(flight)
        if len(ids) < self._batch_size:
            padded = self._blank()
            padded[: len(ids)].copy_(pixels)
            pixels = padded
        return self._finish(pixels, ids)

    def _salvage(self, flight: _Flight) -> Batch:
        """Decodes a failed batch one picture at a time and quarantines those that fail."""
        pixels, good = self._blank(), np.zeros(len(flight.ids), bool)
        for row, sample in enumerate(flight.ids.tolist()):
            try:
                picture = self._decode_one(tuple(part[row : row + 1] for part in flight.inputs))
            except RuntimeError:
                # If the reference picture fails as well (out of memory, a lost GPU), the fault is not the
                # sample's: that error goes up.
                self._decode_one(reference_inputs(self._train))
                self._quarantine(sample, "damaged picture data: cannot be decoded; copy or download it again")
            else:
                pixels[good.sum()].copy_(picture[0])
                good[row] = True
        return self._finish(pixels, flight.ids[good])

    def _decode_one(self, inputs: tuple) -> torch.Tensor:
        if self._single is None:
            self._single = self._build(1, 1, on_cpu=self._decode_on_cpu)
        self._single.submit(inputs)
        return self._outputs(self._single, inputs)

    def _finish(self, pixels: torch.Tensor, ids: np.ndarray) -> Batch:
        """[B, S, S, 3] pixels and the ids of their first rows as a batch."""
        count = len(ids)
        self.num_decoded += count
        table = np.zeros((3, self._batch_size), np.int64)
        table[0, :count], table[1, :count], table[2, :count] = self.catalog.labels[ids], ids, 1
        host = torch.from_numpy(table)
        if self._device.type == "cuda":
            host = host.pin_memory()  # so that the one copy does not wait for the GPU
        labels, sample_ids, valid = host.to(self._device, non_blocking=True)
        return Batch(pixels.permute(0, 3, 1, 2), labels, sample_ids, valid.bool(), count)

    def _blank(self) -> torch.Tensor:
        shape = (self._batch_size, self._image_size, self._image_size, 3)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _quarantine(self, sample: int, reason: str) -> None:
        """Reports a picture once, however often a pass names it."""
        known, self.bad_ids[sample] = self.bad_ids[sample], True
        if self._on_quarantine is not None and not known:
            self._on_quarantine(sample, self.catalog.path(sample), reason)

    def _outputs(self, lane: Lane, inputs: tuple) -> torch.Tensor:
        """The lane's next batch, made from `inputs`; a view of DALI's memory, which lives as long as the tensor."""
        pixels = lane.collect(torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None)
        if self._resizer is not None:
            return self._resizer(pixels, inputs[-1])
        return torch.from_dlpack(pixels.as_tensor())

    def _lane(self, on_cpu: bool) -> Lane:
        """The lane that decodes on the CPU, or the other; built when first needed."""
        if on_cpu not in self._lanes:
            self._lanes[on_cpu] = self._build(self._batch_size, self._prefetch, on_cpu=on_cpu)
        return self._lanes[on_cpu]

    def _build(self, batch_size: int, prefetch: int, *, on_cpu: bool) -> Lane:
        height, width = self.catalog.sizes.max(axis=0, initial=0).tolist()
        return Lane(
            train=self._train,
            batch_size=batch_size,
            image_size=self._image_size,
            device=self._device,
            dtype=self._dtype,
            num_threads=self._num_threads,
            prefetch=prefetch,
            resize=self._resizer is None,
            decode="cpu" if on_cpu else "gpu",
            deterministic=self._deterministic,
            largest=(height, width),
        )

    def _drain(self) -> None:
        """Throws away what is under way."""
        self._reader.drop()
        for lane in self._lanes.values():
            lane.drain()
        self._flights.clear()  # only now: their bytes are read in place
