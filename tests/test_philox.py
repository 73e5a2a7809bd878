from __future__ import annotations

import numpy as np
import pytest
import torch

from fastast.philox import philox4x32, random_words, to_uniform

ONES = 0xFFFFFFFF
# Known answers published with the generator (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    ours = philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in ours) == words
    ours = philox4x32(tuple(np.array([c]) for c in counter), key)
    assert tuple(int(w[0]) for w in ours) == words


def test_numpy_equals_torch():
    ids = np.random.default_rng(0).integers(0, 2**62, 5000)
    ours = random_words(-7, torch.tensor(3), torch.from_numpy(ids), 17)
    twin = random_words(-7, 3, ids, 17)
    for a, b in zip(ours, twin, strict=True):
        assert (a.numpy() == b).all()
        assert b.min() >= 0
        assert b.max() <= ONES
    assert (to_uniform(ours[0]).numpy() == to_uniform(twin[0])).all()


def test_uniform_never_reaches_its_ends():
    for words in (torch.tensor([0, ONES]), np.array([0, ONES])):
        low, high = to_uniform(words)
        assert 0 < low < 1e-6
        assert 1 - 1e-6 < high < 1


def test_each_part_of_the_key_matters():
    ids = torch.arange(4096)
    base = random_words(1, 2, ids, 3)[0]
    others = {
        "seed": random_words(2, 2, ids, 3)[0],
        "seed above 32 bits": random_words(1 + (1 << 40), 2, ids, 3)[0],
        "epoch": random_words(1, 3, ids, 3)[0],
        "id": random_words(1, 2, ids + 4096, 3)[0],
        "id above 32 bits": random_words(1, 2, ids + (1 << 40), 3)[0],
        "stream": random_words(1, 2, ids, 4)[0],
    }
    assert base.unique().numel() == 4096
    for name, other in others.items():
        assert (base == other).sum() == 0, name


def test_uniform_is_flat_and_uncorrelated():
    words = random_words(5, 0, torch.arange(200_000), 17)
    u = torch.stack([to_uniform(w) for w in words]).double()  # [4, n]
    counts = torch.stack([torch.histc(row, bins=50, min=0, max=1) for row in u])
    chi2 = ((counts - 4000) ** 2 / 4000).sum(1)  # 49 degrees of freedom: mean 49, standard deviation 9.9
    assert (chi2 < 49 + 5 * 9.9).all()
    assert (u.corrcoef() - torch.eye(4)).abs().max() < 0.012  # five standard errors
    assert (u[:, 1:] * u[:, :-1]).mean(1).tolist() == pytest.approx([0.25] * 4, abs=0.003)
