"""The folder of a pack becomes unavailable and comes back; so do its open shards."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from fastast.data.catalog import Catalog
from fastast.data.dataset import open_folder
from tests.feed.helpers import images_by_id, same_batches, same_images
from tests.feed.outages import COUNT, FAILING, Recorder, outage_notes, pack, short_tick

__all__ = ["pack", "short_tick"]  # fixtures


def kill_descriptors(catalog: Catalog) -> None:
    """As after the loss of a share or disk: every further read of an open file fails."""
    for shard in catalog._shards:  # type: ignore[attr-defined]
        with open(FAILING, "rb") as failing:
            os.dup2(failing.fileno(), shard.descriptor)


@pytest.mark.parametrize("harm", ["dead and gone", "dead", "gone"])
def test_pack_that_comes_back(harm: str, pack: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    away = pack.with_name("away")
    clean = Recorder(open_folder(pack)).run()
    recorder = Recorder(open_folder(pack), lambda: away.rename(pack))

    def strike(catalog: Catalog = recorder.loader.catalog) -> None:
        if "dead" in harm:
            kill_descriptors(catalog)
        if "gone" in harm:
            pack.rename(away)

    assert same_batches(recorder.run(strike), clean)
    assert recorder.quarantined == []
    # Open shards are read without the folder; a dead descriptor is replaced at once where the folder is available.
    assert recorder.notes == (outage_notes(pack) if harm == "dead and gone" else [])
    del recorder, strike
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pack_that_comes_back_changed(pack: Path) -> None:
    recorder = Recorder(open_folder(pack))
    catalog = recorder.loader.catalog
    clean = images_by_id(Recorder(catalog).run())

    def strike() -> None:
        kill_descriptors(catalog)
        for shard in catalog._shards:  # type: ignore[attr-defined]
            copy = Path(shard.path + ".copy")
            body = bytearray(Path(shard.path).read_bytes())
            body[len(body) // 2 :] = bytes(len(body) - len(body) // 2)
            copy.write_bytes(body)
            copy.rename(shard.path)

    got = images_by_id(recorder.run(strike))
    assert sorted([*got, *recorder.quarantined]) == list(range(COUNT))
    assert len(recorder.quarantined) > 5
    assert len(got) > 25  # more than were read ahead
    assert same_images(got, {sample: clean[sample] for sample in got})
    assert recorder.notes == []
