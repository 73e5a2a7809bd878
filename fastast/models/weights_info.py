"""What a file of weights says of itself, as safetensors metadata: network, classes, how pictures are prepared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from fastast._version import __version__
from fastast.errors import InputError
from fastast.models.timm_networks import is_timm, settings
from fastast.preprocessing import MEAN, STD, eval_resize
from fastast.run_folder import RunFolder

INTERPOLATION = "bilinear, antialias"

_VERSION = "fastast"  # the key that tells our files from others
_KINDS = {"arch": str, "classes": list, "crop_size": int, "resize_size": int, "mean": list, "std": list}
_KINDS["interpolation"] = str
# torchvision's `weights.transforms()` of the last, and `transform_input` of the others.
_PLUS_MINUS_ONE = ("googlenet", "inception_v3", "efficientnet_v2_l")


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """What weights were trained for; pictures are prepared as torchvision's `ImageClassification` preset does.

    Attributes:
        arch: the network, as `--arch` takes it.
        classes: names, in the order of the network's outputs.
        crop_size: side of the centre crop, pixels.
        resize_size: shorter side of a picture before the crop, pixels.
        mean, std: of the channels, of pixels in [0, 1].
        interpolation: of the resize.
        bits: of pictures with 16 bits a channel, the lower bits that became 0 to 255; None: there were none.
    """

    arch: str
    classes: list[str]
    crop_size: int
    resize_size: int
    mean: list[float]
    std: list[float]
    interpolation: str
    bits: int | None = None

    @classmethod
    def of(cls, arch: str, classes: Sequence[str], image_size: int, bits: int | None = None) -> WeightsInfo:
        """That of a network trained here."""
        mean, std = ([round(level / 255, 9) for level in levels] for levels in channel_levels(arch))
        return cls(arch, list(classes), image_size, eval_resize(image_size), mean, std, INTERPOLATION, bits)

    def to_metadata(self) -> dict[str, str]:
        """Its fields as text; lists as JSON."""
        fields = {name: v if isinstance(v, str) else json.dumps(v) for name, v in dataclasses.asdict(self).items()}
        return {"format": "pt", _VERSION: __version__, **fields}

    def __str__(self) -> str:
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        deep = "" if self.bits is None else f", of 16-bit pictures the lower {self.bits} bits"
        return (
            f"{self.arch}, {len(self.classes)} classes ({names}), pictures resized to {self.resize_size} px "
            f"({self.interpolation}) and cropped to {self.crop_size}, mean {self.mean}, std {self.std}{deep}"
        )


def channel_levels(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels that a network expects, in 8-bit levels.

    A network of timm's has its own. Of torchvision's all take ImageNet's, but for those whose published weights were
    trained on pixels between -1 and 1: two of these convert their input themselves where torchvision loads the weights.
    """
    if arch in _PLUS_MINUS_ONE:
        return (127.5,) * 3, (127.5,) * 3
    if not is_timm(arch):
        return MEAN, STD
    said = settings(arch)
    mean, std = (tuple(255 * float(value) for value in values) for values in (said.mean, said.std))
    return mean, std


def read_info(path: Path) -> WeightsInfo | None:
    """What an untrusted file says of itself; None for one that `fastast` did not write.

    Of a run's `checkpoints/best.pt` it is what `model.safetensors`, which holds the same weights, says.

    Raises:
        InputError: the metadata is damaged.
    """
    run = RunFolder(path.absolute().parent.parent)
    if path.absolute() == run.best.absolute():
        path = run.weights
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):  # whoever reads the tensors says why
        return None
    if _VERSION not in metadata:
        return None
    try:
        values: dict[str, Any] = {
            name: metadata[name] if kind is str else json.loads(metadata[name]) for name, kind in _KINDS.items()
        }
        values["bits"] = json.loads(metadata.get("bits", "null"))
        sound = (
            all(type(values[name]) is kind for name, kind in _KINDS.items())
            and bool(values["classes"])
            and all(isinstance(name, str) for name in values["classes"])
            and values["bits"] in (None, *range(8, 17))
            and 0 < values["crop_size"] <= values["resize_size"] < 10**5
            and all(isinstance(level, float) for level in values["mean"] + values["std"])
        )
    except (KeyError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{path}: its metadata is damaged; use the model.safetensors of the run that wrote it")
    return WeightsInfo(**values)
