"""Memory that really runs out is answered with a batch size that really fits."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest
import torch

from fastast.config import TrainConfig
from fastast.device import is_out_of_memory, open_runtime
from fastast.engine.compiled_engine import warm_up
from fastast.engine.engine import Engine
from fastast.session import out_of_memory
from fastast.session.out_of_memory import describe_out_of_memory, fitting_batch
from tests.processes import FORKS

MB = 2**20


def config_of(batch_size, image_size):
    return TrainConfig(
        arch="tests.nets:tiny",
        image_size=image_size,
        batch_size=batch_size,
        lr=0.1,
        gate="forward",
        target=0.5,
        device="cpu",
    )


class NoLoaders:
    """Loaders of no memory: what they deliver is not looked at."""

    def __init__(self, config):
        self.train = self
        self.catalog = SimpleNamespace(num_samples=4)

    def epoch(self, epoch, ids):
        yield None

    def close(self):
        pass


def attempt(config):
    """The kind of the error and whether it is one of memory; None if the batch fits."""
    try:
        engine = Engine(config, open_runtime("cpu"), weights="none", num_classes=3, num_train=4096)
        warm_up(engine)
    except Exception as error:
        return type(error).__name__, is_out_of_memory(error)
    return None


def allow(room_mb):
    """Lets this process take so much more than it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room_mb * MB, hard))


def run_short(queue, room_mb, action, *arguments):
    """Calls `action` in a process whose address space is limited."""
    torch.set_num_threads(1)
    assert attempt(config_of(4, 64)) is None  # threads and libraries take their memory before the limit
    allow(room_mb)
    queue.put(action(*arguments))


def in_short_memory(room_mb, action, *arguments):
    """What `action` returns in a process of its own: memory that an earlier attempt freed would be one more room."""
    queue = FORKS.SimpleQueue()
    process = FORKS.Process(target=run_short, args=(queue, room_mb, action, *arguments))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    return queue.get()


def find_fitting(config):
    return fitting_batch(config, open_runtime("cpu"), 3, NoLoaders)


def test_named_batch_fits():
    # The queue alone holds 4 batches of 48 kB pictures. A step of 512 takes about 155 MB with it, one of 1,024 306 MB.
    too_large, room_mb = config_of(2048, 64), 230
    assert in_short_memory(room_mb, attempt, too_large) == ("RuntimeError", True)
    fitting = in_short_memory(room_mb, find_fitting, too_large)
    assert fitting in (64, 128, 256, 512)
    assert in_short_memory(room_mb, attempt, config_of(fitting, 64)) is None
    assert describe_out_of_memory(too_large, fitting) == (
        f"out of memory at --batch-size 2048: a training step fits at --batch-size {fitting}; use it, "
        "and scale --lr with it"
    )


def test_nothing_fits():
    too_large, room_mb = config_of(64, 2048), 30  # one picture takes 48 MB
    _, is_memory = in_short_memory(room_mb, attempt, too_large)  # in the first picture already, or in the queue
    assert is_memory
    assert in_short_memory(room_mb, find_fitting, too_large) is None
    message = describe_out_of_memory(too_large, None)
    assert message.startswith("out of memory at --batch-size 64, and not even 2 fits; use a smaller --image-size")


def test_next_smaller_power_of_two_fits():
    found = [fitting_batch(config_of(batch_size, 16), open_runtime("cpu"), 3, NoLoaders) for batch_size in (12, 16, 2)]
    assert found == [8, 8, None]


def test_other_errors_are_raised(monkeypatch):
    monkeypatch.setattr(out_of_memory, "warm_up", lambda engine: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitting_batch(config_of(16, 16), open_runtime("cpu"), 3, NoLoaders)


def test_memory_of_the_loaders_counts():
    open_now, most = [], []

    class Loaders(NoLoaders):
        def epoch(self, epoch, ids):
            if self.batch_size > 4:  # as DALI puts it
                raise RuntimeError("CUDA allocation failed")
            yield None

        def __init__(self, config):
            super().__init__(config)
            self.batch_size = config.batch_size
            open_now.append(self)
            most.append(len(open_now))

        def close(self):
            open_now.remove(self)

    assert fitting_batch(config_of(32, 16), open_runtime("cpu"), 3, Loaders) == 4
    assert max(most) == 1
    assert not open_now
