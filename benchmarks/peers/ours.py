"""fastast by its own command, its network counted as everyone's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn

from benchmarks.peers.setting import Setting, Work, outcome
from fastast import cli
from fastast.models.build import build_model
from fastast.run_folder import RunFolder
from fastast.train import engine
from fastast.train.steps import EvalStep

WARMUP_EPOCHS = 1

_work: Work
_arch: str


def counted_network(num_classes: int) -> nn.Module:
    """The run's network, counted: for `--arch`."""
    return _work.count(build_model(_arch, num_classes)[0])


def run_ours(setting: Setting, gate: str) -> dict[str, Any]:
    """Runs `fastast train` in this process; returns the run's figures.

    Raises:
        RuntimeError: the run failed.
    """
    global _work, _arch
    _work, _arch = Work(setting.image_size), setting.arch
    with tempfile.TemporaryDirectory(prefix="fastast-peers-") as out:
        words = ["train", "--data", setting.data, "--out", f"{out}/run", "--arch", f"{__name__}:counted_network"]
        values = {
            "image-size": setting.image_size,
            "epochs": setting.epochs,
            "batch-size": setting.batch_size,
            "lr": setting.lr,
            "label-smoothing": 0,
            "gate": gate,
            "target": setting.target,
            "warmup-epochs": WARMUP_EPOCHS,
            "seed": setting.seed,
            "device": "cpu",
            "precision": "fp32",
        }
        words += [word for name, value in values.items() for word in (f"--{name}", str(value))]
        # Neither evaluation nor the look at whether the network takes such pictures is training.
        with (
            mock.patch.object(EvalStep, "forward", _work.paused()(EvalStep.forward)),
            mock.patch.object(engine, "check_fits", _work.paused()(engine.check_fits)),
        ):
            code = cli.main(words)
        summary = RunFolder(Path(out, "run")).finished_summary()
    if code or summary is None:
        raise RuntimeError(f"fastast {' '.join(words)}: exit code {code}")
    return outcome(
        setting,
        _work,
        top1=summary["accuracy"]["val_top1"],
        seconds=summary["time_s"]["train"],
        offered=summary["samples"]["offered"],
        claim=f"{summary['compute']['forward_units']:,.0f} units"
        + (f", {summary['gate']['activation_rate']:.1%} active" if gate != "dense" else ""),
    )
