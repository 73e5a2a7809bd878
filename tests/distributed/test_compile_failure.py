"""A rank that fails to compile ends no other: all agree after the local compile, before any collective."""

import time

import torch
from rich.console import Console

from fastast.config import TrainConfig
from fastast.device import Runtime
from fastast.engine.compiled_engine import build_engine
from fastast.loggers.console import Reporter
from tests.distributed.rank_processes import results, with_ranks


def build(ranks, failing_call):
    """Builds an engine where one rank fails in a later call of its compiled steps."""
    calls = 0

    def compile_step(step, **_):
        def run(*args):
            nonlocal calls
            calls += 1
            if ranks.rank == 1 and calls == failing_call:
                raise RuntimeError("no C compiler")
            return step(*args)

        return run

    torch.compile = compile_step
    config = TrainConfig(arch="tests.nets:tiny", image_size=16, batch_size=4, lr=0.1, gate="forward")
    runtime = Runtime(torch.device("cpu"), torch.float32, "", True, "on")
    began = time.monotonic()
    engine, runtime = build_engine(
        config, runtime, Reporter(Console(quiet=True)), weights="none", num_classes=3, num_train=16, ranks=ranks
    )
    weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
    return runtime.compiled, runtime.compile_note, time.monotonic() - began, float(weights.double().sum())


def test_all_ranks_go_on_without_the_compiler(tmp_path):
    for failing_call in (1, 3):  # in scoring, and after the first training step
        first, second = results(tmp_path, 2, with_ranks, build, failing_call)
        assert (first[0], second[0]) == (False, False)
        assert "it did on another rank" in first[1]
        assert "no C compiler" in second[1]
        assert max(first[2], second[2]) < 20
        assert first[3] == second[3]
