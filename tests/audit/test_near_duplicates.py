"""The search for near duplicates: what it finds, and that it finds what a comparison of all pairs does."""

import numpy as np
from PIL import Image

from fastast.audit import near_duplicates
from fastast.audit.near_duplicates import ALIKE, MOST_DIFFERENT, find_pairs
from fastast.audit.perceptual import MIRRORED, SIDE, hash_views, likeness, num_different


def smooth(rng, num):
    """Random pictures of 64 px without fine detail, uint8 [num, 64, 64]."""
    small = rng.integers(0, 256, (num, 9, 9), dtype=np.uint8)
    return [Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC) for one in small]


def thumbs(images):
    return np.stack([np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images])


def test_copies_are_found_and_nothing_else():
    rng = np.random.default_rng(0)
    images = smooth(rng, 400)
    changes = {
        "resized": lambda image: image.resize((51, 51)),
        "cropped at one side": lambda image: image.crop((0, 0, 58, 64)),
        "cropped all around": lambda image: image.crop((2, 3, 61, 62)),
        "brighter": lambda image: image.point(lambda level: 40 + 0.8 * level),
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    copies = [change(images[i]) for i, change in enumerate(changes.values())]
    grey = thumbs(images + copies)
    found = find_pairs(hash_views(grey), grey)
    assert list(zip(found.a, found.b, strict=True)) == [(i, 400 + i) for i in range(len(changes))]


def test_search_finds_the_pairs_of_an_exhaustive_one():
    rng = np.random.default_rng(1)
    images = smooth(rng, 150)
    images += [image.crop(tuple(rng.integers(0, 4, 2)) + tuple(64 - rng.integers(0, 4, 2))) for image in images[:60]]
    images += [Image.fromarray((np.asarray(image) // 8 * 8).astype(np.uint8)) for image in images[:40]]
    grey = thumbs(images)
    views, num = hash_views(grey), len(images)
    exhaustive = set()
    for view in range(views.shape[1]):
        a, b = np.nonzero(num_different(views[:, view, None], views[None, :, 0]) <= MOST_DIFFERENT)
        a, b = a[a != b], b[a != b]
        alike = likeness(grey[a], grey[b], np.full(len(a), view), worth=-1.0, enough=ALIKE) >= ALIKE
        exhaustive |= {(min(pair), max(pair)) for pair in zip(a[alike].tolist(), b[alike].tolist(), strict=True)}
    found = find_pairs(views, grey)
    assert len(exhaustive) >= 100
    assert set(zip(found.a.tolist(), found.b.tolist(), strict=True)) == exhaustive
    assert num == len(views)


def test_very_similar_pictures_take_bounded_work(monkeypatch):
    """600 pictures that differ by little: of each only its closest candidates are compared."""
    rng = np.random.default_rng(2)
    (image,) = smooth(rng, 1)
    base = thumbs([image])[0].astype(np.int64)
    grey = (base + rng.integers(-3, 4, (600, SIDE, SIDE))).clip(0, 255).astype(np.uint8)
    compared = []
    whole = near_duplicates.likeness
    monkeypatch.setattr(near_duplicates, "_HELD", 1000)
    monkeypatch.setattr(
        near_duplicates, "likeness", lambda a, *rest, **k: compared.append(len(a)) or whole(a, *rest, **k)
    )
    found = find_pairs(hash_views(grey), grey)
    assert sum(compared) <= 600 * 16
    assert set(found.a) | set(found.b) == set(range(600))


def test_bits_are_counted():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 2**64, (2, 1000), dtype=np.uint64)
    assert num_different(a, b).tolist() == [int(x).bit_count() for x in a ^ b]


def test_mirrored_view_is_the_hash_of_the_mirror_image():
    grey = thumbs(smooth(np.random.default_rng(4), 50))
    mirrored = hash_views(np.ascontiguousarray(grey[:, :, ::-1]))[:, 0]
    assert num_different(hash_views(grey)[:, MIRRORED], mirrored).max() <= 2
