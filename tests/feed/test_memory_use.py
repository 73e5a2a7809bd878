"""Memory of an epoch: its order takes little, and nothing is leaked."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from nvidia.dali import backend

from fastast.data.dataset import open_folder
from fastast.data.sampler import epoch_ids
from fastast.feed.pipeline import decoder_options
from fastast.packing.packer import run_pack
from tests.data.image_files import jpeg, write_tree
from tests.feed.helpers import train_loader


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_order_of_imagenet_takes_little_memory() -> None:
    tracemalloc.start()
    ids = epoch_ids(1_281_167, 0, 3)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak_mb < 100
    assert len(ids) == 1_281_167


@pytest.mark.parametrize("side", [48, 72])  # DALI's resize and our own
def test_no_memory_leak_over_epochs(side: int, tmp_path: Path) -> None:
    tree = {f"a/{i:02d}.jpg": jpeg(90 + i % 9, 110, i % 7) for i in range(96)}
    run_pack(write_tree(tmp_path / "d", tree), tmp_path / "p", say=lambda line: None)
    catalog = open_folder(tmp_path / "p")
    loader = train_loader(catalog, batch_size=32, image_size=side, num_threads=2)
    used = []
    for epoch in range(20):
        delivered = sum(batch.num_valid for batch in loader.epoch(epoch, epoch_ids(96, 0, epoch)))
        assert delivered == 96
        used.append(resident_mb())
    loader.close()
    batch_mb = 32 * side * side * 3 * 4 / 1e6
    # A batch lost in each of these 10 epochs would be twice this; what the allocator takes now and then is less.
    assert min(used[15:]) - min(used[5:10]) < 5 * batch_mb, used


def test_gpu_decoder_options_exist() -> None:
    """Without a GPU, the names can at least be checked against DALI's own list."""
    for name in ("decoders__ImageSlice", "decoders__Image"):
        known = backend.GetSchema(name).GetArgumentNames()
        assert set(decoder_options("gpu", False, (400, 500))) - {"device"} <= set(known)
    fast, exact = (decoder_options("gpu", deterministic, (400, 500)) for deterministic in (False, True))
    assert (fast["hw_decoder_load"] > 0, exact["hw_decoder_load"]) == (True, 0)
    assert (fast["preallocate_height_hint"], fast["preallocate_width_hint"]) == (400, 500)
    assert decoder_options("gpu", False, (400, 500))["device_memory_padding"] == int(5.49 * 200_000)
    assert decoder_options("gpu", False, (10**5, 10**5))["preallocate_width_hint"] == 4096
    assert decoder_options("cpu", True, (400, 500)) == {"device": "cpu"}
