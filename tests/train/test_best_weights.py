"""The weights of the best epoch are never lost between the loop and the thread that writes them."""

import threading
from types import SimpleNamespace as Space

import torch

from fastast.config import TrainConfig
from fastast.run_folder import RunFolder
from fastast.session import checkpointer
from fastast.session.checkpointer import Checkpointer


class FakeTrainer:
    """What a `Checkpointer` reads of a trainer."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)
        self.ranks, self.runtime = Space(is_first=True), Space(dtype=torch.float32)
        self.log, self.engine = Space(evaluated=[]), Space(best_weights=self.model.state_dict)
        self.dataset = Space(fingerprint="f", classes=("a", "b"), train=Space(bits=None), val=None)
        self.validation = Space(predictions=Space(merged=lambda ranks: {}))
        self.energy = Space(meter=Space(power_rows=list))
        self.config = TrainConfig()

    def state_dict(self):
        return {}


def test_best_of_a_later_epoch_survives_a_slow_write(tmp_path, monkeypatch):
    folder, trainer = RunFolder(tmp_path), FakeTrainer()
    folder.create()
    written, slow = [], threading.Event()

    def write_best(_, weights, epoch, val_top1, info):
        if epoch == 1:
            slow.wait(5)  # the first write is still under way as the second epoch ends
        written.append(epoch)

    class NoReporter:
        def note(self, line):
            raise AssertionError(line)

    monkeypatch.setattr(checkpointer, "write_best", write_best)
    monkeypatch.setattr(checkpointer, "write_predictions", lambda *_, **of: None)
    saver = Checkpointer(trainer, folder, 0, NoReporter())
    for epoch, top1 in ((1, 0.1), (2, 0.2)):
        trainer.log.evaluated.append((epoch, top1))
        if epoch == 2:
            threading.Timer(0.1, slow.set).start()
        saver.finish_epoch(epoch)
    assert saver.close() is None
    assert written == [1, 2]
    assert saver._best is None
