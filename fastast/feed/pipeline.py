"""The DALI pipelines: encoded bytes and a crop window in, normalised channels-last pixels out, on CPU or GPU.

The train graph and the eval graph run the same operators on either device; only the decoder's backend differs (`mixed`
takes host bytes and leaves pixels on the GPU). For large crops on the CPU the train graph ends at the decoded crop: see
`resize.py`.
"""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from fastast.feed.loader_options import LoaderOptions

# Share of a batch that the JPEG engine decodes, by compute capability; GPUs without one ignore it. On 6 cores, an H100
# decoded 20.0 thousand pictures/s with all of them on its engine, 12.2 with DALI's default of 0.65, 4.3 with none
# (benchmarks/results/gpu_h100_decoders.md); an A100 was not measured. What the engine makes of a picture differs in the
# last bits from the CUDA decoder's, and which picture goes to which depends on the rest of the batch: a deterministic
# run does without.
_HW_DECODER_LOAD, _HOPPER_LOAD, _HOPPER = 0.65, 1.0, (9, 0)
# nvJPEG's buffers for each decoder thread, bytes a pixel of the largest picture, so that none grows during a run: the
# sizes of NVIDIA's ResNet-50 recipe (211,025,920 on the device, 140,544,512 on the host) over ImageNet's 5980 x 6430.
_DEVICE_BYTES, _HOST_BYTES = 5.49, 3.66
_MAX_HINT = 4096  # pixels a side to preallocate for; larger pictures cost an allocation when they come

_DTYPES = {torch.float32: types.DALIDataType.FLOAT, torch.float16: types.DALIDataType.FLOAT16}


class DecodePipeline:
    """A DALI pipeline that takes batches one by one and returns them in the same order.

    Args:
        options: batches, device and `decode`, which is gpu or cpu here.
        train, resize, largest: as in `build_pipeline`.

    Attributes:
        num_pending: batches submitted and not yet collected.
    """

    def __init__(self, options: LoaderOptions, *, train: bool, resize: bool, largest: tuple[int, int]) -> None:
        self.num_pending = 0
        self._prefetch = options.prefetch
        self._inputs: deque[tuple] = deque()
        self._pipeline = build_pipeline(self._inputs, options, train=train, resize=resize, largest=largest)
        # Run it empty once, since the first `schedule_run` alone starts `prefetch` batches.
        self._inputs.extend([reference_inputs(train)] * self._prefetch)
        self._pipeline.schedule_run()
        while not self._pipeline.empty():
            self._pipeline.outputs()
        self._inputs.clear()

    @property
    def is_full(self) -> bool:
        """Whether it holds `prefetch` batches."""
        return self.num_pending == self._prefetch

    def submit(self, inputs: tuple) -> None:
        """Schedules a batch of at least one picture; `inputs` as in `build_pipeline`, kept alive by the caller."""
        self._inputs.append(inputs)
        self._pipeline.schedule_run()
        self.num_pending += 1

    def collect(self, stream: torch.cuda.Stream | None) -> Any:
        """The output of the oldest batch, a list of DALI tensors, ordered on the consumer's `stream` if there is one.

        Raises:
            RuntimeError: a picture of it cannot be decoded; the batch is gone, and the pipeline stays usable.
        """
        self.num_pending -= 1
        # Bound to the consumer's stream, the hand-over is ordered on the GPU and the host does not wait.
        (output,) = self._pipeline.outputs(stream)
        return output

    def drain(self) -> None:
        """Throws away the pending batches."""
        while not self._pipeline.empty():
            try:
                self._pipeline.outputs()
            except RuntimeError:
                continue  # a damaged picture of an abandoned pass
        self.num_pending = 0


def build_pipeline(
    inputs: deque[tuple],
    options: LoaderOptions,
    *,
    train: bool,
    resize: bool = True,
    largest: tuple[int, int] = (0, 0),
) -> Pipeline:
    """Builds the train or the eval graph. The output is [n, S, S, 3] on the device, or decoded crops without `resize`.

    Decoders have no option to decode a JPEG at a reduced scale, so a small output saves the resize alone.

    Args:
        inputs: one entry is taken from its left for each scheduled batch of n <= batch_size pictures. Train:
            encoded (list of uint8[bytes]), anchors int32[n, 2], shapes int32[n, 2], flips int32[n], and height and
            width of the output, float32[n, 2], the same in all rows. Eval: encoded, and the two corners float32[n, 2]
            of the window of the picture that becomes the crop.
        options: batches and device. `decode` cpu on a GPU decodes on the CPU and copies pixels over, which relieves a
            GPU that is the bottleneck.
        train: which graph.
        resize: False ends the train graph after the decoder, with uint8 crops of their own sizes; CPU only.
        largest: height and width, pixels, that decoder memory on a GPU is allocated for.

    Raises:
        ValueError: another dtype.
    """
    device, dtype, image_size = options.device, options.dtype, options.image_size
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype}: the loaders make torch.float32 or torch.float16")
    on_gpu = device.type == "cuda"
    index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
    pipeline = Pipeline(
        batch_size=options.batch_size,
        num_threads=options.decoder_threads,
        device_id=index if on_gpu else None,
        prefetch_queue_depth=options.prefetch,
        exec_dynamic=True,  # the other executor reuses the memory of batches that the caller still holds
    )
    decoder = decoder_options(options.decode, options.deterministic, largest) if on_gpu else {"device": "cpu"}
    with pipeline:
        # On the GPU a batch is handed over before its copies have run, so DALI must own the bytes.
        num_inputs = 5 if train and resize else 3
        encoded, *window = fn.external_source(
            source=lambda: inputs.popleft()[:num_inputs], num_outputs=num_inputs, batch=True, no_copy=not on_gpu
        )
        flips: Any = 0
        target: dict[str, Any] = {"size": [image_size, image_size]}
        # Stored EXIF rotations are not applied: torchvision's loaders do not either.
        if train:
            anchors, shapes, *rest = window
            pixels: Any = fn.decoders.image_slice(
                encoded, anchors, shapes, axis_names="HW", adjust_orientation=False, **decoder
            )
            if resize:
                flips, target["size"] = rest
        else:
            begin, end = window
            pixels = fn.decoders.image(encoded, adjust_orientation=False, jpeg_fancy_upsampling=True, **decoder)
            # Resizing just the window samples the same points as resizing all and cropping, for less work.
            target |= {"roi_start": begin, "roi_end": end}
        if resize:
            if on_gpu and options.decode == "cpu":
                pixels = pixels.gpu()
            pixels = fn.resize(pixels, antialias=True, **target)
            pixels = fn.crop_mirror_normalize(
                pixels,
                mirror=flips,
                output_layout="HWC",
                dtype=_DTYPES[dtype],
                mean=list(options.mean),
                std=list(options.std),
            )
        pipeline.set_outputs(pixels)
    pipeline.build()
    return pipeline


def engine_load() -> float:
    """The share of a batch for the current GPU's JPEG engine."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= _HOPPER
    return _HOPPER_LOAD if hopper else _HW_DECODER_LOAD


def decoder_options(decode: str, deterministic: bool, largest: tuple[int, int]) -> dict[str, Any]:
    """Arguments of DALI's image decoder for a run on a GPU."""
    if decode == "cpu":
        return {"device": "cpu"}
    height, width = (min(side, _MAX_HINT) for side in largest)
    return {
        "device": "mixed",
        "hw_decoder_load": 0.0 if deterministic else engine_load(),
        "preallocate_height_hint": height,
        "preallocate_width_hint": width,
        "device_memory_padding": int(_DEVICE_BYTES * height * width),
        "host_memory_padding": int(_HOST_BYTES * height * width),
    }


def reference_inputs(train: bool) -> tuple:
    """A batch of one sound picture for the train or the eval graph."""
    side = 16
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(buffer, "JPEG")
    encoded = [np.frombuffer(buffer.getvalue(), np.uint8)]
    corners = np.zeros((1, 2)), np.full((1, 2), side)
    if train:
        window = (corners[0].astype(np.int32), corners[1].astype(np.int32), np.zeros(1, np.int32))
        return encoded, *window, np.full((1, 2), side, np.float32)
    return encoded, corners[0].astype(np.float32), corners[1].astype(np.float32)
