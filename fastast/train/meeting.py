"""A place of their own in a store for the ranks of one start.

The agents of `torchrun` keep one store for a whole job. Ranks that are started again find there what those before them
have written, such as addresses at which nobody listens any more, and cannot connect. Neither the count of restarts nor
anything else that they are told is new at every start and the same on all machines (pytorch issue 135712).
"""

from __future__ import annotations

import secrets
import time

import torch.distributed as dist

from fastast.train.placement import Placement

_PAUSE_S = 0.02


def meet(store: dist.Store, placement: Placement, timeout_s: float) -> dist.Store:
    """Gives the ranks that call it now a part of a store in which nothing is written yet.

    Each rank but the first says hello by a word that it has just made up, and the first answers it with the name of
    the part, until all have come there: what stands in the store from earlier starts answers to no new word.

    Args:
        store: that all ranks share.
        placement: of this rank.
        timeout_s: how long ranks wait for one another.

    Raises:
        RuntimeError: they waited in vain.
    """
    until = time.monotonic() + timeout_s
    if placement.rank:
        word = secrets.token_hex(8)
        store.set(_hello(placement.rank), word)
        _wait(store, _answer(word), until)
        part = dist.PrefixStore(store.get(_answer(word)).decode(), store)
        part.set(_here(placement.rank), "")
        return part
    name = f"fastast/{secrets.token_hex(8)}"
    part = dist.PrefixStore(name, store)
    missing = set(range(1, placement.size))
    while missing:
        for rank in tuple(missing):
            if part.check([_here(rank)]):
                missing.discard(rank)
            elif store.check([_hello(rank)]):
                store.set(_answer(store.get(_hello(rank)).decode()), name)
        _pause(until)
    return part


def _hello(rank: int) -> str:
    return f"fastast/hello/{rank}"


def _answer(word: str) -> str:
    return f"fastast/answer/{word}"


def _here(rank: int) -> str:
    return f"here/{rank}"


def _wait(store: dist.Store, key: str, until: float) -> None:
    while not store.check([key]):
        _pause(until)


def _pause(until: float) -> None:
    if time.monotonic() > until:
        raise RuntimeError("timed out")
    time.sleep(_PAUSE_S)
