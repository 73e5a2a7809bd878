"""The engine under both loaders: reads ahead, keeps DALI busy, and takes out pictures that fail.

One slice of ids becomes one batch, always. A picture that cannot be read or decoded costs its own row: the batch
comes padded, the picture is quarantined and never offered again.
"""

from __future__ import annotations

import collections
import io
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline
from PIL import Image

from fastast.data.catalog import Catalog, UnreadableError
from fastast.data.graph import MEAN, STD, build_pipeline
from fastast.data.resize import MIN_SIDE, CropResizer

_READERS = 4  # threads; reading waits more than it works
_READ_CHUNK = 32  # files a thread takes at a time, so that the first batch of an epoch is read in parallel
_READ_AHEAD = 2  # batches read beyond those in DALI; bounds the memory held in encoded bytes

OnQuarantine = Callable[[int, str, str], None]
Geometry = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]


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
    reads: list[Future[list[np.ndarray | UnreadableError]]]
    inputs: tuple = ()  # encoded, then the geometry


class Feed:
    """Turns slices of ids into batches; the base of `TrainLoader` and `EvalLoader`.

    A yielded batch stays valid for as long as it is referenced. DALI runs `prefetch` batches ahead of the caller
    and never beyond the ids of the current pass.

    Args:
        catalog: the pictures.
        train: which graph.
        batch_size: rows, B.
        image_size: side, S, pixels.
        device: where the batches are made.
        dtype: of the images, torch.float32 or torch.float16.
        prefetch: batches in DALI at once.
        num_threads: decoder threads; None: the cores that this process may use, at most 8.
        decode: on a GPU, where pictures are decoded: gpu, cpu or auto (gpu).
        deterministic: on a GPU, use no decoder whose bits depend on the rest of the batch.
        on_quarantine: called as `on_quarantine(id, path, reason)` in the caller's thread.

    Attributes:
        wait_s: seconds the caller spent inside `next()`, in all.
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
    ) -> None:
        self.catalog = catalog
        self.wait_s = 0.0
        self.num_decoded = 0
        self.bad_ids = np.zeros(catalog.num_samples, bool)
        self._train = train
        self._batch_size = batch_size
        self._image_size = image_size
        self._device = device
        self._dtype = dtype
        self._prefetch = prefetch
        self._num_threads = num_threads or min(8, len(os.sched_getaffinity(0)))
        self._decode, self._deterministic = decode, deterministic
        self._on_quarantine = on_quarantine
        self._resizer: CropResizer | None = None
        if train and device.type == "cpu" and image_size >= MIN_SIDE:
            self._resizer = CropResizer(image_size, dtype, MEAN, STD, self._num_threads)
        self._reference = _reference_inputs(train)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="fastast-read")
        self._reading: collections.deque[_Flight] = collections.deque()
        self._flying: collections.deque[_Flight] = collections.deque()
        self._inputs: collections.deque[tuple] = collections.deque()
        self._pipeline = self._build(self._inputs, batch_size, prefetch)
        self._single: tuple[Pipeline, collections.deque[tuple]] | None = None
        self._pass: object = None  # identifies the pass that owns the queues
        self._closed = False

    def close(self) -> None:
        """Stops the threads and frees the pipelines; a pass under way ends."""
        if self._closed:
            return
        self._drain()
        self._closed, self._pass = True, None
        self._pool.shutdown(cancel_futures=True)
        if self._resizer is not None:
            self._resizer.close()
        del self._pipeline, self._single

    def _iterate(self, ids: np.ndarray, geometry: Geometry) -> Generator[Batch, None, None]:
        """Yields one batch for each consecutive slice of `ids`."""
        if self._closed:
            raise RuntimeError("the loader was closed")
        self._drain()
        current = self._pass = object()
        slices = iter([ids[first : first + self._batch_size] for first in range(0, len(ids), self._batch_size)])
        try:
            while True:
                began = time.perf_counter()
                if self._pass is not current:
                    raise RuntimeError("this pass was abandoned: another began, or the loader was closed")
                self._advance(slices, geometry)
                if not self._flying:
                    return
                batch = self._collect(self._flying.popleft())
                self._advance(slices, geometry)  # DALI works on while the caller does
                self.wait_s += time.perf_counter() - began
                yield batch
        finally:
            if self._pass is current:
                self._drain()

    def _advance(self, slices: Iterator[np.ndarray], geometry: Geometry) -> None:
        """Starts reads and decodes as far ahead as the limits allow; waits only when nothing else is under way."""
        while True:
            while len(self._reading) < _READ_AHEAD and (ids := next(slices, None)) is not None:
                ids = ids[~self.bad_ids[ids]]
                chunks = [ids[first : first + _READ_CHUNK] for first in range(0, len(ids), _READ_CHUNK)]
                self._reading.append(_Flight(ids, [self._pool.submit(self._read, chunk) for chunk in chunks]))
            if not self._reading or len(self._flying) == self._prefetch:
                return
            if self._flying and not all(read.done() for read in self._reading[0].reads):
                return
            self._submit(self._reading.popleft(), geometry)

    def _read(self, ids: np.ndarray) -> list[np.ndarray | UnreadableError]:
        files: list[np.ndarray | UnreadableError] = []
        for sample in ids.tolist():
            try:
                files.append(self.catalog.read_one(sample))
            except UnreadableError as error:
                files.append(error)
        return files

    def _submit(self, flight: _Flight, geometry: Geometry) -> None:
        """Schedules a batch, less the pictures that could not be read."""
        encoded, good = [], np.ones(len(flight.ids), bool)
        for row, file in enumerate(file for read in flight.reads for file in read.result()):
            if isinstance(file, UnreadableError):
                good[row] = False
                self._quarantine(int(flight.ids[row]), str(file))
            else:
                encoded.append(file)
        flight.ids = flight.ids[good]
        # Sizes only now: a file that changed since the scan was measured again when it was read.
        flight.inputs = (encoded, *geometry(flight.ids, self.catalog.sizes[flight.ids]))
        self._flying.append(flight)
        if encoded:  # DALI takes no empty batch
            self._inputs.append(flight.inputs)
            self._pipeline.schedule_run()

    def _collect(self, flight: _Flight) -> Batch:
        """Waits for a scheduled batch and hands it over without a copy, unless it has to be padded."""
        ids = flight.ids
        if not len(ids):
            return self._finish(self._blank(), ids)
        try:
            pixels = self._outputs(self._pipeline, flight.inputs)  # [n, S, S, 3]
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
                self._decode_one(self._reference)
                self._quarantine(sample, "damaged picture data: cannot be decoded; copy or download it again")
            else:
                pixels[good.sum()].copy_(picture[0])
                good[row] = True
        return self._finish(pixels, flight.ids[good])

    def _decode_one(self, inputs: tuple) -> torch.Tensor:
        if self._single is None:
            queue: collections.deque[tuple] = collections.deque()
            self._single = self._build(queue, 1, 1), queue
        pipeline, queue = self._single
        queue.append(inputs)
        pipeline.schedule_run()
        return self._outputs(pipeline, inputs)

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

    def _outputs(self, pipeline: Pipeline, inputs: tuple) -> torch.Tensor:
        """The next scheduled batch, made from `inputs`; a view of DALI's memory, which lives as long as the tensor."""
        on_gpu = self._device.type == "cuda"
        # Bound to the consumer's stream, the hand-over is ordered on the GPU and the host does not wait.
        (pixels,) = pipeline.outputs(torch.cuda.current_stream(self._device) if on_gpu else None)
        if self._resizer is not None:
            return self._resizer(pixels, inputs[-1])
        return torch.from_dlpack(pixels.as_tensor())

    def _build(self, queue: collections.deque[tuple], batch_size: int, prefetch: int) -> Pipeline:
        """Builds a pipeline and runs it dry: its first `schedule_run` alone starts `prefetch` batches at once."""
        largest = self.catalog.sizes.max(axis=0, initial=0)
        pipeline = build_pipeline(
            queue,
            train=self._train,
            batch_size=batch_size,
            image_size=self._image_size,
            device=self._device,
            dtype=self._dtype,
            num_threads=self._num_threads,
            prefetch=prefetch,
            resize=self._resizer is None,
            decode=self._decode,
            deterministic=self._deterministic,
            largest=(int(largest[0]), int(largest[1])),
        )
        queue.extend([self._reference] * prefetch)
        pipeline.schedule_run()
        while not pipeline.empty():
            pipeline.outputs()
        queue.clear()
        return pipeline

    def _drain(self) -> None:
        """Throws away what is under way."""
        for flight in self._reading:
            for read in flight.reads:
                read.cancel()
        self._reading.clear()
        while not self._pipeline.empty():
            try:
                self._pipeline.outputs()
            except RuntimeError:
                continue  # a damaged picture that nobody waits for any more
        self._flying.clear()


def _reference_inputs(train: bool) -> tuple:
    """A picture that every sound decoder decodes, with its geometry."""
    side = 16
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(buffer, "JPEG")
    encoded = [np.frombuffer(buffer.getvalue(), np.uint8)]
    corners = np.zeros((1, 2)), np.full((1, 2), side)
    if train:
        return encoded, corners[0].astype(np.int32), corners[1].astype(np.int32), np.zeros(1, np.int32)
    return encoded, corners[0].astype(np.float32), corners[1].astype(np.float32)
