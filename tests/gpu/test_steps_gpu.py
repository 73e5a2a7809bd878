"""On a GPU: nothing in the loop waits for it, and steps replayed as CUDA graphs are the eager ones."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cudagraph_trees

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.engine.compiled_engine import warm_up
from fastast.engine.engine import Engine
from fastast.feed import Batch
from fastast.loggers.device_status import StatusReader, merge_status
from fastast.plan.epoch_plan import EpochPlanner
from fastast.train.segment_loop import SegmentLoop
from tests.train.test_run import options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU"),
]

B, SIDE, CLASSES, TRAIN_SIZE = 16, 32, 3, 128
FORWARD: dict[str, Any] = {"gate": "forward", "unbiased": True, "explore": 0.1}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    cudagraph_trees.reset_cudagraph_trees()
    counters.clear()


@contextlib.contextmanager
def waiting(mode: str) -> Iterator[None]:
    """What torch does when an operator waits for the GPU: "error" or "default", which is nothing."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def engine(compile: str, precision: str = "auto", train_size: str | None = None) -> Engine:
    sizes = {"image_size": SIDE, "train_size": train_size, "batch_size": B, "ema": "auto"}
    config = TrainConfig(arch="tests.nets:tiny", lr=0.1, epochs=4, target=0.5, device="cuda", **sizes, **FORWARD)
    runtime = open_runtime("cuda", precision, compile, deterministic=True)
    return Engine(config, runtime, weights="none", num_classes=CLASSES, num_train=TRAIN_SIZE)


def batch(one: Engine, seed: int, side: int = SIDE) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (B,), generator=generator)
    ids, valid = torch.arange(B) + seed % (TRAIN_SIZE // B) * B, torch.ones(B, dtype=torch.bool)
    device = one.device
    return Batch(images.to(device, one.queue.images.dtype), labels.to(device), ids.to(device), valid.to(device), B)


class Loop:
    """The body of the training loop, over 24 batches that are on the GPU already, of sizes one after the other."""

    def __init__(self, one: Engine, sides: Sequence[int] = (SIDE,)) -> None:
        self.one = one
        self.batches = [batch(one, seed, sides[seed * len(sides) // 24]) for seed in range(24)]
        self.reports = StatusReader(1, one.device)
        self.popped = self.step = 0

    def run(self, seeds: range) -> None:
        for seed in seeds:
            if self.step % 6 == 0:
                self.one.begin_epoch(self.step // 6)
            self.one.score(self.batches[seed])
            self.one.set_lr(0.1 / (1 + self.step))
            report = self.reports.push(self.one.gather_status())
            while report is not None and merge_status(report).pushed - self.popped >= B:
                self.one.train()
                self.popped += B
            self.step += 1


@pytest.mark.parametrize(
    ("compile", "precision"),
    [("off", "auto"), ("on", "auto"), ("reduce-overhead", "auto"), ("reduce-overhead", "fp16")],
)
def test_no_operator_of_the_loop_waits(compile: str, precision: str) -> None:
    one = engine(compile, precision)
    loop = Loop(one)
    loop.run(range(12))  # compiles, and records what is recorded
    trained = loop.popped
    with waiting("error"):
        loop.run(range(12, 24))
        one.set_target(0.3)
        loop.run(range(2))
        with pytest.raises(RuntimeError, match="synchroniz"):
            one.queue.pushed.item()
    assert loop.popped > trained
    assert one.read_status().nonfinite == 0


def relaxed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with waiting("default"):
            return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("gate", ["dense", "forward", "memory"])
def test_no_operator_waits_within_an_epoch(pictures, tmp_path, monkeypatch, gate: str) -> None:
    """With the loader: plans and evaluation may wait, since they are outside the loop."""
    run_segment = SegmentLoop.run

    def guarded(self: SegmentLoop, *args: Any) -> Any:
        with waiting("error"):
            return run_segment(self, *args)

    monkeypatch.setattr(SegmentLoop, "run", guarded)
    monkeypatch.setattr(EpochPlanner, "plan", relaxed(EpochPlanner.plan))
    arguments = options(pictures, tmp_path / "run", gate=gate, epochs=2, device="cuda", compile="off")
    assert main(["train", *arguments, "--unbiased"]) == 0


def test_steps_as_cuda_graphs_equal_eager_ones(monkeypatch) -> None:
    fills, states = [], []
    for compile in ("off", "reduce-overhead"):
        one = engine(compile, "fp32")
        torch.set_float32_matmul_precision("highest")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which a new engine switches on
        fill, popped = [], 0
        for seed in range(12):
            one.set_lr(0.1 / (1 + seed))
            one.begin_epoch(seed // 4)
            one.score(batch(one, seed))
            fill.append(one.read_status().pushed)
            while one.read_status().pushed - popped >= B:
                one.train()
                popped += B
        one.evaluate(*batch(one, 0)[:2], torch.ones(B, dtype=torch.bool, device="cuda"))
        fills.append(fill)
        states.append({**one.model.state_dict(), "memory": one.memory.score, "sums": one.eval_step.sums})
    assert fills[0] == fills[1]
    assert popped >= 4 * B
    for name, eager in states[0].items():
        torch.testing.assert_close(states[1][name], eager, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


def test_every_step_is_recorded_once() -> None:
    """Also where a batch comes from another place of the ring at every step, and after the state was loaded."""
    one = engine("reduce-overhead")
    warm_up(one)
    loop = Loop(one)
    loop.run(range(24))
    for _ in range(3):
        one.evaluate(*batch(one, 0)[:2], torch.ones(B, dtype=torch.bool, device="cuda"))
    assert loop.popped > 4 * B  # the ring has four places
    assert counters["inductor"]["cudagraph_skips"] == 0
    manager = cudagraph_trees.get_manager(one.device.index, create_if_none_exists=False)
    recordings = [len(nodes) for nodes in manager.roots.values()]
    assert len(recordings) >= 4  # scoring, training, restoring buffers, evaluation
    assert recordings == [1] * len(recordings)


@pytest.mark.parametrize("compile", ["off", "reduce-overhead"])
def test_change_of_size_needs_no_wait_or_new_recording(compile: str) -> None:
    one = engine(compile, train_size="16:32")
    warm_up(one)
    loop = Loop(one, (16, 24, 32))
    with waiting("error"):
        loop.run(range(24))
    assert one.train_size == 32
    assert loop.popped > 4 * B
    assert one.read_status().nonfinite == 0
    if compile != "off":
        assert counters["inductor"]["cudagraph_skips"] == 0
        manager = cudagraph_trees.get_manager(one.device.index, create_if_none_exists=False)
        recordings = [len(nodes) for nodes in manager.roots.values()]
        assert len(recordings) >= 3 * 2 + 2  # of each size scoring and training; restoring buffers, evaluation
        assert recordings == [1] * len(recordings)


def test_loaded_state_needs_no_wait_or_new_recording() -> None:
    one, other = (engine("reduce-overhead") for _ in range(2))
    loops = Loop(one), Loop(other)
    for loop in loops:
        loop.run(range(12))
    file = io.BytesIO()
    torch.save((one.shared_state(), one.rank_state()), file)
    file.seek(0)
    other.load_states(*torch.load(file, map_location="cpu", weights_only=True))
    for loop in loops:
        with waiting("error"):
            loop.run(range(12, 24))
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, msg=name)
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_run_with_cuda_graphs(pictures, tmp_path) -> None:
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, device="cuda", compile="reduce-overhead", epochs=2)]) == 0
    model = json.loads((out / "summary.json").read_text())["model"]
    assert (model["compiled"], model["compile_note"]) == (True, "on: asked for, with CUDA graphs")
