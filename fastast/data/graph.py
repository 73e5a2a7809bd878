"""The DALI graphs: encoded bytes and a window in, normalised channels-last pixels out, on CPU or GPU.

Both graphs run the same operators on either device; only the decoder's backend differs (`mixed` takes host
bytes and leaves pixels on the GPU).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from nvidia.dali import Pipeline, fn, types

# ImageNet's statistics in 8-bit levels, red, green, blue: what torchvision's pretrained networks expect.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

_DTYPES = {torch.float32: types.DALIDataType.FLOAT, torch.float16: types.DALIDataType.FLOAT16}


def build_pipeline(
    inputs: deque[tuple],
    *,
    train: bool,
    batch_size: int,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype,
    num_threads: int,
    prefetch: int,
) -> Pipeline:
    """Builds the train or the eval graph. The output is [B, S, S, 3] on `device`.

    Args:
        inputs: one entry is taken from its left for each scheduled batch of n <= batch_size pictures. Train:
            encoded (list of uint8[bytes]), anchors int32[n, 2], shapes int32[n, 2], flips int32[n]. Eval: encoded,
            and the two corners float32[n, 2] of the window of the picture that becomes the crop.
        train: which graph.
        dtype: torch.float32 or torch.float16.
        num_threads: decoder threads.
        prefetch: batches under way at once.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype}: the feed makes torch.float32 or torch.float16")
    on_gpu = device.type == "cuda"
    index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=index if on_gpu else None,
        prefetch_queue_depth=prefetch,
    )
    decoder = "mixed" if on_gpu else "cpu"
    with pipeline:
        # On the GPU a batch is handed over before its copies have run, so DALI must own the bytes.
        flips: Any = 0
        encoded, *window = fn.external_source(
            source=lambda: inputs.popleft(), num_outputs=4 if train else 3, batch=True, no_copy=not on_gpu
        )
        # Stored EXIF rotations are not applied: torchvision's loaders do not either.
        if train:
            anchors, shapes, flips = window
            pixels: Any = fn.decoders.image_slice(
                encoded, anchors, shapes, axis_names="HW", device=decoder, adjust_orientation=False
            )
            pixels = fn.resize(pixels, size=[image_size, image_size], antialias=True)
        else:
            begin, end = window
            pixels = fn.decoders.image(encoded, device=decoder, adjust_orientation=False, jpeg_fancy_upsampling=True)
            # Resizing just the window samples the same points as resizing all and cropping, for less work.
            pixels = fn.resize(pixels, size=[image_size, image_size], roi_start=begin, roi_end=end, antialias=True)
        pixels = fn.crop_mirror_normalize(
            pixels, mirror=flips, output_layout="HWC", dtype=_DTYPES[dtype], mean=list(MEAN), std=list(STD)
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    return pipeline
