"""Thumbnails for scoring: the part of the picture that training would see, from far fewer bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from fastast.data.catalog import Catalog
from fastast.data.graph import STD
from fastast.data.layout import open_dataset, open_folder
from fastast.data.loader import ThumbnailLoader, TrainLoader
from fastast.data.pack import run_pack
from fastast.data.pack_index import read_index
from fastast.errors import InputError
from tests.data.pictures import encode, jpeg, picture, write_tree

CPU = torch.device("cpu")
COUNT = 36
SIDE, STORED = 24, 40


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("thumbnails")
    sizes = rng.integers(90, 200, (COUNT, 2)).tolist()
    tree = {f"{'abc'[i % 3]}/{i:02d}.jpg": jpeg(height, width, i) for i, (height, width) in enumerate(sizes)}
    tree["c/small.png"] = encode(picture(30, 50, 99), "PNG")  # smaller than a thumbnail
    run_pack(write_tree(root / "d", tree), root / "p", thumbnails=STORED, say=lambda line: None)
    return root / "p"


def make(catalog: Catalog, **options: object) -> TrainLoader:
    arguments = {"batch_size": 8, "image_size": 96, "device": CPU, "seed": 3, "num_threads": 1, **options}
    return TrainLoader(catalog, **arguments)  # type: ignore[arg-type]


def levels_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean difference of two pictures [3, S, S], in 8-bit levels."""
    return float(((a - b).abs() * torch.tensor(STD)[:, None, None]).mean())


def test_a_thumbnail_shows_what_training_shows(pack: Path) -> None:
    """Twin: the crop of the full picture, shrunk. Another crop or a mirrored one is far away."""
    full = make(open_folder(pack))
    thumbs = ThumbnailLoader(full, SIDE)
    ids = np.random.default_rng(1).permutation(COUNT + 1)
    flips = full.windows(2, ids)[2]
    assert 5 < flips.sum() < COUNT - 5
    for number, (large, small) in enumerate(zip(full.epoch(2, ids), thumbs.epoch(2, ids), strict=True)):
        assert small.images.shape == (8, 3, SIDE, SIDE)
        assert small.images.is_contiguous(memory_format=torch.channels_last)
        assert all(map(torch.equal, large[1:4], small[1:4]))
        assert small.ids[: small.num_valid].tolist() == ids[8 * number : 8 * number + 8].tolist()
        shrunk = interpolate(large.images, (SIDE, SIDE), mode="bilinear", antialias=True)
        for row in range(small.num_valid):
            apart = levels_apart(small.images[row], shrunk[row])
            assert apart < 3.5, int(small.ids[row])  # a window one pixel off is over 7 apart
            assert levels_apart(small.images[row].flip(2), shrunk[row]) > 10 * apart
    assert thumbs.num_decoded == COUNT + 1
    for large, small in zip(full.epoch(2, ids), thumbs.epoch(3, ids), strict=True):
        shrunk = interpolate(large.images, (SIDE, SIDE), mode="bilinear", antialias=True)
        far = [levels_apart(small.images[row], shrunk[row]) for row in range(small.num_valid)]
        assert sum(apart > 8 for apart in far) > 0.8 * len(far)  # by chance two crops may be alike
    thumbs.close()
    full.close()


def test_same_bits_whatever_the_batch_and_depth(pack: Path) -> None:
    def run(batch_size: int, prefetch: int, order: np.ndarray) -> dict[int, torch.Tensor]:
        full = make(open_folder(pack), batch_size=batch_size, prefetch=prefetch)
        thumbs = ThumbnailLoader(full, SIDE)
        found = {int(b.ids[r]): b.images[r].clone() for b in thumbs.epoch(1, order) for r in range(b.num_valid)}
        thumbs.close()
        full.close()
        return found

    ids = np.arange(COUNT + 1)
    expected = run(8, 2, ids)
    for got in (run(1, 1, ids), run(37, 3, ids[::-1])):
        assert all(torch.equal(got[sample], expected[sample]) for sample in ids.tolist())


def test_the_side_survives_what_is_done_to_a_catalog(pack: Path, tmp_path: Path) -> None:
    catalog = open_folder(pack)
    assert catalog.thumbnail_side == STORED
    assert catalog.take(np.array([3, 1])).thumbnail_side == STORED
    small = next(i for i in range(COUNT + 1) if catalog.path(i).endswith("small.png"))
    assert catalog.take(np.array([small])).thumbnail_side == 30
    assert catalog.take(np.array([], np.int64)).thumbnail_side is None
    wider = catalog.relabel(np.array([2, 0, 3], np.int32), ("b", "x", "a", "c"))
    assert wider.thumbnail_side == STORED
    assert open_dataset(pack, val_split=0.2).train.thumbnail_side == STORED
    # A view of some pictures is some pictures of the view.
    ids = np.array([7, 2, 30])
    expected = [catalog.thumbnails().read_one(int(sample)).tobytes() for sample in ids]
    for view in (catalog.thumbnails().take(ids), catalog.take(ids).thumbnails(), wider.take(ids).thumbnails()):
        assert [data.tobytes() for data in view.read(np.arange(3))] == expected
        assert view.sizes.tolist() == catalog.thumbnails().sizes[ids].tolist()
    assert view.labels.tolist() == wider.labels[ids].tolist()
    assert catalog.thumbnails().sizes.min(axis=1).max() == STORED
    plain = open_folder(write_tree(tmp_path / "d", {"a/0.jpg": jpeg(20, 20)}))
    assert plain.thumbnail_side is None
    loader = make(plain)
    with pytest.raises(InputError, match="needs a thumbnail of every picture; pack with --thumbnails"):
        ThumbnailLoader(loader, SIDE)
    loader.close()


def copy_pack(pack: Path, to: Path) -> Path:
    to.mkdir()
    for file in pack.iterdir():
        if file.is_file():
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_damaged_thumbnail_costs_its_sample(pack: Path, tmp_path: Path) -> None:
    root = copy_pack(pack, tmp_path / "p")
    records = read_index(root).splits["train"].records
    clean_full = make(open_folder(root))
    clean_thumbs = ThumbnailLoader(clean_full, SIDE)
    ids = np.arange(COUNT + 1)
    clean = {int(b.ids[r]): b.images[r].clone() for b in clean_thumbs.epoch(0, ids) for r in range(b.num_valid)}
    clean_thumbs.close()
    clean_full.close()
    shard = root / "train-00000.tar"
    data = bytearray(shard.read_bytes())

    def overwrite(sample: int, body: bytes) -> None:
        begin, length = int(records["thumb_offset"][sample]), int(records["thumb_length"][sample])
        assert len(body) <= length
        data[begin : begin + length] = body + bytes(length - len(body))

    overwrite(4, b"GIF89a")
    overwrite(11, jpeg(12, 12))  # a picture, but not this one
    height, width = int(records["thumb_height"][20]), int(records["thumb_width"][20])
    broken = encode(picture(height, width, 5), progressive=True, quality=30)
    frame = broken[broken.index(b"\xff\xc2") :][:19]
    scan = broken.index(b"\xff\xda", broken.index(b"\xff\xda") + 1)
    overwrite(20, broken[:scan] + frame + broken[scan:])  # passes the scan; no decoder goes on after a second frame
    shard.write_bytes(bytes(data))
    log: list[tuple[int, str, str]] = []
    full = make(open_folder(root), on_quarantine=lambda *line: log.append(line))
    thumbs = ThumbnailLoader(full, SIDE)
    bad = [4, 11, 20]
    for _ in range(2):
        for number, batch in enumerate(thumbs.epoch(0, ids)):
            part = [sample for sample in ids[8 * number : 8 * number + 8].tolist() if sample not in bad]
            assert batch.ids[: batch.num_valid].tolist() == part
            assert batch.labels[: batch.num_valid].tolist() == full.catalog.labels[part].tolist()
            assert all(torch.equal(batch.images[row], clean[sample]) for row, sample in enumerate(part))
    assert sorted(sample for sample, _, _ in log) == bad  # once each, in two passes
    reasons = {sample: reason for sample, _, reason in log}
    assert reasons[4].startswith("thumbnail: damaged in the shard: GIF")
    assert reasons[11] == "thumbnail: not the picture that the pack's index describes; pack anew"
    assert "cannot be decoded" in reasons[20]
    assert [path for _, path, _ in log] == [full.catalog.path(sample) for sample, _, _ in log]
    # One set for both loaders: what cannot be scored is not offered for training either.
    assert np.flatnonzero(full.bad_ids).tolist() == bad
    trained = [int(b.ids[r]) for b in full.epoch(0, ids) for r in range(b.num_valid)]
    assert trained == [sample for sample in ids.tolist() if sample not in bad]
    assert len(log) == 3
    thumbs.close()
    full.close()


def test_a_pack_cut_off_mid_epoch_gives_one_reason(pack: Path, tmp_path: Path) -> None:
    """So that a caller can tell a lost shard from a thousand damaged pictures."""
    root = copy_pack(pack, tmp_path / "p")
    log: list[tuple[int, str, str]] = []
    full = make(open_folder(root), batch_size=2, prefetch=1, on_quarantine=lambda *line: log.append(line))
    thumbs = ThumbnailLoader(full, SIDE)
    shard = root / "train-00000.tar"
    seen = []
    for number, batch in enumerate(thumbs.epoch(0, np.arange(COUNT + 1))):
        if number == 0:
            os.truncate(shard, shard.stat().st_size // 2)
        seen += batch.ids[: batch.num_valid].tolist()
    seen += [int(b.ids[r]) for b in full.epoch(0, np.array(seen)) for r in range(b.num_valid)]
    assert {reason for _, _, reason in log} <= {
        "thumbnail: the shard was cut off; copy it again",
        "the shard was cut off; copy it again",
    }
    assert len(log) == len({sample for sample, _, _ in log}) > 5
    assert set(seen) | {sample for sample, _, _ in log} == set(range(COUNT + 1))
    thumbs.close()
    full.close()
