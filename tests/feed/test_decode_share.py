"""Which batches are decoded on the CPU, and that this does not change what is delivered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.dataset import open_folder
from fastast.data.sampler import epoch_ids
from fastast.feed import pipeline
from fastast.feed.decode_share import DecodeShare, adapted
from tests.data.image_files import cut_png, encode, jpeg, picture, write_tree
from tests.feed.helpers import train_loader

COUNT = 60
DAMAGED = (3, 20, 21, 47)


@pytest.mark.parametrize(
    ("eighths", "limit", "waited", "expected"),
    [
        (0, 8, 0.0, (1, 8)),  # no waiting: the CPU has room
        (7, 8, 0.0, (8, 8)),
        (8, 8, 0.0, (8, 8)),
        (3, 8, 0.02, (3, 8)),  # hardly any: as it is
        (3, 8, 0.2, (2, 2)),  # waiting: less, and 3 was too much
        (2, 2, 0.0, (2, 2)),
        (2, 2, 0.2, (1, 1)),
        (0, 8, 1.0, (0, 0)),  # nothing to take back: the CPU has no room at all
        (0, 0, 0.0, (0, 0)),
    ],
)
def test_share_follows_waiting_time(eighths: int, limit: int, waited: float, expected: tuple[int, int]) -> None:
    assert adapted(eighths, limit, waited) == expected


@pytest.mark.parametrize("eighths", range(9))
def test_rotation_is_even(eighths: int) -> None:
    share = DecodeShare("auto", adaptive=False, settle=5)
    share.eighths = eighths
    turns = [share.next_on_cpu() for _ in range(80)]
    for first in range(0, 80, 8):
        assert sum(turns[first : first + 8]) == eighths
    if eighths in (1, 2, 4):
        assert turns == [(k + 1) % (8 // eighths) == 0 for k in range(80)]


def settled(share: DecodeShare, room: int, batches: int) -> list[int]:
    """Shares over time in a loop that waits a fifth of its time when the CPU has more than `room` eighths."""
    under_way = [share.eighths] * 5
    now, seen = 0.0, []
    for _ in range(batches):
        under_way.append(share.eighths)
        wait_s = 0.02 if under_way.pop(0) > room else 0.0
        now += 0.08 + wait_s
        share.delivered(wait_s, now)
        seen.append(share.eighths)
    return seen


@pytest.mark.parametrize("room", [0, 3, 8])
def test_share_converges(room: int) -> None:
    share = DecodeShare("auto", adaptive=True, settle=5)
    seen = settled(share, room, 600)
    assert seen[0] == 0
    assert max(seen) == min(room + 1, 8)
    assert set(seen[400:]) == {room}
    # The next pass holds it.
    share.begin_pass()
    assert set(settled(share, room, 600)) == {room}
    # A new search starts from there, and tries more once.
    share.begin_search()
    seen = settled(share, room, 600)
    assert max(seen) == min(room + 1, 8)
    assert set(seen[100:]) == {room}


def test_held_share_is_only_lowered() -> None:
    share = DecodeShare("auto", adaptive=True, settle=5)
    settled(share, 6, 600)
    assert set(settled(share, 2, 600)[400:]) == {2}  # the CPU got other work
    share.begin_pass()
    assert set(settled(share, 8, 600)) == {2}


def test_batches_from_before_a_change_do_not_count() -> None:
    """Long waits at the start of a pass, and for batches assigned under the old share, change nothing."""
    share = DecodeShare("auto", adaptive=True, settle=5)
    for number in range(5 + 32):
        share.delivered(10.0 if number < 5 else 0.0, 20.0 * (number + 1))
    assert share.eighths == 1
    for number in range(5):
        share.delivered(10.0, 1000.0 + 20 * number)
    for number in range(31):
        share.delivered(0.0, 2000.0 + number)
    assert share.eighths == 1
    share.delivered(0.0, 2031.0)
    assert share.eighths == 2


def test_only_auto_adapts() -> None:
    for decode, adaptive, eighths in (("gpu", True, 0), ("cpu", True, 8), ("auto", False, 0)):
        share = DecodeShare(decode, adaptive=adaptive, settle=2)
        settled(share, 3, 200)
        assert share.eighths == eighths
    with pytest.raises(ValueError, match="decode fast: choose one of auto, gpu, cpu"):
        DecodeShare("fast", adaptive=True, settle=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {f"{'ab'[i // 30]}/{i:02d}.jpg": jpeg(40 + i, 110 - i, i) for i in range(COUNT)}
    for sample in DAMAGED:
        tree[f"{'ab'[sample // 30]}/{sample:02d}.jpg"] = cut_png(encode(picture(60, 70, sample), "PNG"), 0.3)
    return write_tree(tmp_path_factory.mktemp("share"), tree)


@pytest.mark.parametrize("side", [32, 72])
@pytest.mark.parametrize("eighths", [1, 2, 3, 8])
def test_two_pipelines_deliver_the_same(eighths: int, side: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decode on the CPU here; order and quarantine do not depend on the decoder."""
    built: list[tuple[str, int]] = []
    real = pipeline.build_pipeline

    def spy(inputs, options, **more):
        built.append((options.decode, options.batch_size))
        return real(inputs, options, **more)

    monkeypatch.setattr(pipeline, "build_pipeline", spy)

    def run(forced: int) -> tuple[list, list, list]:
        log: list[tuple[int, str, str]] = []
        loader = train_loader(
            open_folder(folder), batch_size=4, image_size=side, on_quarantine=lambda *line: log.append(line)
        )
        loader._share.eighths = forced
        built.clear()
        batches = []
        for epoch in range(2):
            old = loader.epoch(9, np.arange(COUNT))
            next(old)  # abandoned with batches in both
            batches += [(b.ids, b.labels, b.images.clone()) for b in loader.epoch(epoch, epoch_ids(COUNT, 1, epoch))]
        loader.close()
        return batches, sorted(log), list(built)

    expected, expected_log, alone = run(0)
    got, log, both = run(eighths)
    assert len(got) == len(expected) == 30
    assert all(all(map(torch.equal, a, b)) for a, b in zip(got, expected, strict=True))
    assert log == expected_log
    assert [sample for sample, _, _ in log] == list(DAMAGED)
    assert alone == [("gpu", 1)]  # beside the one built at first, only that for single pictures
    assert sorted(both) == [("cpu", 4), ("gpu", 1)]


def test_second_pipeline_is_built_when_needed(folder: Path) -> None:
    loader = train_loader(open_folder(folder), batch_size=4)
    list(loader.epoch(0, np.arange(40, 46)))
    assert list(loader._pipelines) == [False]
    loader._share.eighths = 2
    next(loader.epoch(0, np.arange(22, 46)))
    assert list(loader._pipelines) == [False, True]
    loader.close()
