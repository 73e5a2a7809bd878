"""The training loader: right pixels in the right order, zero-copy, the same bits whatever the options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline
from PIL import Image

from fastast.data.catalog import Catalog
from fastast.data.dataset import open_folder
from fastast.data.sampler import epoch_ids
from fastast.feed import TrainLoader
from fastast.feed import loader_options as options_module
from fastast.feed import pipeline as pipeline_module
from fastast.feed.transforms import crop_windows
from fastast.preprocessing import MEAN, STD
from tests.data.image_files import encode, jpeg, picture, write_tree
from tests.feed.helpers import eval_loader, images_by_id, loader_options, same_images, train_loader

COUNT = 41


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    rng = np.random.default_rng(0)
    tree = {
        f"{'abc'[i % 3]}/{i:02d}.jpg": jpeg(int(h), int(w), i, progressive=i % 7 == 0)
        for i, (h, w) in enumerate(rng.integers(20, 120, (COUNT - 1, 2)))
    }
    tree["c/last.png"] = encode(picture(50, 70, 99), "PNG")
    return open_folder(write_tree(tmp_path_factory.mktemp("train"), tree))


def by_id(loader: TrainLoader, epoch: int, ids: np.ndarray) -> dict[int, torch.Tensor]:
    return images_by_id(loader.epoch(epoch, ids))


def test_batches_are_consecutive_slices(catalog: Catalog) -> None:
    loader = train_loader(catalog)
    ids = epoch_ids(COUNT, 0, 0)
    batches = list(loader.epoch(0, ids))
    assert [batch.num_valid for batch in batches] == [8] * 5 + [1]
    for number, batch in enumerate(batches):
        part = ids[8 * number : 8 * number + 8]
        count = len(part)
        assert batch.images.shape == (8, 3, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.ids.dtype == batch.labels.dtype == torch.int64
        assert batch.ids[:count].tolist() == part.tolist()
        assert batch.labels[:count].tolist() == catalog.labels[part].tolist()
        assert batch.valid.tolist() == [row < count for row in range(8)]
        assert not batch.images[count:].any()
        assert not batch.ids[count:].any()
        assert not batch.labels[count:].any()
    assert loader.num_decoded == COUNT
    assert loader.wait_s > 0
    assert list(loader.epoch(0, ids[:0])) == []
    loader.close()


def test_pixels_equal_pil(catalog: Catalog) -> None:
    """Twin: PIL decodes, crops, resizes and flips one picture at a time.

    At the border of a crop DALI repeats the last pixel where PIL truncates its filter, so the twin pads the crop with
    repeated pixels.
    """
    side, ids, margin = 32, np.arange(COUNT), 16
    loader = train_loader(catalog, min_area=0.4)
    ours = by_id(loader, 5, ids)
    anchors, shapes, flips = crop_windows(catalog.sizes, ids, 3, 5, min_area=0.4)
    for sample in range(COUNT):
        (top, left), (height, width) = anchors[sample].tolist(), shapes[sample].tolist()
        pixels = np.asarray(Image.open(catalog.path(sample)).convert("RGB"))[top : top + height, left : left + width]
        padded = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        box = (margin, margin, margin + width, margin + height)
        expected = np.asarray(padded.resize((side, side), Image.Resampling.BILINEAR, box), np.float32)
        if flips[sample]:
            expected = expected[:, ::-1]
        levels = ours[sample].permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)
        assert np.abs(levels - expected).max() < 1.01, sample
    assert 0 < flips.sum() < COUNT
    loader.close()


def test_same_bits_for_all_options(catalog: Catalog) -> None:
    ids = epoch_ids(COUNT, 1, 0)
    first = train_loader(catalog)
    expected = by_id(first, 2, ids)
    assert sorted(expected) == list(range(COUNT))
    for batch_size, num_threads, prefetch in [(1, 1, 1), (5, 2, 3), (41, 3, 1), (64, 1, 4)]:
        loader = train_loader(catalog, batch_size=batch_size, num_threads=num_threads, prefetch=prefetch)
        assert same_images(by_id(loader, 2, ids[::-1]), expected)
        loader.close()
    assert same_images(by_id(first, 2, ids), expected)
    other = by_id(first, 3, ids)
    assert sum(torch.equal(other[sample], expected[sample]) for sample in range(COUNT)) < COUNT / 4
    first.close()


def test_fp16_is_rounded_fp32(catalog: Catalog) -> None:
    ids = np.arange(16)
    full, half = train_loader(catalog), train_loader(catalog, dtype=torch.float16)
    for a, b in zip(full.epoch(0, ids), half.epoch(0, ids), strict=True):
        assert b.images.dtype == torch.float16
        assert torch.equal(a.images.half(), b.images)
    with pytest.raises(ValueError, match="bfloat16"):
        train_loader(catalog, dtype=torch.bfloat16)
    full.close()
    half.close()


def test_full_batches_are_not_copied(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = train_loader(catalog)
    addresses = []
    dali = loader._pipelines[False]._pipeline
    real = dali.outputs

    def spy(*arguments):
        outputs = real(*arguments)
        addresses.append(outputs[0].as_tensor().data_ptr())
        return outputs

    monkeypatch.setattr(dali, "outputs", spy)
    batches = list(loader.epoch(0, np.arange(COUNT)))
    assert [batch.images.data_ptr() for batch in batches[:5]] == addresses[:5]
    assert batches[5].images.data_ptr() != addresses[5]  # padded
    loader.close()


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_held_batches_keep_their_bits(kind: str, catalog: Catalog) -> None:
    loader = train_loader(catalog, prefetch=3) if kind == "train" else eval_loader(catalog, prefetch=3)
    held = []
    for epoch in range(3):
        batches = loader.epoch(epoch, np.arange(COUNT)) if isinstance(loader, TrainLoader) else iter(loader)
        held += [(batch, batch.images.clone()) for batch in batches]
    loader.close()
    assert len(held) == 18
    assert all(torch.equal(batch.images, copy) for batch, copy in held)


def test_dynamic_executor_is_asked_for(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only it leaves a batch alone that is still held, and older versions of DALI have another default."""
    asked = []

    def spy(**options):
        asked.append(options.get("exec_dynamic"))
        return Pipeline(**options)

    monkeypatch.setattr(pipeline_module, "Pipeline", spy)
    train_loader(catalog).close()
    eval_loader(catalog).close()
    assert asked == [True, True]


def test_without_flips(catalog: Catalog) -> None:
    """The same crops, none of them mirrored; with a CPU resize of our own, and with DALI's."""
    ids = np.arange(COUNT)
    flips = crop_windows(catalog.sizes, ids, 3, 0)[2]
    assert 0 < flips.sum() < COUNT
    for side in (32, 72):
        mirrored, plain = train_loader(catalog, image_size=side), train_loader(catalog, image_size=side, flips=False)
        ours, expected = by_id(plain, 0, ids), by_id(mirrored, 0, ids)
        for sample in range(COUNT):
            image = expected[sample]
            assert torch.equal(ours[sample], image.flip(-1) if flips[sample] else image), sample
        for whole, part in zip(mirrored._windows(0, ids)[:2], plain._windows(0, ids)[:2], strict=True):
            assert np.array_equal(whole, part)
        mirrored.close()
        plain.close()


def test_default_threads_follow_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in [(1, 1), (24, 24), (128, 32)]:
        monkeypatch.setattr(options_module, "usable_cores", lambda cores=cores: cores)
        assert loader_options(num_threads=None).decoder_threads == expected
    assert loader_options(num_threads=3).decoder_threads == 3


@pytest.mark.parametrize("prefetch", [1, 2, 4])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_abandoned_pass(catalog: Catalog, prefetch: int, taken: int) -> None:
    loader = train_loader(catalog, prefetch=prefetch)
    expected = by_id(loader, 1, np.arange(COUNT))
    old = loader.epoch(0, np.arange(COUNT)[::-1])
    for _ in range(taken):
        next(old)
    assert same_images(by_id(loader, 1, np.arange(COUNT)), expected)  # while the old iterator is still alive
    if taken:
        with pytest.raises(RuntimeError, match="abandoned"):
            next(old)
    closed = loader.epoch(0, np.arange(COUNT))
    next(closed)
    closed.close()
    assert sorted(by_id(loader, 1, np.arange(COUNT))) == list(range(COUNT))
    loader.close()


def test_read_ahead_is_bounded(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = train_loader(catalog, batch_size=2)
    read: list[int] = []
    real = catalog.read_one

    def spy(sample: int) -> np.ndarray:
        read.append(sample)
        return real(sample)

    monkeypatch.setattr(catalog, "read_one", spy)
    delivered = 0
    for batch in loader.epoch(0, np.arange(30)):
        delivered += batch.num_valid
        assert len(read) <= delivered + 2 * (2 + 2)  # in DALI, and read ahead
    assert sorted(read) == list(range(30))
    loader.close()


def test_closed_loader_raises(catalog: Catalog) -> None:
    loader = train_loader(catalog)
    old = loader.epoch(0, np.arange(COUNT))
    next(old)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(old)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.epoch(0, np.arange(COUNT)))


@pytest.mark.parametrize("side", [32, 64])  # DALI's resize and our own
@pytest.mark.parametrize("make", [train_loader, eval_loader])
def test_other_mean_and_std(catalog: Catalog, make, side: int) -> None:
    """The same levels, normalised otherwise."""
    ids = np.arange(8)
    mean, std = (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)

    def images(**changes: object) -> torch.Tensor:
        loader = make(catalog, image_size=side, **changes)
        (batch,) = loader.epoch(0, ids) if isinstance(loader, TrainLoader) else loader.over([ids])
        return batch.images

    levels = images() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    expected = (levels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(images(mean=mean, std=std), expected, atol=1e-4)
