"""On a GPU: the feed's pixels, pictures that do not decode, and fp16 steps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastast.data import epoch_ids, open_folder
from fastast.engine.optimizer import GuardedStep, build_optimizer
from fastast.engine.steps import logits_of
from fastast.feed import EvalLoader, LoaderOptions, TrainLoader
from tests.conftest import damaged_png, write_pictures
from tests.data.image_files import encode, motion_photo, picture, write_tree
from tests.nets import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU"),
]

B, SIDE = 16, 32
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LEVEL = 1 / (0.225 * 255)  # one of 256 levels, normalised


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("feed") / "train"
    write_pictures(root, num_classes=4, per_class=16, seed=3, side=96)
    return root


def delivered(loader: TrainLoader | EvalLoader, ids: np.ndarray | None = None) -> dict[int, torch.Tensor]:
    """Pictures by id, float32 on the host."""
    passes: Any = loader if ids is None else loader.epoch(0, ids)  # type: ignore[union-attr]
    found: dict[int, torch.Tensor] = {}
    for batch in passes:
        for row, sample in enumerate(batch.ids[batch.valid].tolist()):
            assert sample not in found
            found[sample] = batch.images[row].float().cpu()
    loader.close()
    return found


def train_loader(folder: Path, device: torch.device, **options: Any) -> TrainLoader:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    shaped = LoaderOptions(batch_size=B, image_size=SIDE, device=device, dtype=dtype, **options)
    return TrainLoader(open_folder(folder), shaped, seed=0)


def mean_levels(found: dict[int, torch.Tensor], reference: dict[int, torch.Tensor]) -> float:
    assert found.keys() == reference.keys()
    return float(np.mean([(found[i] - reference[i]).abs().mean().item() for i in found])) / LEVEL


@pytest.mark.parametrize(("decode", "limit"), [("gpu", 6.0), ("cpu", 1.0)])
def test_training_pictures_equal_the_cpu(folder: Path, decode: str, limit: float) -> None:
    """Decoders on a GPU may round chroma differently; the crop window, the flip and the scale are the same."""
    ids = epoch_ids(64, 0, 0)
    reference = delivered(train_loader(folder, CPU), ids)
    found = delivered(train_loader(folder, CUDA, decode=decode), ids)
    assert mean_levels(found, reference) < limit
    shifted = {i: pixels.roll(2, dims=2) for i, pixels in reference.items()}
    assert mean_levels(found, shifted) > 2 * mean_levels(found, reference)


def test_evaluation_pictures_equal_the_cpu(folder: Path) -> None:
    loaders = [
        EvalLoader(open_folder(folder), LoaderOptions(batch_size=B, image_size=SIDE, device=device, dtype=dtype))
        for device, dtype in ((CPU, torch.float32), (CUDA, torch.float16))
    ]
    reference, found = (delivered(loader) for loader in loaders)
    assert mean_levels(found, reference) < 1.5


def test_deterministic_pixels_ignore_the_place_in_the_batch(folder: Path) -> None:
    ids = epoch_ids(64, 0, 0)
    one = delivered(train_loader(folder, CUDA, deterministic=True), ids)
    other = delivered(train_loader(folder, CUDA, deterministic=True), ids[::-1].copy())
    assert one.keys() == other.keys()
    for sample, pixels in one.items():
        assert torch.equal(pixels, other[sample]), sample


@pytest.mark.parametrize("decode", ["gpu", "cpu"])
def test_damaged_picture_costs_only_its_row(tmp_path: Path, decode: str) -> None:
    write_pictures(tmp_path / "train", num_classes=2, per_class=12, seed=4, side=96)
    bad = tmp_path / "train" / "class_0" / "0003.jpg"
    bad.write_bytes(damaged_png())
    lost: list[str] = []
    options = {"decode": decode, "on_quarantine": lambda sample, path, reason: lost.append(Path(path).name)}
    found = delivered(train_loader(tmp_path / "train", CUDA, **options), epoch_ids(24, 0, 0))
    assert lost == ["0003.jpg"]
    assert len(found) == 23
    assert all(torch.isfinite(pixels).all() for pixels in found.values())


@pytest.mark.parametrize("decode", ["gpu", "cpu"])
def test_hostile_files_cost_only_themselves(tmp_path: Path, decode: str) -> None:
    image = picture(120, 160)
    good, png = encode(image), encode(image, "PNG")
    frame = good.index(b"\xff\xc0")
    bad = {
        "text": b"this is no picture\n" * 20,
        "empty": b"",
        "gif": encode(image, "GIF"),
        "cut": good[: len(good) // 2],
        "header only": good[:100],
        "20000 x 20000": good[: frame + 5] + b"\x4e\x20\x4e\x20" + good[frame + 9 :],
        "damaged tables": good[:25] + bytes(120) + good[145:],
        "noise": good[:4] + np.random.default_rng(0).bytes(2000),
        "damaged png": png[:100] + bytes(len(png) - 200) + png[-100:],
    }
    odd = {"progressive": encode(image, progressive=True), "gray": encode(image.convert("L"))}
    odd |= {"cmyk": encode(image.convert("CMYK")), "padded": good + bytes(50_000), "motion photo": motion_photo(good)}
    files = {**bad, **odd, **{f"good {number}": good for number in range(40)}}
    write_tree(tmp_path, {f"train/a/{name}.jpg": data for name, data in files.items()})
    loader = train_loader(tmp_path / "train", CUDA, decode=decode)
    catalog = loader.catalog
    found = delivered(loader, epoch_ids(catalog.num_samples, 0, 0))
    assert {Path(catalog.path(sample)).stem for sample in found} == files.keys() - bad.keys()


def test_fp16_steps_equal_autocast_and_gradscaler() -> None:
    torch.manual_seed(0)
    ours = tiny(4).to(CUDA, memory_format=torch.channels_last)
    plain = copy.deepcopy(ours)
    guard = GuardedStep(ours, build_optimizer(ours, momentum=0.9, weight_decay=0.0), scale_loss=True, compiled=False)
    guard.set_lr(0.05)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(20):
        labels = torch.randint(0, 4, (B,), device=CUDA)
        images = torch.randn(B, 3, SIDE, SIDE, device=CUDA) + labels[:, None, None, None]
        images = images.half().contiguous(memory_format=torch.channels_last)
        guard.save_buffers()
        loss = F.cross_entropy(logits_of(ours, images, torch.float16), labels)
        guard.backward_and_step(loss)
        with torch.autocast("cuda", torch.float16):
            expected = F.cross_entropy(plain(images).float(), labels)
        optimizer.zero_grad()
        scaler.scale(expected).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append((loss.item(), expected.item()))
        assert guard.scale.item() == scaler.get_scale()
    ours_last, plain_last = (sum(column) / 5 for column in zip(*losses[-5:], strict=True))
    assert ours_last == pytest.approx(plain_last, rel=0.1)
    assert ours_last < 0.9 * losses[0][0]
