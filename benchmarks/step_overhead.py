"""What gating costs beyond the network's own forward, as a share of a dense step.

    python -m benchmarks.step_overhead [--arch resnet18] [--image-size 64] [--batch-size 64] [--rounds 30] [--out FILE]

Each round times, in turn, the eval-mode forward alone, the whole score step (forward, significance, controller, queue)
and a dense training step, so that a drifting machine affects all three alike. Overhead = (score step - forward) / dense
step, from the medians; the goal is under 3 % for ResNet-18 at 64 px on CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.common import make_parser, provenance, publish
from fastast.engine.optimizer import GuardedStep, build_optimizer
from fastast.engine.steps import Objective, ScoreStep, TrainStep, logits_of
from fastast.gates.queue import SampleQueue
from fastast.gates.score_memory import ScoreMemory
from fastast.gates.selector import Selector
from fastast.models.build import build_model, scoring_twin


def main() -> None:
    parser = make_parser("benchmarks.step_overhead", __doc__, table=False)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = torch.device("cpu")
    torch.manual_seed(args.seed)
    size, batch = args.image_size, args.batch_size
    model, _ = build_model(args.arch, 10)
    model.train()
    twin = scoring_twin(model)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=1e-4)
    guard = GuardedStep(model, optimizer, scale_loss=False, compiled=False)
    guard.set_lr(0.01)
    queue, gated_queue = (SampleQueue(batch, (3, size, size), device=device) for _ in range(2))
    score = ScoreStep(twin, Selector(0.1), gated_queue, dtype=torch.float32)
    objective = Objective(model, dtype=torch.float32, label_smoothing=0.1, compiled=False)
    train = TrainStep(objective, guard, ScoreMemory(batch))
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels, ids = torch.randint(0, 10, (batch,)), torch.arange(batch)
    valid, epoch = torch.ones(batch, dtype=torch.bool), torch.zeros((), dtype=torch.int64)

    def forward_alone() -> None:
        with torch.no_grad():
            logits_of(twin, images, torch.float32)

    def score_step() -> None:
        score(images, labels, ids, valid, epoch)
        gated_queue.pushed.zero_()  # nothing pops here, so start over

    def dense_step() -> None:
        queue.push(images, labels, ids, valid)
        train(queue.pop())

    seconds: dict[Callable[[], None], list[float]] = {forward_alone: [], score_step: [], dense_step: []}
    for round_number in range(args.rounds + 3):  # three to warm up
        for run, times in seconds.items():
            began = time.perf_counter()
            run()
            if round_number >= 3:
                times.append(time.perf_counter() - began)
    forward_s, score_s, dense_s = (statistics.median(times) for times in seconds.values())
    publish(
        {
            **provenance(device),
            **{key: getattr(args, key) for key in ("arch", "image_size", "batch_size", "seed")},
            "n": args.rounds,
            "forward_ms": forward_s * 1e3,
            "score_step_ms": score_s * 1e3,
            "dense_step_ms": dense_s * 1e3,
            "overhead_share_of_dense_step": (score_s - forward_s) / dense_s,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
