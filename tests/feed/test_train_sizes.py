"""Batches of several sizes from one loader: the same bits as from a loader of that size alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data.dataset import open_folder
from tests.conftest import damaged_png
from tests.data.image_files import jpeg, write_tree
from tests.feed.helpers import images_by_id, train_loader

COUNT = 44
LOST = 21


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {f"{'ab'[i % 2]}/{i:02d}.jpg": jpeg(30 + 3 * i, 150 - 2 * i, i) for i in range(COUNT)}
    tree[f"b/{LOST:02d}.jpg"] = damaged_png()
    return write_tree(tmp_path_factory.mktemp("sizes"), tree)


@pytest.mark.parametrize(("sizes", "dtype"), [((16, 24, 40), torch.float32), ((48, 64, 96), torch.float16)])
def test_each_batch_has_the_size_that_its_slice_names(folder: Path, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Read ahead across changes, with a picture that fails in a batch of the second size and a short last slice.

    Below 64 pixels DALI resizes; if the largest size is more, torch does, whatever the size.
    """
    catalog = open_folder(folder)
    ids = np.arange(catalog.num_samples)
    (lost,) = [sample for sample in ids if catalog.path(sample).endswith(f"{LOST:02d}.jpg")]
    named = [sizes[place // 2] for place in range(6)]

    def slices() -> Iterator[tuple[np.ndarray, int]]:
        for place, size in enumerate(named):
            yield ids[8 * place : 8 * place + 8], size

    loader = train_loader(catalog, image_size=sizes[-1], dtype=dtype)
    batches = list(loader.stream(3, slices()))
    assert [tuple(batch.images.shape) for batch in batches] == [(8, 3, size, size) for size in named]
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    found = images_by_id(batches)
    assert sorted(found) == [sample for sample in ids if sample != lost]
    for size in sizes:
        alone = train_loader(catalog, image_size=sizes[-1], dtype=dtype)
        expected = images_by_id(alone.stream(3, [(ids[first : first + 8], size) for first in range(0, len(ids), 8)]))
        mine = [sample for sample in found if found[sample].shape[-1] == size]
        assert mine
        assert all(torch.equal(found[sample], expected[sample]) for sample in mine)
        alone.close()
    if sizes[0] < 64 <= sizes[-1]:  # a run of small pictures only leaves them to DALI, within a level or two of torch
        return
    for size in sizes:
        alone = train_loader(catalog, image_size=size, dtype=dtype)
        expected = images_by_id(alone.epoch(3, ids))
        assert all(torch.equal(image, expected[s]) for s, image in found.items() if image.shape[-1] == size)
        alone.close()
    loader.close()
