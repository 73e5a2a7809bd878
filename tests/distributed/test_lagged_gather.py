"""The hosts exchange one vector a batch, one batch late, and none waits for another within an epoch."""

import torch.distributed as dist

from fastast.cli import main
from fastast.distributed.lagged_gather import LaggedGather
from fastast.distributed.ranks import Ranks
from fastast.train.segment_loop import SegmentLoop
from tests.distributed.rank_processes import results, with_ranks
from tests.train.test_run import options


def push_three(ranks):
    gather = LaggedGather(ranks)
    rows = [gather.push((float(number), float(ranks.rank))) for number in range(3)]
    return [None if row is None else row.tolist() for row in (*rows, gather.flush(), gather.flush())]


def test_vectors_come_one_push_late(tmp_path):
    expected = [None, *([[float(number), rank] for rank in (0.0, 1.0)] for number in range(3)), None]
    assert results(tmp_path, 2, with_ranks, push_three) == [expected, expected]


def test_one_rank_has_no_lag():
    gather = LaggedGather(Ranks())
    assert gather.push((1.0, 2.0)).tolist() == [[1.0, 2.0]]
    assert gather.flush() is None


def count_collectives(arguments):
    """Trains; returns the host's blocking collectives in each segment of an epoch, and its batches."""
    counts, all_reduce, all_gather = [], dist.all_reduce, dist.all_gather_into_tensor
    run_segment, offer = SegmentLoop.run, SegmentLoop._offer

    def counted(function):
        def call(*args, **options):
            if counts and not options.get("async_op"):
                counts[-1][function.__name__] = counts[-1].get(function.__name__, 0) + 1
            return function(*args, **options)

        return call

    def counted_segment(self, *args):
        counts.append({})
        return run_segment(self, *args)

    def counted_offer(self, *args):
        counts[-1]["batches"] = counts[-1].get("batches", 0) + 1
        return offer(self, *args)

    dist.all_reduce, dist.all_gather_into_tensor = counted(all_reduce), counted(all_gather)
    SegmentLoop.run, SegmentLoop._offer = counted_segment, counted_offer
    assert main(["train", *arguments]) == 0
    return counts


def test_a_batch_blocks_on_the_device_report_alone(pictures, tmp_path):
    arguments = options(pictures, tmp_path / "run", batch_size=4, gate="forward", epochs=2)
    for counts in results(tmp_path, 2, count_collectives, arguments):
        for segment in counts:
            assert segment["batches"] == 30
            assert segment["all_gather_into_tensor"] <= segment["batches"] + 1  # and one to merge quarantines
            assert segment["all_reduce"] < 24  # all at the end: memory, quarantine, evaluation
