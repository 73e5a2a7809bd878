"""The base of both loaders: reads ahead, keeps DALI busy, and takes out pictures that fail.

Each slice of ids becomes exactly one batch. A picture that cannot be read or decoded costs its own row: the batch is
padded, and the picture is quarantined and never offered again.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from fastast.data.catalog import Catalog, UnreadableError
from fastast.feed.decode_share import DecodeShare
from fastast.feed.loader_options import LoaderOptions
from fastast.feed.pipeline import DecodePipeline, reference_inputs
from fastast.feed.reader import Read, Reader
from fastast.feed.resize import MIN_SIDE, CropResizer

_READ_AHEAD = 3  # batches being read beyond those in DALI; bounds the memory held in encoded bytes

Geometry = Callable[[np.ndarray], tuple[np.ndarray, ...]]
Slice = tuple[np.ndarray, int]  # ids int64[n], and the side of their pictures in pixels


class Batch(NamedTuple):
    """One batch on the device, of one size. Rows from `num_valid` on are padding: zeros, label 0, id 0, valid False.

    `lost_ids` completes it: each id of its slice is either in one of the first `num_valid` rows or lost, because it
    was in quarantine before or has just been put there. So whoever offered the slice need not ask the quarantine.
    """

    images: torch.Tensor  # [B, 3, S, S] channels-last
    labels: torch.Tensor  # int64[B]
    ids: torch.Tensor  # int64[B]
    valid: torch.Tensor  # bool[B]
    num_valid: int  # on the host
    lost_ids: np.ndarray = np.zeros(0, np.int64)  # int64[k] on the host, in slice order


@dataclass
class _PendingBatch:
    """A batch that is being read or decoded. Holds the encoded bytes until then: DALI reads them in place."""

    slice_ids: np.ndarray  # as pulled
    size: int  # side of its pictures, pixels
    ids: np.ndarray  # those that may still be delivered
    reads: list[Read]
    pipeline: DecodePipeline
    inputs: tuple = ()  # encoded, then the geometry; empty until all is read


class PrefetchLoader:
    """Turns slices of ids, each with the size of its pictures, into batches.

    A yielded batch stays valid for as long as it is referenced. Slices are pulled by count alone: `depth` before the
    first batch and one before each further batch, however long reads and decodes take, so that a slice that depends
    on what the caller has done by then is the same in every run. Reads run in threads, and DALI runs up to
    `prefetch` batches ahead of the caller.

    Args:
        catalog: the pictures.
        options: batches, device and callbacks.
        train: which DALI graph.

    Attributes:
        depth: largest number of pending batches.
        wait_s: seconds the caller waited inside `next()`, in all, without time in its own iterator of slices.
        num_decoded: pictures delivered.
        bad_ids: bool[N], the quarantined ones.
    """

    def __init__(self, catalog: Catalog, options: LoaderOptions, *, train: bool) -> None:
        self.catalog = catalog
        self.wait_s = 0.0
        self.num_decoded = 0
        self.bad_ids = np.zeros(catalog.num_samples, bool)
        self.depth = options.prefetch + _READ_AHEAD
        self._options = options
        self._train = train
        on_gpu = options.device.type == "cuda"
        self._resizer: CropResizer | None = None
        if train and not on_gpu and options.image_size >= MIN_SIDE:
            self._resizer = CropResizer(options.dtype, options.mean, options.std, options.decoder_threads)
        self._share = DecodeShare(
            options.decode, adaptive=train and on_gpu and not options.deterministic, settle=self.depth
        )
        self._reader = Reader(catalog, options.on_wait, options.on_note)
        self._pending: collections.deque[_PendingBatch] = collections.deque()
        self._pipelines: dict[bool, DecodePipeline] = {}  # by whether pictures are decoded on the CPU
        self._single: DecodePipeline | None = None
        self._pipeline(options.decode == "cpu")
        self._pass: object = None  # identifies the pass that owns the pending batches
        self._closed = False

    @property
    def share_on_cpu(self) -> float:
        """Share of the batches that the CPU decodes now; 0 where pictures are made on the CPU anyway."""
        return self._share.share if self._options.device.type == "cuda" else 0.0

    def find_share_on_cpu(self) -> None:
        """Looks for the best share in the next passes (`--decode auto`), and holds it once it is found."""
        self._share.begin_search()

    def close(self) -> None:
        """Stops the threads and frees the pipelines; a running pass ends."""
        if self._closed:
            return
        self._drain()
        self._closed, self._pass = True, None
        self._reader.close()
        if self._resizer is not None:
            self._resizer.close()
        self._pipelines.clear()
        self._single = None

    def _slices(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        size = self._options.batch_size
        return (ids[first : first + size] for first in range(0, len(ids), size))

    def _iterate(self, slices: Iterable[Slice], geometry: Geometry) -> Generator[Batch, None, None]:
        """Yields one batch for each slice."""
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
                if not self._pending:
                    return
                self._launch(geometry, wait=True)
                batch = self._collect(self._pending.popleft())
                self._launch(geometry, wait=False)  # DALI works on while the caller does
                now = time.perf_counter()
                wait_s = now - began - outside_s
                self.wait_s += wait_s
                self._share.delivered(wait_s, now)
                yield batch
        finally:
            if self._pass is current:
                self._drain()

    def _pull(self, slices: Iterator[Slice], current: object) -> float:
        """Takes slices until `depth` batches are pending, and starts their reads; returns the seconds they took."""
        outside_s = 0.0
        self._require(current)
        while len(self._pending) < self.depth:
            began = time.perf_counter()
            pulled = next(slices, None)
            outside_s += time.perf_counter() - began
            self._require(current)  # the caller's iterator may do anything
            if pulled is None:
                break
            (ids, size), most = pulled, self._options.batch_size
            if len(ids) > most:
                raise ValueError(f"a slice of {len(ids)} ids: must be at most {most}, the batch size")
            good = ids[~self.bad_ids[ids]]
            pipeline = self._pipeline(self._share.next_on_cpu())
            self._pending.append(_PendingBatch(ids.copy(), size, good, self._reader.start(good), pipeline))
        return outside_s

    def _require(self, current: object) -> None:
        if self._pass is not current:
            raise RuntimeError("this pass was abandoned: another began, or the loader was closed")

    def _launch(self, geometry: Geometry, *, wait: bool) -> None:
        """Schedules what is read, in order within each pipeline; with `wait` the first batch in any case."""
        held: list[DecodePipeline] = []
        for place, pending in enumerate(self._pending):
            if pending.inputs or pending.pipeline in held:
                continue
            is_read = (wait and place == 0) or all(read.done() for read in pending.reads)
            if is_read and not pending.pipeline.is_full:
                self._submit(pending, geometry)
            else:
                held.append(pending.pipeline)

    def _submit(self, pending: _PendingBatch, geometry: Geometry) -> None:
        """Schedules a batch without the pictures that could not be read."""
        encoded, good = [], np.ones(len(pending.ids), bool)
        for row, file in enumerate(self._reader.take(pending.reads)):
            if isinstance(file, UnreadableError):
                good[row] = False
                self._quarantine(int(pending.ids[row]), str(file))
            else:
                encoded.append(file)
        pending.ids = pending.ids[good]
        # Sizes only now: a file that changed since the scan was measured again when it was read.
        pending.inputs = (encoded, *geometry(pending.ids))
        if self._train:
            pending.inputs += (np.full((len(encoded), 2), pending.size, np.float32),)
        if encoded:  # DALI takes no empty batch
            pending.pipeline.submit(pending.inputs)

    def _collect(self, pending: _PendingBatch) -> Batch:
        """Waits for a scheduled batch and hands it over without a copy, unless it has to be padded."""
        count = len(pending.ids)
        if not count:
            return self._finish(self._blank(pending.size), pending)
        try:
            pixels = self._outputs(pending.pipeline, pending.inputs)  # [n, S, S, 3]
        except RuntimeError:
            return self._salvage(pending)
        if count < self._options.batch_size:
            padded = self._blank(pending.size)
            padded[:count].copy_(pixels)
            pixels = padded
        return self._finish(pixels, pending)

    def _salvage(self, pending: _PendingBatch) -> Batch:
        """Decodes a failed batch one picture at a time and quarantines those that fail."""
        pixels, good = self._blank(pending.size), np.zeros(len(pending.ids), bool)
        for row, sample in enumerate(pending.ids.tolist()):
            try:
                picture = self._decode_one(tuple(part[row : row + 1] for part in pending.inputs))
            except RuntimeError:
                # If the reference picture fails as well (out of memory, a lost GPU), the fault is not the
                # sample's: that error is passed on.
                self._decode_one(reference_inputs(self._train))
                self._quarantine(sample, "damaged picture data: cannot be decoded; copy or download it again")
            else:
                pixels[good.sum()].copy_(picture[0])
                good[row] = True
        pending.ids = pending.ids[good]
        return self._finish(pixels, pending)

    def _decode_one(self, inputs: tuple) -> torch.Tensor:
        if self._single is None:
            options = replace(self._options, batch_size=1, prefetch=1)
            self._single = self._build(options, on_cpu=options.decode == "cpu")
        self._single.submit(inputs)
        return self._outputs(self._single, inputs)

    def _finish(self, pixels: torch.Tensor, pending: _PendingBatch) -> Batch:
        """Makes a batch of [B, S, S, 3] pixels, whose first rows are `pending.ids`."""
        ids, device = pending.ids, self._options.device
        count = len(ids)
        self.num_decoded += count
        table = np.zeros((3, self._options.batch_size), np.int64)
        table[0, :count], table[1, :count], table[2, :count] = self.catalog.labels[ids], ids, 1
        host = torch.from_numpy(table)
        if device.type == "cuda":
            host = host.pin_memory()  # so that the one copy does not wait for the GPU
        labels, sample_ids, valid = host.to(device, non_blocking=True)
        lost = pending.slice_ids[~np.isin(pending.slice_ids, ids)]
        return Batch(pixels.permute(0, 3, 1, 2), labels, sample_ids, valid.bool(), count, lost)

    def _blank(self, size: int) -> torch.Tensor:
        options = self._options
        shape = (options.batch_size, size, size, 3)
        return torch.zeros(shape, dtype=options.dtype, device=options.device)

    def _quarantine(self, sample: int, reason: str) -> None:
        """Reports a picture once, however often a pass names it."""
        known, self.bad_ids[sample] = self.bad_ids[sample], True
        if self._options.on_quarantine is not None and not known:
            self._options.on_quarantine(sample, self.catalog.path(sample), reason)

    def _outputs(self, pipeline: DecodePipeline, inputs: tuple) -> torch.Tensor:
        """The pipeline's next batch, made from `inputs`; a view of DALI's memory, which lives as long as the tensor."""
        device = self._options.device
        pixels = pipeline.collect(torch.cuda.current_stream(device) if device.type == "cuda" else None)
        if self._resizer is not None:
            *_, flips, sizes = inputs
            return self._resizer(pixels, flips, int(sizes[0, 0]))
        return torch.from_dlpack(pixels.as_tensor())

    def _pipeline(self, on_cpu: bool) -> DecodePipeline:
        """The pipeline that decodes on the CPU, or the other; built when first needed."""
        if on_cpu not in self._pipelines:
            self._pipelines[on_cpu] = self._build(self._options, on_cpu=on_cpu)
        return self._pipelines[on_cpu]

    def _build(self, options: LoaderOptions, *, on_cpu: bool) -> DecodePipeline:
        height, width = self.catalog.sizes.max(axis=0, initial=0).tolist()
        options = replace(options, decode="cpu" if on_cpu else "gpu")
        return DecodePipeline(options, train=self._train, resize=self._resizer is None, largest=(height, width))

    def _drain(self) -> None:
        """Throws away the pending batches."""
        self._reader.drop()
        for pipeline in self._pipelines.values():
            pipeline.drain()
        self._pending.clear()  # only now: their bytes are read in place
