"""Gives the ranks of one start a part of torchrun's store for themselves.

The agents of `torchrun` keep one store for a whole job. Restarted ranks find in it what their predecessors wrote, such
as addresses where nobody listens any more, and cannot connect. Nothing that they receive, not even the restart count,
is both new at every start and the same on all machines (pytorch issue 135712).
"""

from __future__ import annotations

import secrets
import time

import torch.distributed as dist

from fastast.distributed.environment import WorldInfo

_PAUSE_S = 0.02


def rendezvous(store: dist.Store, world: WorldInfo, timeout_s: float) -> dist.Store:
    """Gives the ranks that call it now a part of a store in which nothing is written yet.

    Each rank but the first announces itself with a random word, and the first answers that word with the name of the
    part, until all ranks have arrived there. Entries of earlier starts do not answer to a new word.

    Args:
        store: shared by all ranks.
        world: of this rank.
        timeout_s: how long ranks wait for each other.

    Raises:
        RuntimeError: they waited longer.
    """
    until = time.monotonic() + timeout_s
    if world.rank:
        word = secrets.token_hex(8)
        store.set(_hello(world.rank), word)
        _wait(store, _answer(word), until)
        part = dist.PrefixStore(store.get(_answer(word)).decode(), store)
        part.set(_here(world.rank), "")
        return part
    name = f"fastast/{secrets.token_hex(8)}"
    part = dist.PrefixStore(name, store)
    missing = set(range(1, world.size))
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
