"""The compiled steps: how many graphs, when they recompile, and whether CUDA graphs could record them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._inductor.compile_fx import compile_fx

from fastast.config import TrainConfig
from fastast.feed import Batch
from fastast.device import Runtime, choose_compile, compile_step
from fastast.errors import InputError
from fastast.train.engine import Engine

B, SIDE, CLASSES, TRAIN_SIZE = 8, 16, 3, 64
CPU = torch.device("cpu")


class Graph(NamedTuple):
    """A traced graph as inductor gets it: places of its inputs."""

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


def engine(thumbnail_side: int | None = None, **changes: Any) -> Engine:
    config = TrainConfig(
        arch="tests.nets:tiny",
        image_size=SIDE,
        batch_size=B,
        lr=0.1,
        epochs=4,
        target=0.5,
        proxy_bn_every=4,
        device="cpu",
        **changes,
    )
    runtime = Runtime(CPU, torch.float32, "", True, "")
    return Engine(
        config, runtime, weights="none", num_classes=CLASSES, num_train=TRAIN_SIZE, thumbnail_side=thumbnail_side
    )


def batch(seed: int, num_valid: int = B) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (B,), generator=generator)
    return Batch(images, labels, torch.arange(B) + seed % 8 * B, torch.arange(B) < num_valid, num_valid)


def run_epoch(one: Engine, epoch: int) -> None:
    """As `Trainer` runs it: the first dense, each of two full batches and a partial one, then evaluation."""
    one.begin_epoch(epoch)
    one.set_target(0.5 if epoch < 3 else 0.3)
    status = one.read_status()
    popped = status.steps * B
    for k, num_valid in enumerate((B, B, B // 2)):
        one.set_lr(0.1 / (1 + epoch + k))
        offered = batch(3 * epoch + k, num_valid)
        if epoch == 0:
            one.enqueue(offered)
        elif one.select_step is None:
            one.score(offered)
        else:
            one.select(offered)
            one.enqueue(offered, one.selected_weights)
        while one.read_status().pushed - popped >= B:
            one.train()
            popped += B
    assert one.read_status().steps > status.steps
    for num_valid in (B, 1):
        one.evaluate(*batch(0)[:2], torch.arange(B) < num_valid)
    one.memory.tick()


def addresses(one: Engine) -> dict[int, int]:
    """Of all the state that a step may change."""
    modules = (one.model, one.score_step, one.train_step, one.eval_step, one.proxy, one.select_step)
    state = [tensor for each in modules if each is not None for tensor in (*each.parameters(), *each.buffers())]
    return {id(tensor): tensor.data_ptr() for tensor in state}


@pytest.fixture(scope="module")
def run(recorder):
    """Four epochs of the forward gate: the graphs after two and at the end, the addresses before and after."""
    one = engine(unbiased=True, clip_weights=5.0)
    before = addresses(one)
    for epoch in range(2):
        run_epoch(one, epoch)
    first = list(recorder.graphs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for epoch in range(2, 4):
            run_epoch(one, epoch)
    return first, list(recorder.graphs), before, addresses(one)


def test_each_step_is_one_graph_and_none_is_compiled_after_the_second_epoch(run):
    first, graphs, _, _ = run
    assert graphs == first
    # Training's forward and restoring buffers after it, scoring, evaluation; and one backward.
    assert [graph.backward for graph in graphs].count(False) == 4
    assert [graph.backward for graph in graphs].count(True) == 1


def test_what_the_steps_change_lies_at_fixed_addresses(run):
    _, graphs, before, after = run
    assert sum(bool(graph.changed) for graph in graphs) == 4  # all but the backward
    for graph in graphs:
        assert graph.changed <= graph.static
    assert before == after


def test_nothing_but_the_batch_is_copied_into_a_recorded_graph(run):
    moving = sorted(graph.num_moving for graph in run[1] if not graph.backward)
    # The flag of a skipped step; images, labels, weights; images, labels, valid; images, labels, ids, valid, epoch.
    assert moving == [1, 3, 3, 5]


class Threshold(nn.Module):
    """A gate in small, whose threshold is a buffer or an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))

    @torch.no_grad()
    def forward(self, scores: torch.Tensor, threshold: torch.Tensor | None = None) -> torch.Tensor:
        threshold = self.threshold if threshold is None else threshold
        threshold.add_(scores.mean())
        return scores > threshold


def test_a_state_that_is_passed_as_an_argument_would_be_noticed(recorder):
    before, step = len(recorder.graphs), Threshold()
    compile_step(step, True)(torch.rand(4))
    compile_step(Threshold(), True)(torch.rand(4), torch.zeros(()))
    kept, passed = recorder.graphs[before:]
    assert len(kept.changed) == len(passed.changed) == 1
    assert kept.changed <= kept.static
    assert not passed.changed <= passed.static


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "proxy", "proxy_size": 8},
        {"gate": "proxy", "proxy_size": 8, "proxy_arch": "tests.nets:tiny"},
        {"gate": "proxy", "thumbnail_side": 8, "unbiased": True},
        {"gate": "forward", "selection": "hard", "significance": "el2n", "explore": 0.1},
    ],
    ids=["proxy", "proxy network", "thumbnails", "hard"],
)
def test_every_gate_keeps_its_state_at_fixed_addresses_and_its_graphs(recorder, changes):
    torch._dynamo.reset()  # older versions compile a few things of a kind in one process, and then no more
    one, num_before = engine(**changes), len(recorder.graphs)
    before = addresses(one)
    for epoch in range(2):
        run_epoch(one, epoch)
    graphs = recorder.graphs[num_before:]
    with torch.compiler.set_stance("fail_on_recompile"):
        for epoch in range(2, 4):
            run_epoch(one, epoch)
    assert recorder.graphs[num_before:] == graphs
    assert len(graphs) > 4
    assert all(graph.changed <= graph.static for graph in graphs)
    assert before == addresses(one)


def test_cuda_graphs_are_refused_without_a_gpu_in_one_line():
    with pytest.raises(InputError, match=r"--compile reduce-overhead: .* --compile on") as caught:
        choose_compile(CPU, "reduce-overhead")
    assert "\n" not in str(caught.value)


def test_compile_is_off_on_cpu_and_says_why():
    assert choose_compile(CPU, "auto")[0] is False
    assert "CPU" in choose_compile(CPU, "auto")[1]
    assert choose_compile(CPU, "on")[0] is True
