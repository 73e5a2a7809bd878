"""DALI's decoder on the GPU against its decoder on the CPU: the same pixels, how fast, and wherever in the batch."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.pictures import drawn_pictures
from benchmarks.gpu.settings import Report, Settings
from fastast.data import epoch_ids, open_folder
from fastast.feed.pipeline import decoder_options
from fastast.feed.transforms import crop_windows

LOADS = (0.0, 0.65, 1.0)  # shares of a batch for the JPEG engine: none, DALI's default, all
PREFETCH = 2


class Crops:
    """Encoded pictures and windows on them: one batch, whose last picture and window are its first again."""

    def __init__(self, settings: Settings, batch_size: int) -> None:
        catalog = open_folder(drawn_pictures(settings) / "train")
        ids = epoch_ids(catalog.num_samples, settings.seed, 0)[:batch_size]
        ids[-1] = ids[0]
        self.encoded = [np.fromfile(catalog.path(sample), np.uint8) for sample in ids.tolist()]
        self.anchors, self.shapes, _ = crop_windows(catalog.sizes[ids], ids, settings.seed, 0)
        sizes = catalog.sizes.max(axis=0)
        self.largest = (int(sizes[0]), int(sizes[1]))


def mixed_pixels(settings: Settings, report: Report) -> None:
    """Every setting of the decoder: differences to the CPU's levels, head against tail of the batch, pictures a second.

    On a CPU only the CPU's own settings are compared.
    """
    crops = Crops(settings, settings.batch_size)
    reference = _decode(crops, "cpu", {}, sliced=True, seconds=0.0)[0]
    rows: list[dict[str, Any]] = []
    on_gpu = settings.device == "cuda"
    loads = LOADS if on_gpu else (None,)
    seconds = 0.02 if settings.tiny else 1.0
    for load in loads:
        for fancy in (True, False):
            for sliced in (True, False):
                options: dict[str, Any] = {"jpeg_fancy_upsampling": fancy}
                if on_gpu:
                    options = {**decoder_options("gpu", False, crops.largest), **options, "hw_decoder_load": load}
                    options.pop("device")
                row: dict[str, Any] = {
                    "decoder": "mixed" if on_gpu else "cpu",
                    "hw_decoder_load": load,
                    "fancy_upsampling": fancy,
                    "operator": "image_slice" if sliced else "image + slice",
                }
                try:
                    found, rate = _decode(crops, row["decoder"], options, sliced=sliced, seconds=seconds)
                except Exception as error:  # DALI raises its own kinds; the other settings are measured all the same
                    row["reason"] = (str(error).splitlines() or [""])[0]
                else:
                    row.update(_difference(found, reference), images_per_s=rate)
                    row["head_equals_tail"] = bool(np.array_equal(found[0], found[-1]))
                    row["head_to_tail_levels"] = float(np.abs(found[0].astype(int) - found[-1].astype(int)).max())
                rows.append(row)
                report.add(rows=rows, batch_size=len(crops.encoded), n_pictures=len(crops.encoded))


def _decode(
    crops: Crops, decoder: str, options: dict[str, Any], *, sliced: bool, seconds: float
) -> tuple[list[np.ndarray], float | None]:
    """The batch's decoded crops, uint8[h, w, 3] each, and pictures a second."""
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(
        batch_size=len(crops.encoded),
        num_threads=min(8, len(os.sched_getaffinity(0))),
        device_id=0 if decoder == "mixed" else None,
        prefetch_queue_depth=PREFETCH,
    )
    with pipeline:
        encoded, anchors, shapes = fn.external_source(
            lambda: (crops.encoded, crops.anchors, crops.shapes), num_outputs=3, batch=True
        )
        common: dict[str, Any] = {"device": decoder, "adjust_orientation": False, **options}
        if sliced:
            pixels = fn.decoders.image_slice(encoded, anchors, shapes, axis_names="HW", **common)
        else:
            pixels = fn.slice(fn.decoders.image(encoded, **common), anchors, shapes, axis_names="HW")
        pipeline.set_outputs(pixels)
    pipeline.build()
    (output,) = pipeline.run()
    host = output.as_cpu()
    found = [np.array(host.at(row)) for row in range(len(crops.encoded))]
    if not seconds:
        return found, None
    for _ in range(PREFETCH):
        pipeline.run()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        (output,) = pipeline.run()
        count += len(crops.encoded)
    if decoder == "mixed":
        torch.cuda.synchronize()
    return found, count / (time.perf_counter() - began)


def _difference(found: list[np.ndarray], reference: list[np.ndarray]) -> dict[str, float]:
    """Largest and mean difference in levels over all pictures, and the worst picture's mean."""
    gaps = [np.abs(a.astype(np.int16) - b.astype(np.int16)) for a, b in zip(found, reference, strict=True)]
    return {
        "largest_levels": float(max(gap.max() for gap in gaps)),
        "mean_levels": float(np.concatenate([gap.ravel() for gap in gaps]).mean()),
        "worst_mean_levels": float(max(gap.mean() for gap in gaps)),
    }
