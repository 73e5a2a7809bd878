"""Processes that may die, forked from one that has imported torch, so that each starts in milliseconds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastast.checkpoint.writer import CheckpointWriter
from fastast.cli import main
from fastast.errors import InputError
from fastast.run_folder import RunFolder
from fastast.session import session
from fastast.session.watchdog import Watchdog, end_stalled_run

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


@contextlib.contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process that runs `target`, killed at the end; entered once `target` puts something into its last argument."""
    queue = FORKS.SimpleQueue()
    process = FORKS.Process(target=target, args=(*arguments, queue))
    process.start()
    try:
        queue.get()
        yield process
    finally:
        process.kill()
        process.join()


def state_of(number, size=3000):
    return {"number": number, "values": torch.full((size,), float(number)), "names": ["a", "b"], "none": None}


def refuse(*_):
    raise AssertionError("no write should have failed")


def no_links(*_):
    raise OSError(95, "Operation not supported")


def write_and_die(path, calls, links):
    """Writes one checkpoint, and exits without cleaning up before call number `calls` of those that change files."""
    left = calls

    def mortal(call):
        def counted(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*arguments, **options)

        return counted

    for name in ("replace", "unlink", "fsync", "open"):
        setattr(os, name, mortal(getattr(os, name)))
    os.link = mortal(os.link) if links else no_links
    writer = CheckpointWriter(RunFolder(path), refuse)
    writer.submit(state_of(3))
    writer.wait()


def hold(path, text, started):
    """Holds the lock until it is killed, with another text in its file if one is passed."""
    with RunFolder(path).lock():
        if text is not None:
            (path / ".lock").write_text(text)
        started.put(True)
        time.sleep(300)


def count_up(path, rounds):
    """Adds 1 to a file, which only works one at a time."""
    folder, counter = RunFolder(path), path / "counter"
    for _ in range(rounds):
        while True:
            try:
                with folder.lock():
                    value = int(counter.read_text())
                    time.sleep(0.0005)
                    counter.write_text(str(value + 1))
                break
            except InputError:
                time.sleep(0.0002)


def read_the_next_picture(path):
    with open(path, "rb") as file:
        file.read()


def hang(path, picture, stderr):
    """A run with a thread that reads a FIFO without a writer, as if from dead network storage."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    with Watchdog(
        1.0, lambda: end_stalled_run(RunFolder(path), 1.0, f"fastast train --out {path} --resume")
    ) as watchdog:
        for _ in range(3):
            watchdog.beat()
        thread = threading.Thread(target=read_the_next_picture, args=(picture,))
        thread.start()
        thread.join()


def beat_for_a_second(started):
    """Exits with 9 if the watchdog finds it hung."""
    with Watchdog(1.5, lambda: os._exit(9)) as watchdog:
        started.put(True)
        for _ in range(10):
            time.sleep(0.1)
            watchdog.beat()


def command(arguments, log, prepare=None):
    """The command line without the report, its output in the file `log`; `prepare` is called first."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    session.write_report = lambda folder: None
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


def hang_reads_after(metrics, num_lines, hanging):
    """Makes every read of a picture wait, as on dead network storage, once `metrics` has so many lines."""
    read = os.readv

    def read_or_hang(descriptor, buffers):
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= num_lines:
            hanging.touch()
            threading.Event().wait()
        return read(descriptor, buffers)

    os.readv = read_or_hang
