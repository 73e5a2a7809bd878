"""Two ranks with half the batch each train what one does with all of it."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.distributed.ranks import Ranks
from fastast.engine.engine import Engine
from fastast.engine.optimizer import GuardedStep
from fastast.feed import Batch
from fastast.gates.queue import SampleQueue
from tests.distributed.rank_processes import plain, results, train, with_ranks
from tests.train.test_run import lines_of, options, summary_of

BATCH, SIDE, NUM_STEPS = 32, 16, 25
SMOOTHING = 0.1


def plain_options(data, out, **changes):
    return options(data, out, **{"arch": "tests.distributed.rank_processes:plain", "precision": "fp32", **changes})


@pytest.mark.parametrize(
    "changes",
    [{"gate": "dense", "train_size": "16:32", "ema": "auto"}, {"gate": "forward", "target": 1.0, "warmup_epochs": 0.2}],
    ids=["dense", "forward"],
)
def test_two_ranks_with_half_the_batch_train_the_same_weights(pictures, tmp_path, changes):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", *plain_options(pictures, one, batch_size=16, epochs=2, **changes)]) == 0
    assert train(tmp_path, 2, plain_options(pictures, two, batch_size=8, epochs=2, **changes)) == [0, 0]
    weights, others = (safetensors.torch.load_file(out / "model.safetensors") for out in (one, two))
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-6)
    for line, other in zip(lines_of(one), lines_of(two), strict=True):
        for name, value in line.items():
            if name in ("loss", "train_loss", "val_loss") and value is not None:
                assert other[name] == pytest.approx(value, rel=1e-4), name
            elif name not in ("offered_per_s", "data_wait_s", "seconds", "threshold"):
                assert other[name] == value, name
    ours, theirs = (summary_of(out) for out in (one, two))
    for part in ("data", "samples", "accuracy", "compute", "model"):
        assert ours[part] == theirs[part]
    assert (ours["hardware"]["world_size"], theirs["hardware"]["world_size"]) == (1, 2)
    assert theirs["hardware"]["names"] == 2 * ours["hardware"]["names"]
    for name in ("offered", "selected", "last_loss"):
        first, second = (np.load(out / "samples.npz")[name] for out in (one, two))
        np.testing.assert_allclose(second, first, rtol=1e-4, err_msg=name)
    for name in ("predicted", "probability"):
        first, second = (np.load(out / "predictions.npz")[name] for out in (one, two))
        np.testing.assert_allclose(second, first, rtol=1e-3, err_msg=name)


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 3, (BATCH,), generator=generator)
    valid = torch.arange(BATCH) % (BATCH // 2) < (BATCH // 2 - 3 if step % 6 == 4 else BATCH)
    return images, labels, torch.arange(BATCH) + step * BATCH, valid


def scoring_engine(ranks):
    chosen = {"image_size": SIDE, "batch_size": BATCH // ranks.size, "lr": 0.1, "target": 0.3, "epochs": 2}
    config, num_train = TrainConfig(arch="tests.nets:tiny", gate="forward", **chosen), (NUM_STEPS + 1) * BATCH
    runtime = open_runtime("cpu", "fp32")
    engine = Engine(config, runtime, weights="none", num_classes=3, num_train=num_train, ranks=ranks)
    engine.model.eval()
    return engine


def decisions(ranks):
    """Of each batch: the ids that this rank selects of its part, slip, log threshold and totals afterwards."""
    # Each rank would start from the scores of its own first batch: all start from one that had the whole.
    start, engine = scoring_engine(Ranks()), scoring_engine(ranks)
    images, labels, ids, valid = global_batch(0)
    start.score(Batch(images, labels, ids, valid, BATCH))
    engine.selector.load_state_dict(start.selector.state_dict())
    engine.score_step.totals.copy_(start.score_step.totals)
    size = BATCH // ranks.size
    found, mine = [], slice(ranks.rank * size, (ranks.rank + 1) * size)
    for step in range(1, NUM_STEPS + 1):
        images, labels, ids, valid = (part[mine] for part in global_batch(step))
        before = int(engine.queue.pushed)
        engine.score(Batch(images, labels, ids, valid, int(valid.sum())))
        places = torch.arange(before, int(engine.queue.pushed)) % engine.queue.capacity
        engine.gather_status()
        engine.queue.popped.copy_(engine.queue.pushed)  # nothing is trained here
        selected, controller = engine.queue.ids[places].tolist(), engine.selector.controller
        totals = engine.score_step.totals.tolist()
        found.append((selected, float(controller.slip), float(controller.log_threshold), totals))
    return found


def test_the_same_scores_give_the_same_mask(tmp_path):
    one = decisions(Ranks())
    first, second = results(tmp_path, 2, with_ranks, decisions)
    for whole, left, right in zip(one, first, second, strict=True):
        assert left[0] + right[0] == whole[0]
        assert left[1] == right[1] == whole[1] == 0.0  # the limiter works on each rank's own rows
        assert left[2] == right[2] == pytest.approx(whole[2], abs=1e-4)
        assert left[3] == right[3] == pytest.approx(whole[3], rel=1e-4, abs=1e-4)
    assert sum(len(whole[0]) for whole in one) > 0.2 * NUM_STEPS * BATCH


def record_steps(arguments):
    """Trains; returns of each step the parameters before, this rank's rows and the gradient that was applied."""
    steps, pop, backward_and_step = [], SampleQueue.pop, GuardedStep.backward_and_step

    def pop_and_keep(queue):
        rows = pop(queue)
        steps.append({"rows": tuple(part.clone() for part in rows)})
        return rows

    def step_and_keep(guard, loss):
        parameters = guard._parameters_list
        steps[-1]["before"] = [p.detach().clone() for p in parameters]

        def keep(*_):
            steps[-1]["gradient"] = [p.grad.clone() for p in parameters]

        handle = guard.optimizer.register_step_pre_hook(keep)
        try:
            return backward_and_step(guard, loss)
        finally:
            handle.remove()

    SampleQueue.pop, GuardedStep.backward_and_step = pop_and_keep, step_and_keep
    assert main(["train", *arguments]) == 0
    return steps


def test_each_gradient_is_that_of_the_mean_loss_over_all_ranks(pictures, tmp_path):
    arguments = plain_options(pictures, tmp_path / "run", batch_size=8, label_smoothing=SMOOTHING, epochs=2)
    ranks = results(tmp_path, 2, record_steps, [*arguments, "--unbiased"])
    assert len(ranks[0]) == len(ranks[1]) > 15
    network = plain(4)
    parameters = [p for p in network.parameters() if p.ndim > 1] + [p for p in network.parameters() if p.ndim <= 1]
    all_weights = set()
    for step, other in zip(*ranks, strict=True):
        images, labels, ids, weights = map(torch.cat, zip(step["rows"], other["rows"], strict=True))
        assert len(ids.unique()) == 16
        for p, ours, theirs in zip(parameters, step["before"], other["before"], strict=True):
            assert torch.equal(ours, theirs)
            p.data.copy_(ours)
        losses = F.cross_entropy(network(images), labels, reduction="none", label_smoothing=SMOOTHING)
        expected = torch.autograd.grad((losses * weights).mean(), parameters)
        for ours, theirs, gradient in zip(step["gradient"], other["gradient"], expected, strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-6)
        all_weights.update(weights.tolist())
    assert len(all_weights) > 16
