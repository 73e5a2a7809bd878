"""The compiled steps: how many graphs, when they recompile, and whether CUDA graphs could record them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._inductor.compile_fx import compile_fx

from fastast.device import compile_step
from fastast.engine.compiled_engine import warm_up
from fastast.engine.engine import Engine
from tests.engine.engines import B, batch, engine


class Graph(NamedTuple):
    """A traced graph as inductor gets it; inputs by position."""

    backward: bool
    num_inputs: int
    static: set[int]  # inputs whose address is known to stay
    changed: set[int]  # inputs that the graph writes to

    @property
    def num_moving(self) -> int:
        return self.num_inputs - len(self.static)


class Recorder:
    """A compiler that runs the traced graphs as they are, and keeps what inductor asks before it records CUDA graphs.

    Inductor leaves a graph unrecorded ("skipping cudagraphs due to mutated inputs") if it changes an input that is
    not static, and copies every input that is not static into the recording at each call.
    """

    def __init__(self) -> None:
        self.graphs: list[Graph] = []

    def compile(self, function: Any, **options: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            return compile_fx(graph, inputs, inner_compile=self._keep)

        return COMPILE(function, fullgraph=options["fullgraph"], dynamic=options["dynamic"], backend=backend)

    def _keep(self, graph: Any, inputs: Any, **facts: Any) -> Any:
        names = [node for node in graph.graph.nodes if node.op == "placeholder"]
        changed = set()
        for node in graph.graph.nodes:
            for argument, value in zip(getattr(node.target, "_schema", NO_SCHEMA).arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    changed |= {names.index(each) for each in (value if isinstance(value, list) else [value])}
        static = set(facts["static_input_idxs"])
        self.graphs.append(Graph(bool(facts.get("is_backward")), len(names), static, changed))
        return make_boxed_func(graph.forward)


class NO_SCHEMA:
    arguments = ()


COMPILE = torch.compile


@pytest.fixture(scope="module")
def recorder():
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(force_disable_caches=True):
        one = Recorder()
        torch._dynamo.reset()
        patch.setattr(torch, "compile", one.compile)
        yield one
        torch._dynamo.reset()


def run_epochs(one: Engine, epochs: range) -> None:
    """As `Trainer` runs them: the first dense, each of two full batches and a partial one, then evaluation."""
    for epoch in epochs:
        one.begin_epoch(epoch)
        one.set_target(0.5 if epoch < 3 else 0.3)
        status = one.read_status()
        popped = status.steps * B
        for k, num_valid in enumerate((B, B, B // 2)):
            one.set_lr(0.1 / (1 + epoch + k))
            (one.score if epoch else one.enqueue)(batch(3 * epoch + k, num_valid))
            while one.read_status().pushed - popped >= B:
                one.train()
                popped += B
        assert one.read_status().steps > status.steps
        for num_valid in (B, 1):
            one.evaluate(*batch(0)[:2], torch.arange(B) < num_valid)


def addresses(one: Engine) -> dict[int, int]:
    """Of all the state that a step may change."""
    modules = (one.model, one.score_step, one.train_step, one.eval_step)
    state = [tensor for each in modules for tensor in (*each.parameters(), *each.buffers())]
    return {id(tensor): tensor.data_ptr() for tensor in state}


@pytest.fixture(scope="module", params=["soft", "hard"])
def graphs(recorder, request):
    """The graphs of four epochs, none of them compiled in the last two; no state has moved."""
    torch._dynamo.reset()  # older versions compile a few things of a kind in one process, and then no more
    kind = {"unbiased": True} if request.param == "soft" else {"selection": "hard", "significance": "el2n"}
    one, num_before = engine(compiled=True, explore=0.1, **kind), len(recorder.graphs)
    before = addresses(one)
    run_epochs(one, range(2))
    found = recorder.graphs[num_before:]
    with torch.compiler.set_stance("fail_on_recompile"):
        run_epochs(one, range(2, 4))
    assert recorder.graphs[num_before:] == found
    assert addresses(one) == before
    return found


def test_each_step_is_one_graph(graphs):
    # Training's forward and restoring buffers after it, scoring, evaluation; and one backward.
    assert [graph.backward for graph in graphs].count(False) == 4
    assert [graph.backward for graph in graphs].count(True) == 1


def test_changed_state_lies_at_fixed_addresses(graphs):
    assert sum(bool(graph.changed) for graph in graphs) == 4  # all but the backward
    assert all(graph.changed <= graph.static for graph in graphs)


def test_only_the_batch_is_copied_into_a_recorded_graph(graphs):
    moving = sorted(graph.num_moving for graph in graphs if not graph.backward)
    # The flag of a skipped step; images, labels, weights; images, labels, valid; images, labels, ids, valid, epoch.
    assert moving == [1, 3, 3, 5]


@pytest.mark.slow
def test_each_size_is_compiled_once_and_nothing_else_again(recorder):
    """Warming up compiles every size. Rings of all sizes lie at one address, so that CUDA graphs stay valid."""
    torch._dynamo.reset()
    one, num_before = engine(compiled=True, image_size=32, train_size="16:32"), len(recorder.graphs)
    before = addresses(one)
    warm_up(one)
    found = recorder.graphs[num_before:]
    # Of each of three sizes scoring and training, forward and backward; evaluation and restoring buffers once.
    assert [graph.backward for graph in found].count(False) == 2 * 3 + 2
    assert [graph.backward for graph in found].count(True) == 3
    assert all(graph.changed <= graph.static for graph in found)
    one.set_lr(0.1)
    with torch.compiler.set_stance("fail_on_recompile"):
        for number, side in enumerate((16, 16, 24, 24, 32, 32)):
            (one.score if number % 2 else one.enqueue)(batch(number, side=side))
            one.train()
            one.evaluate(*batch(0, side=32)[:2], torch.arange(B) < B)
    assert recorder.graphs[num_before:] == found
    after = addresses(one)
    assert sorted(after.values()) == sorted(before.values())
    assert one.train_size == 32


class Threshold(nn.Module):
    """A small gate whose threshold is a buffer or an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))

    @torch.no_grad()
    def forward(self, scores: torch.Tensor, threshold: torch.Tensor | None = None) -> torch.Tensor:
        threshold = self.threshold if threshold is None else threshold
        threshold.add_(scores.mean())
        return scores > threshold


def test_state_passed_as_an_argument_is_noticed(recorder):
    before, step = len(recorder.graphs), Threshold()
    compile_step(step, True)(torch.rand(4))
    compile_step(Threshold(), True)(torch.rand(4), torch.zeros(()))
    kept, passed = recorder.graphs[before:]
    assert len(kept.changed) == len(passed.changed) == 1
    assert kept.changed <= kept.static
    assert not passed.changed <= passed.static
