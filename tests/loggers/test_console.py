"""The verdict of a run."""

import io

import pytest
from rich.console import Console

from fastast.loggers import console as module
from fastast.loggers.console import Reporter, verdict


def test_verdict_says_that_the_gate_never_ran():
    """It showed "0 offered/s in the gated part" and nothing else."""
    summary = {
        "model": {"arch": "resnet18"},
        "gate": {"name": "forward", "activation_rate": None, "target": 0.1, "warmup_epochs": 1.0},
        "accuracy": {"val_top1": 0.5, "val_top5": 1.0, "best_val_top1": 0.5, "best_epoch": 1},
        "samples": {"offered": 40, "backward": 40, "nonfinite_steps": 0},
        "compute": {"speedup_ceiling": None},
        "energy": {"gpu_j": None, "notes": []}
        | {f"{run}savings_{name}": None for run in ("", "run_") for name in ("estimated", "arithmetic", "measured")},
        "throughput": {"offered_per_s": None},
        "time_s": {"total": 3.0, "train": 1.5, "eval": 1.0},
        "data": {"quarantined": 0},
    }
    for gate, words in (
        ("forward", "never ran: dense warm-up took 1 epochs"),
        ("dense", "dense training"),
    ):
        summary["gate"]["name"] = gate
        console = Console(file=io.StringIO(), width=200)
        console.print(verdict(summary))
        printed = console.file.getvalue()
        assert words in printed
        assert "offered/s" not in printed


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_plain_terminal_gets_plain_lines(monkeypatch, environment):
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    for name in ("TERM", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", out)
    reporter = Reporter()
    scan = reporter.counter("scanning")
    for done in (1, 2):
        scan(done, 2)
    reporter.begin("training", 1.0)
    reporter.advance(0.5, "epoch 1")
    reporter.end()
    reporter.next("fastast doctor")
    assert out.getvalue() == "scanning: 1 of 2\nscanning: 2 of 2\nepoch 1\nnext: fastast doctor\n"
