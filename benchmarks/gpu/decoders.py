"""DALI's decoder on the GPU against its decoder on the CPU: equal pixels, speed, effect of the place in the batch."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.items import Report, Settings
from benchmarks.gpu.pictures import drawn_pictures
from fastast.data import epoch_ids, open_folder
from fastast.feed.pipeline import decoder_options
from fastast.feed.transforms import crop_windows

LOADS = (0.0, 0.65, 1.0)  # shares of a batch for the JPEG engine: none, DALI's default, all
PREFETCH = 2


def mixed_pixels(settings: Settings, report: Report) -> None:
    """For every setting of the decoder: difference to the CPU's levels, head against tail of the batch, speed.

    On a CPU only the CPU's own settings are compared.
    """
    catalog = open_folder(drawn_pictures(settings) / "train")
    ids = epoch_ids(catalog.num_samples, settings.seed, 0)[: settings.batch_size]
    ids[-1] = ids[0]  # the same picture and crop window at the head and at the tail of the batch
    anchors, shapes, _ = crop_windows(catalog.sizes[ids], ids, settings.seed, 0)
    batch = ([np.fromfile(catalog.path(sample), np.uint8) for sample in ids.tolist()], anchors, shapes)
    height, width = catalog.sizes.max(axis=0).tolist()
    reference = _decode(batch, "cpu", {}, sliced=True, seconds=0.0)[0]
    rows: list[dict[str, Any]] = []
    on_gpu = settings.device == "cuda"
    seconds = 0.02 if settings.tiny else 1.0
    for load, fancy, sliced in itertools.product(LOADS if on_gpu else (None,), (True, False), (True, False)):
        options: dict[str, Any] = {"jpeg_fancy_upsampling": fancy}
        if on_gpu:
            options = {**decoder_options("gpu", False, (height, width)), **options, "hw_decoder_load": load}
            options.pop("device")
        row: dict[str, Any] = {
            "decoder": "mixed" if on_gpu else "cpu",
            "hw_decoder_load": load,
            "fancy_upsampling": fancy,
            "operator": "image_slice" if sliced else "image + slice",
        }
        try:
            found, rate = _decode(batch, row["decoder"], options, sliced=sliced, seconds=seconds)
        except Exception as error:  # DALI raises its own kinds; the other settings are measured all the same
            row["reason"] = (str(error).splitlines() or [""])[0]
        else:
            gaps = [np.abs(a.astype(int) - b) for a, b in zip(found, reference, strict=True)]
            head_to_tail = float(np.abs(found[0].astype(int) - found[-1]).max())
            row["largest_levels"] = float(max(gap.max() for gap in gaps))
            row["mean_levels"] = float(np.concatenate([gap.ravel() for gap in gaps]).mean())
            row["worst_mean_levels"] = float(max(gap.mean() for gap in gaps))
            row.update(images_per_s=rate, head_equals_tail=head_to_tail == 0.0, head_to_tail_levels=head_to_tail)
        rows.append(row)
        report.add(rows=rows, batch_size=len(ids))


def _decode(
    batch: tuple[Any, ...], decoder: str, options: dict[str, Any], *, sliced: bool, seconds: float
) -> tuple[list[np.ndarray], float | None]:
    """Decoded crops of a batch (encoded pictures, anchors, shapes), uint8[h, w, 3] each, and pictures a second."""
    from nvidia.dali import Pipeline, fn

    num, threads, gpu = len(batch[0]), min(8, len(os.sched_getaffinity(0))), 0 if decoder == "mixed" else None
    with Pipeline(num, threads, gpu, prefetch_queue_depth=PREFETCH) as pipeline:
        encoded, anchors, shapes = fn.external_source(lambda: batch, num_outputs=3, batch=True)
        common: dict[str, Any] = {"device": decoder, "adjust_orientation": False, **options}
        if sliced:
            pixels = fn.decoders.image_slice(encoded, anchors, shapes, axis_names="HW", **common)
        else:
            pixels = fn.slice(fn.decoders.image(encoded, **common), anchors, shapes, axis_names="HW")
        pipeline.set_outputs(pixels)
    pipeline.build()
    (output,) = pipeline.run()
    host = output.as_cpu()
    found = [np.array(host.at(row)) for row in range(num)]
    if not seconds:
        return found, None
    for _ in range(PREFETCH):
        pipeline.run()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        (output,) = pipeline.run()
        count += num
    if decoder == "mixed":
        torch.cuda.synchronize()
    return found, count / (time.perf_counter() - began)
