"""A trained network in formats that need no fastast: ONNX, torch.export, a folder of the Hugging Face Hub."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastast.errors import InputError
from fastast.models.timm_networks import counterpart, require_timm
from fastast.models.weights_info import WeightsInfo
from fastast.preprocessing import eval_resize

INFO_FILE = "fastast.json"  # within a program of torch.export: what `WeightsInfo.to_metadata` says


@dataclass(frozen=True, slots=True)
class Exported:
    """Files, and the network as it is read back from them.

    Attributes:
        files: content by name.
        run: pictures [B, 3, S, S] float32 in, logits [B, C] out, for any B.
    """

    files: dict[str, bytes]
    run: Callable[[Tensor], Tensor]


class _Logits(nn.Module):
    """The network, with its logits as the one output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        return getattr(output, "logits", output)


def to_onnx(network: nn.Module, info: WeightsInfo) -> Exported:
    """An ONNX file with input `images`, output `logits`, and `info` as metadata."""
    import onnxruntime

    program = torch.onnx.export(
        _Logits(network),
        (_example(info),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=_batch_of_any_size(),
    )
    assert program is not None
    proto = program.model_proto
    for name, value in info.to_metadata().items():
        proto.metadata_props.add(key=name, value=value)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return Exported(
        {"model.onnx": data},
        lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0]),
    )


def to_torch(network: nn.Module, info: WeightsInfo) -> Exported:
    """A program of torch.export, with `info` as its extra file `fastast.json`."""
    program = torch.export.export(_Logits(network), (_example(info),), dynamic_shapes=_batch_of_any_size())
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={INFO_FILE: json.dumps(info.to_metadata())})
    buffer.seek(0)
    return Exported({"model.pt2": buffer.getvalue()}, torch.export.load(buffer).module())


def to_hub(network: nn.Module, info: WeightsInfo) -> Exported:
    """A folder that timm loads as `local-dir:` or, uploaded, `hf-hub:`, and transformers by its TimmWrapper."""
    timm = require_timm("--to hub")
    name, twin = counterpart(info.arch, network, len(info.classes))
    own = twin.pretrained_cfg
    usual = eval_resize(info.crop_size) == info.resize_size
    said: dict[str, Any] = {
        "architecture": name,
        "num_classes": len(info.classes),
        "num_features": twin.num_features,
        "label_names": info.classes,
        "pretrained_cfg": {
            "tag": "fastast",
            "custom_load": False,
            "input_size": [3, info.crop_size, info.crop_size],
            "fixed_input_size": bool(own.get("fixed_input_size")),
            "interpolation": info.interpolation.partition(",")[0],
            "crop_pct": 0.875 if usual else info.crop_size / info.resize_size,
            "crop_mode": "center",
            "mean": info.mean,
            "std": info.std,
            "num_classes": len(info.classes),
            "pool_size": own.get("pool_size"),
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    files = {
        "config.json": json.dumps(said, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        "model.safetensors": safetensors.torch.save(state, info.to_metadata()),
    }
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return Exported(files, loaded)


FORMATS: dict[str, Callable[[nn.Module, WeightsInfo], Exported]] = {"onnx": to_onnx, "torch": to_torch, "hub": to_hub}


def export(network: nn.Module, info: WeightsInfo, to: str) -> Exported:
    """Converts a network.

    Args:
        network: in eval mode, on the CPU.
        info: what it was trained for.
        to: one of `FORMATS`.

    Raises:
        InputError: a package is missing, or the network cannot be converted.
    """
    network = network.to(memory_format=torch.contiguous_format)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own passes
            return FORMATS[to](network, info)
    except InputError:
        raise
    except Exception as error:  # the exporters raise many kinds, none of them a common base
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"--to {to}: {info.arch} cannot be converted ({type(error).__name__}: {reason})") from error


def _example(info: WeightsInfo) -> Tensor:
    return torch.zeros(2, 3, info.crop_size, info.crop_size)  # torch would take a batch of one for a constant


def _batch_of_any_size() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch", min=1)}}
