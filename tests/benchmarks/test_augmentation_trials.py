"""The augmentations that were tried: what they do to pictures follows from (seed, epoch, id)."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.augmentation_trials import Cutmix, Erased, Mixup, Trivial
from fastast.data.dataset import open_folder
from fastast.feed import TrainLoader
from tests.feed.helpers import loader_options


def pixels(catalog, kind, batch_size, epoch):
    """Each picture's pixels, by id."""
    loader = kind(catalog, loader_options(batch_size=batch_size), seed=3)
    batches = loader.epoch(epoch, np.arange(12))
    found = {i: row.clone() for b in batches for i, row in zip(b.ids[: b.num_valid].tolist(), b.images, strict=False)}
    loader.close()
    return found


def test_changes_to_single_pictures_do_not_depend_on_the_batch(pictures):
    catalog = open_folder(pictures / "train").take(np.arange(12))
    plain = pixels(catalog, TrainLoader, 8, epoch=1)
    for kind in (Erased, Trivial):
        whole, parts, later = (pixels(catalog, kind, size, epoch) for size, epoch in ((8, 1), (5, 1), (8, 2)))
        assert all(torch.equal(whole[i], parts[i]) for i in whole)
        assert not any(torch.equal(whole[i], later[i]) for i in whole)
        assert sum((whole[i] - plain[i]).abs().max() > 0.02 for i in whole) > 2  # rounding to levels is below


def test_share_of_mixed_pictures_is_that_of_their_pixels():
    ones, zeros = torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    for kind, draws in ((Mixup, [0.3, 0.1, 0.9]), (Cutmix, [0.3, 0.1, 0.9]), (Cutmix, [0.6, 0.5, 0.5])):
        mixed, share = kind._mix(None, ones, zeros, draws)
        torch.testing.assert_close(mixed.mean(), torch.tensor(share))
        assert 0 < share < 1
