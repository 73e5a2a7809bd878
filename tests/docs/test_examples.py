"""The worked examples of docs/: a gate, an augmentation and a logger, run as they stand there."""

from __future__ import annotations

import sys
import types

import numpy as np
import torch

from fastast.cli import main
from fastast.data.dataset import open_folder
from fastast.feed import TrainLoader
from fastast.gates import registry
from fastast.loggers.available import LOGGERS, LoggerEntry, logger_names
from fastast.loggers.console import Reporter
from fastast.loggers.extra_logs import ExtraLogs
from fastast.run_folder import RunFolder
from tests.conftest import ROOT
from tests.docs.pages import blocks, commands
from tests.docs.test_commands import SMALL, SMALL_PICTURES
from tests.feed.helpers import loader_options


def run_block(page, index, names):
    """Runs one of a page's Python blocks with these names, and adds its own."""
    exec(compile(blocks(ROOT / "docs" / page, "python")[index], page, "exec"), names)


def test_gate_trains_every_sample_once_in_four_epochs(pictures, tmp_path, monkeypatch):
    page, module = "add-a-gate.md", types.ModuleType("fastast.gates.cycle")
    run_block(page, 0, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.GATES, "cycle", None)
    run_block(page, 1, {**vars(registry)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenette").symlink_to(pictures)
    (words,) = commands(ROOT / "docs" / page)
    assert main([*words[1:], *SMALL_PICTURES, *SMALL, "--out", "run"]) == 0
    with np.load("run/samples.npz") as samples:
        assert samples["selected"].tolist() == [1] * 240


def test_augmentation_depends_on_seed_epoch_and_id_alone(pictures):
    page, names = "add-an-augmentation.md", {"TrainLoader": TrainLoader, "torch": torch}
    catalog = open_folder(pictures / "train").take(np.arange(12))
    names["ids"] = np.arange(12)
    names["make_loader"] = lambda kind, batch_size: kind(catalog, loader_options(batch_size=batch_size), seed=3)
    for index in range(3):
        run_block(page, index, names)
    assert len(names["whole"]) == 12


def test_logger_keeps_the_best_accuracy(tmp_path, monkeypatch):
    page, module = "add-a-logger.md", types.ModuleType("fastast.loggers.best_file")
    run_block(page, 0, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(LOGGERS, "best", None)
    run_block(page, 1, {"LOGGERS": LOGGERS, "LoggerEntry": LoggerEntry})
    folder = RunFolder(tmp_path)
    with ExtraLogs(logger_names("best"), folder, {}, Reporter()):
        for top1 in (0.5, None, 0.4):
            folder.append_metrics({"kind": "epoch", "offered": 8, "val_loss": 1.0, "val_top1": top1, "val_top5": top1})
    assert (tmp_path / "best.txt").read_text() == "0.5000\n"
