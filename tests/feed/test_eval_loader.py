"""Evaluation pixels equal torchvision's; every picture is counted exactly once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fastast.data.catalog import Catalog
from fastast.data.dataset import open_folder
from fastast.preprocessing import MEAN, STD
from tests.data.image_files import encode, picture, write_tree
from tests.feed.helpers import eval_loader, images_by_id


@pytest.fixture(scope="module")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """76 pictures: many odd sizes, and every kind of JPEG and PNG that the scan accepts."""
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9), (7, 5), (63, 64), (73, 73), (64, 64), (300, 31), (31, 300), (73, 74), (500, 333)]
    sizes += [(int(h), int(w)) for h, w in rng.integers(20, 260, (50, 2))]
    tree = {f"a/{h}x{w}_{i}.jpg": encode(picture(h, w, i)) for i, (h, w) in enumerate(sizes)}
    rotated = Image.Exif()
    rotated[0x0112] = 6
    base = picture(91, 120)
    variants: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "gray": (base.convert("L"), "JPEG", {}),
        "cmyk": (base.convert("CMYK"), "JPEG", {}),
        "cmyk_progressive": (base.convert("CMYK"), "JPEG", {"progressive": True}),
        "progressive": (base, "JPEG", {"progressive": True}),
        "full_chroma": (base, "JPEG", {"subsampling": 0}),
        "half_chroma": (base, "JPEG", {"subsampling": 1}),
        "rough": (base, "JPEG", {"quality": 8}),
        "restarts": (base, "JPEG", {"restart_marker_blocks": 3}),
        "rotated": (base, "JPEG", {"exif": rotated.tobytes()}),
        "png": (base, "PNG", {}),
        "png_gray": (base.convert("L"), "PNG", {}),
        "png_gray_alpha": (base.convert("LA"), "PNG", {}),
        "png_alpha": (base.convert("RGBA"), "PNG", {}),
        "png_palette": (base.quantize(200), "PNG", {}),
        "png_palette_4": (base.quantize(16), "PNG", {"bits": 4}),
        "png_1": (base.convert("1"), "PNG", {}),
    }
    for name, (image, kind, options) in variants.items():
        tree[f"b/{name}.JPEG"] = encode(image, kind, **options)
    return write_tree(tmp_path_factory.mktemp("odd"), tree)


def reference(catalog: Catalog, side: int) -> torch.Tensor:
    """[N, 3, S, S] in 8-bit levels, by PIL and torchvision."""
    transform = transforms.Compose(
        [transforms.Resize(int(side / 0.875)), transforms.CenterCrop(side), transforms.PILToTensor()]
    )
    pictures = [Image.open(catalog.path(sample)).convert("RGB") for sample in range(catalog.num_samples)]
    return torch.stack([transform(image) for image in pictures]).float()


def levels(images: torch.Tensor) -> torch.Tensor:
    """Undoes the normalisation."""
    return images.float() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.parametrize(("side", "batch_size"), [(64, 7), (56, 76), (33, 1)])
def test_pixels_equal_torchvision(odd_pictures: Path, side: int, batch_size: int) -> None:
    catalog = open_folder(odd_pictures)
    assert catalog.num_samples == 76
    loader = eval_loader(catalog, batch_size=batch_size, image_size=side)
    images = torch.stack(list(images_by_id(loader).values()))
    difference = (levels(images) - reference(catalog, side)).abs()
    worst = difference.amax(dim=(1, 2, 3))
    assert worst.max() < 1.01, [catalog.path(i) for i in torch.nonzero(worst > 1.01)[:, 0].tolist()]
    assert difference.mean() < 0.25
    loader.close()


def test_normalised_as_torchvision(odd_pictures: Path) -> None:
    catalog = open_folder(odd_pictures)
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = normalize(reference(catalog, 64) / 255)
    loader = eval_loader(catalog, batch_size=76, image_size=64)
    (batch,) = loader
    assert (batch.images - expected).abs().max() < 1.01 / (255 * 0.224)
    loader.close()


@pytest.mark.parametrize("batch_size", [1, 5, 38, 76, 100])
def test_every_picture_once(odd_pictures: Path, batch_size: int) -> None:
    catalog = open_folder(odd_pictures)
    loader = eval_loader(catalog, batch_size=batch_size, image_size=16)
    for _ in range(2):
        batches = list(loader)
        assert all(batch.images.shape == (batch_size, 3, 16, 16) for batch in batches)
        ids = torch.cat([batch.ids[batch.valid] for batch in batches])
        labels = torch.cat([batch.labels[batch.valid] for batch in batches])
        assert ids.tolist() == list(range(76))
        assert labels.tolist() == catalog.labels.tolist()
        assert sum(batch.num_valid for batch in batches) == 76
    assert loader.num_decoded == 152
    loader.close()
