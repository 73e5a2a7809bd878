"""Pictures that fail during training: each costs its own row, once, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastast.data.catalog import UnreadableError
from fastast.data.dataset import open_folder
from fastast.data.sampler import epoch_ids
from fastast.feed import TrainLoader
from fastast.packing.packer import run_pack
from tests.data.image_files import cut_entropy, cut_png, encode, jpeg, picture, segments, write_tree
from tests.feed.helpers import delivered_ids, eval_loader, images_by_id, same_images, train_loader

COUNT = 48
DAMAGED = {3: 0.0, 4: 0.02, 5: 0.1, 17: 0.3, 30: 0.5, 31: 0.7, 47: 0.85}  # id: share of the picture data left


def flip_bits(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    changed = bytearray(data)
    begin = segments(data)[-1][1]
    for at in rng.integers(begin, len(data) - 2, 20):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def second_frame(data: bytes, number: int) -> bytes:
    """A progressive JPEG with its frame header repeated before the scan of this number: no decoder accepts that."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"\xff\xda", at + 1)
    begin, end = next((begin, end) for begin, end, marker in segments(data) if marker == 0xC2)
    return data[:at] + data[begin:end] + data[at:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {f"{'ab'[i // 24]}/{i:02d}.jpg": jpeg(60 + i, 90 - i, i) for i in range(COUNT)}
    for sample, share in DAMAGED.items():
        tree[f"{'ab'[sample // 24]}/{sample:02d}.jpg"] = cut_png(encode(picture(60, 70, sample), "PNG"), share)
    return write_tree(tmp_path_factory.mktemp("damaged"), tree)


def make(folder: Path, log: list, **changes: Any) -> TrainLoader:
    return train_loader(open_folder(folder), min_area=1.0, on_quarantine=lambda *line: log.append(line), **changes)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[int, torch.Tensor]:
    """Every good picture, decoded in a batch of its own."""
    loader = make(folder, [], batch_size=1, prefetch=1)
    found = images_by_id(loader.epoch(0, np.array([sample for sample in range(COUNT) if sample not in DAMAGED])))
    loader.close()
    return found


@pytest.mark.parametrize(("batch_size", "prefetch"), [(1, 1), (3, 2), (8, 1), (8, 3), (16, 2), (48, 4), (64, 2)])
def test_only_damaged_pictures_are_lost(
    folder: Path, alone: dict[int, torch.Tensor], batch_size: int, prefetch: int
) -> None:
    log: list[tuple[int, str, str]] = []
    loader = make(folder, log, batch_size=batch_size, prefetch=prefetch)
    for order in range(2):
        ids = epoch_ids(COUNT, order, 0)
        seen: list[int] = []
        for number, batch in enumerate(loader.epoch(0, ids)):  # epoch 0 twice: equal crops
            part = ids[number * batch_size : (number + 1) * batch_size]
            expected = [sample for sample in part.tolist() if sample not in DAMAGED]
            assert batch.ids[: batch.num_valid].tolist() == expected
            assert batch.lost_ids.tolist() == [sample for sample in part.tolist() if sample in DAMAGED]
            assert batch.valid.sum() == batch.num_valid == len(expected)
            assert batch.images.shape[0] == batch_size
            assert not batch.images[batch.num_valid :].any()
            assert all(torch.equal(batch.images[row], alone[sample]) for row, sample in enumerate(expected))
            seen += expected
        assert sorted(seen) == sorted(alone)
        assert len(log) == len(DAMAGED)  # each is reported once, in the first pass
    assert sorted(sample for sample, _, _ in log) == sorted(DAMAGED)
    assert np.flatnonzero(loader.bad_ids).tolist() == sorted(DAMAGED)
    for sample, path, reason in log:
        assert path == loader.catalog.path(sample)
        assert "cannot be decoded" in reason
    assert loader.num_decoded == 2 * len(alone)
    loader.close()


@pytest.mark.parametrize(("batch_size", "prefetch"), [(1, 1), (5, 3), (16, 1), (48, 2)])
def test_only_damaged_pictures_of_a_pack_are_lost(batch_size: int, prefetch: int, tmp_path: Path) -> None:
    """JPEGs that go wrong after their first scan, so that packing keeps them and decoding fails."""
    tree = {f"{'ab'[i // 24]}/{i:02d}.jpg": jpeg(60 + i, 90 - i, i, progressive=True) for i in range(COUNT)}
    run_pack(write_tree(tmp_path / "clean", tree), tmp_path / "p", say=lambda line: None)
    loader = make(tmp_path / "p", [], batch_size=1)
    clean = images_by_id(loader.epoch(0, np.arange(COUNT)))
    assert len(clean) == COUNT
    loader.close()
    for place, sample in enumerate(DAMAGED):
        name = f"{'ab'[sample // 24]}/{sample:02d}.jpg"
        tree[name] = second_frame(tree[name], 1 + place)
    run_pack(write_tree(tmp_path / "damaged", tree), tmp_path / "q", shard_size_mb=0.03, say=lambda line: None)
    log: list[tuple[int, str, str]] = []
    loader = make(tmp_path / "q", log, batch_size=batch_size, prefetch=prefetch)
    assert loader.catalog.quarantined == []
    for order in range(2):
        ids = epoch_ids(COUNT, order, 0)
        kept = [sample for sample in ids.tolist() if sample not in DAMAGED]
        found = images_by_id(loader.epoch(0, ids))
        assert list(found) == kept
        assert same_images(found, {sample: clean[sample] for sample in kept})
    assert sorted(sample for sample, _, _ in log) == sorted(DAMAGED)
    assert all(".tar:" in path and "cannot be decoded" in reason for _, path, reason in log)
    loader.close()


def test_neighbours_of_damaged_jpegs(tmp_path: Path) -> None:
    """Damage may or may not stop the decoder; the neighbours are delivered either way, with their own bits."""
    tree = {f"a/{i:02d}.jpg": jpeg(50, 60, i, progressive=i % 2 == 0) for i in range(40)}
    loader = make(write_tree(tmp_path / "clean", tree), [])
    clean = images_by_id(loader.epoch(0, np.arange(40)))
    loader.close()
    damaged = set(np.random.default_rng(0).permutation(40)[:20].tolist())
    for sample in damaged:
        data = tree[f"a/{sample:02d}.jpg"]
        cut = cut_entropy(data, (sample % 9) / 10)
        tree[f"a/{sample:02d}.jpg"] = cut if sample % 3 else flip_bits(data, sample)
    log: list[tuple[int, str, str]] = []
    loader = make(write_tree(tmp_path / "damaged", tree), log)
    found = images_by_id(loader.epoch(0, np.arange(40)))
    assert all(torch.equal(image, clean[sample]) for sample, image in found.items() if sample not in damaged)
    assert sorted([*found, *(sample for sample, _, _ in log)]) == list(range(40))
    assert {sample for sample, _, _ in log} <= damaged
    loader.close()


def test_files_that_change_after_the_scan(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {f"a/{i:02d}.jpg": jpeg(40, 50, i) for i in range(16)})
    log: list[tuple[int, str, str]] = []
    loader = make(root, log, batch_size=4)
    path = loader.catalog.path
    os.unlink(path(1))
    os.truncate(path(2), 300)
    Path(path(3)).write_bytes(b"<html>gone</html>")
    os.unlink(path(5))
    os.mkfifo(path(5))
    os.unlink(path(6))
    os.mkdir(path(6))
    Path(path(7)).write_bytes(b"")
    Path(path(9)).write_bytes(jpeg(90, 33, 500))  # still a picture, of another size
    status = os.stat(path(10))
    os.utime(path(10), ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))  # touched, not changed
    for sample in (12, 13, 14, 15):
        os.unlink(path(sample))
    batches = list(loader.epoch(0, np.arange(16)))
    assert [batch.ids[batch.valid].tolist() for batch in batches] == [[0], [4], [8, 9, 10, 11], []]
    assert batches[3].images.shape == (4, 3, 32, 32)
    assert [batch.lost_ids.tolist() for batch in batches] == [[1, 2, 3], [5, 6, 7], [], [12, 13, 14, 15]]
    assert loader.catalog.sizes[9].tolist() == [90, 33]
    reasons = {sample: reason for sample, _, reason in log}
    assert sorted(reasons) == [1, 2, 3, 5, 6, 7, 12, 13, 14, 15]
    phrases = {1: "gone", 2: "cut off", 3: "web page", 5: "pipe", 6: "folder", 7: "empty"}
    assert all(phrase in reasons[sample] for sample, phrase in phrases.items()), reasons
    assert all(reason.startswith("changed since the scan: ") for reason in reasons.values())
    again = list(loader.epoch(1, np.arange(16)))
    assert [b.num_valid for b in again] == [1, 1, 4, 0]
    assert all(np.array_equal(a.lost_ids, b.lost_ids) for a, b in zip(again, batches, strict=True))
    assert len(log) == 10
    with pytest.raises(UnreadableError, match="changed since the scan"):
        loader.catalog.read(np.array([0, 1]))
    loader.close()


def test_evaluation_skips_damaged_pictures(folder: Path) -> None:
    log: list[tuple[int, str, str]] = []
    loader = eval_loader(open_folder(folder), batch_size=10, on_quarantine=lambda *line: log.append(line))
    assert delivered_ids(loader) == [sample for sample in range(COUNT) if sample not in DAMAGED]
    assert len(log) == len(DAMAGED)
    loader.close()


def test_other_errors_are_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[int, str, str]] = []
    loader = make(folder, log)

    def broken(inputs: tuple) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader, "_decode_one", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(loader.epoch(0, np.arange(COUNT)))
    assert log == []
    loader.close()
