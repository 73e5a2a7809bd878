"""A pack's folder goes away and comes back; so do the shards that stand open."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.catalog import Catalog
from fastast.data.feed import Batch
from fastast.data.layout import open_folder
from fastast.data.loader import ThumbnailLoader
from tests.data.watched import COUNT, FAILING, Watched, pack, quick, same, waited_for

__all__ = ["pack", "quick"]  # fixtures


def kill_descriptors(catalog: Catalog) -> None:
    """What a dropped share or disk does to open files: every further read fails."""
    for shard in catalog._shards:  # type: ignore[attr-defined]
        with open(FAILING, "rb") as failing:
            os.dup2(failing.fileno(), shard.descriptor)


def run_struck(pack: Path, harm: str) -> Watched:
    away = pack.with_name("away")
    clean = Watched(open_folder(pack)).run()
    watched = Watched(open_folder(pack), lambda: away.rename(pack))

    def strike() -> None:
        if "dead" in harm:
            kill_descriptors(watched.loader.catalog)
        if "gone" in harm:
            pack.rename(away)

    assert same(watched.run(strike), clean)
    return watched


@pytest.mark.parametrize("harm", ["dead and gone", "dead", "gone"])
def test_a_pack_that_comes_back(harm: str, pack: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    watched = run_struck(pack, harm)
    assert watched.quarantined == []
    # What is open is read on without the folder; a dead descriptor is replaced at once where the folder stands.
    assert watched.notes == (waited_for(pack) if harm == "dead and gone" else [])
    del watched
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pack_that_comes_back_changed_is_looked_at_again(pack: Path) -> None:
    watched = Watched(open_folder(pack))
    catalog = watched.loader.catalog
    clean = {int(b.ids[r]): b.images[r] for b in Watched(catalog).run() for r in range(b.num_valid)}

    def strike() -> None:
        kill_descriptors(catalog)
        for shard in catalog._shards:  # type: ignore[attr-defined]
            copy = Path(shard.path + ".copy")
            body = bytearray(Path(shard.path).read_bytes())
            body[len(body) // 2 :] = bytes(len(body) - len(body) // 2)
            copy.write_bytes(body)
            copy.rename(shard.path)

    batches = watched.run(strike)
    got = {int(b.ids[r]): b.images[r] for b in batches for r in range(b.num_valid)}
    assert sorted([*got, *watched.quarantined]) == list(range(COUNT))
    assert len(watched.quarantined) > 5
    assert len(got) > 25  # more than were read ahead
    assert all(torch.equal(image, clean[sample]) for sample, image in got.items())
    assert watched.notes == []


def test_thumbnails_wait_as_their_pictures_do(pack: Path) -> None:
    away = pack.with_name("away")
    watched = Watched(open_folder(pack), lambda: away.rename(pack))
    thumbs = ThumbnailLoader(watched.loader, 8)
    ids = np.arange(COUNT)
    clean = list(thumbs.epoch(0, ids))
    got: list[Batch] = []
    for batch in thumbs.epoch(0, ids):
        if not got:
            kill_descriptors(thumbs.catalog)
            pack.rename(away)
        got.append(batch)
    assert same(got, clean)
    assert watched.quarantined == []
    assert watched.notes == waited_for(pack)
    thumbs.close()
    watched.loader.close()
