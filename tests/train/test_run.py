"""Whole runs on real JPEG files: the run folder, its counts, repetition, resuming."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.energy.energy_meter import EnergyMeter
from fastast.feed.prefetch import PrefetchLoader
from fastast.gates.lagged_reader import LaggedReader
from fastast.loggers.console import Reporter
from fastast.loggers.counters import total
from fastast.plan.epoch_plan import EpochPlanner
from fastast.run_folder import RunFolder
from fastast.session.checkpointer import Checkpointer
from fastast.session.run_data import open_data
from fastast.train.defaults import complete_config
from fastast.train.run_energy import RunEnergy
from fastast.train.segment_loop import SegmentLoop
from fastast.train.trainer import Trainer
from tests.conftest import ROOT, damaged_png, run_fastast
from tests.nets import tiny
from tests.sync_guard import no_sync

SUMMARY_KEYS = {
    "": "schema version commit seed argv stopped resumes budget probe hardware data model gate samples accuracy time_s "
    "throughput compute energy",
    "hardware": "device names world_size driver torch dali",
    "data": "train val classes quarantined fingerprint bits",
    "model": "arch start params image_size train_sizes precision compiled compile_note train_cost",
    "gate": "name selection target shares activation_rate threshold warmup_epochs",
    "samples": "offered decoded scored selected backward leftover steps nonfinite_steps",
    "accuracy": "val_top1 val_top5 best_val_top1 best_epoch probe_top1 balanced_top1 per_class ema",
    "time_s": "total train eval data_wait",
    "throughput": "offered_per_s backward_per_s dense_offered_per_s steady_offered_per_s steady_dense_offered_per_s",
    "compute": "forward_units dense_forward_units speedup_ceiling",
    "energy": "savings_estimated savings_arithmetic savings_measured run_savings_estimated run_savings_arithmetic "
    "run_savings_measured gpu_j train_gpu_j gpu_j_above_idle cpu_j idle_w dense_j_per_sample gated_j_per_sample "
    "savings_with_cpu conditions limits source notes",
}
STEP_KEYS = (
    "kind epoch phase step offered backward loss lr activation threshold progress train_size offered_per_s data_wait_s "
    "gpu_w"
)
EPOCH_KEYS = (
    "kind epoch phase train_loss val_loss val_top1 val_top5 val_balanced_top1 offered backward forward_units "
    "activation threshold target seconds gpu_j hist"
)


def options(data, out, **changes):
    """A short run as words of the command line; every epoch is evaluated."""
    chosen = {"data": data, "out": out, "arch": "tests.nets:tiny", "image_size": 32, "batch_size": 16, "epochs": 3}
    chosen |= {"gate": "forward", "target": 0.3, "warmup_epochs": 1, "log_every": 1, "lr": 0.05, "eval_every": 0.01}
    chosen |= changes
    return [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), str(value))]


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    names = ("kind", "loss", "train_loss", "val_loss", "threshold")
    return [tuple(map(line.get, names)) for line in lines_of(out)]


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def gated(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "gated"
    assert main(["train", *options(pictures, out)]) == 0
    return out


def test_run_folder_follows_its_contract(gated):
    files = "config.json metrics.jsonl summary.json checkpoints model.safetensors classes.json samples.npz "
    files += "predictions.npz report.html"
    assert {path.name for path in gated.iterdir()} == {*files.split(), "thumbs"}
    assert {path.name for path in (gated / "checkpoints").iterdir()} == {"last.pt", "previous.pt", "best.pt"}
    summary = summary_of(gated)
    for section, keys in SUMMARY_KEYS.items():
        assert set(summary[section] if section else summary) == set(keys.split()), section
    assert summary["schema"] == 1
    assert summary["stopped"] is None
    for line in lines_of(gated):
        assert list(line) == (STEP_KEYS if line["kind"] == "step" else EPOCH_KEYS).split()
    assert json.loads((gated / "classes.json").read_text()) == [f"class_{i}" for i in range(4)]
    assert json.loads((gated / "config.json").read_text())["target"] == 0.3


def test_counts_agree(gated):
    summary = summary_of(gated)
    samples, compute, energy = summary["samples"], summary["compute"], summary["energy"]
    assert samples["offered"] == samples["decoded"] == 3 * 240
    assert samples["scored"] == 2 * 240
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert samples["backward"] == 16 * samples["steps"]
    assert 0 <= samples["leftover"] < 16
    assert compute["forward_units"] == samples["scored"] + 3 * samples["backward"]
    assert compute["dense_forward_units"] == 3 * (samples["offered"] - samples["leftover"])
    rate = summary["gate"]["activation_rate"]
    assert rate == (samples["selected"] - 240) / 480
    assert abs(rate - 0.3) < 0.05 * 0.3 + 1 / 480
    trained = (samples["backward"] - 240) / (480 - samples["leftover"])
    assert energy["savings_estimated"] == pytest.approx(1 - (trained + 0.01 * (1 - trained)))
    assert compute["speedup_ceiling"] == pytest.approx(3 / (1 + 3 * rate))
    assert energy["run_savings_arithmetic"] == pytest.approx(
        1 - compute["forward_units"] / compute["dense_forward_units"]
    )
    assert energy["savings_measured"] is None
    assert energy["gpu_j"] is None
    assert energy["notes"]
    epochs = [line for line in lines_of(gated) if line["kind"] == "epoch"]
    assert [line["phase"] for line in epochs] == ["warmup", "gated", "gated"]
    assert sum(line["backward"] for line in epochs) == samples["backward"]
    assert sum(line["offered"] for line in epochs) == samples["offered"]
    for line in epochs[1:]:
        assert sum(line["hist"]["selected"]) + sum(line["hist"]["skipped"]) == 240
        assert sum(line["hist"]["selected"]) == round(line["activation"] * 240)
    assert epochs[0]["hist"] is None
    assert sum(line["forward_units"] for line in epochs) == summary["compute"]["forward_units"]
    accuracy = summary["accuracy"]
    assert [row["class"] for row in accuracy["per_class"]] == [f"class_{i}" for i in range(4)]
    assert sum(row["count"] for row in accuracy["per_class"]) == summary["data"]["val"]
    assert np.mean([row["top1"] for row in accuracy["per_class"]]) == pytest.approx(accuracy["balanced_top1"])
    assert accuracy["balanced_top1"] == pytest.approx(accuracy["val_top1"])  # as the classes are of one size


def test_samples_npz(gated):
    with np.load(gated / "samples.npz", allow_pickle=False) as table:
        columns = {"id", "label", "path_bytes", "path_starts", "offered", "selected", "last_loss"}
        assert set(table.files) == columns
        summary = summary_of(gated)
        assert (table["offered"] == 3).all()
        assert table["selected"].sum() == summary["samples"]["backward"]
        assert (np.isfinite(table["last_loss"]) == (table["selected"] > 0)).all()
        begin, end = table["path_starts"][:2]
        assert table["path_bytes"][begin:end].tobytes().endswith(b"class_0/0000.jpg")


def test_predictions_of_the_last_evaluation(gated):
    last = [line for line in lines_of(gated) if line["kind"] == "epoch"][-1]
    with np.load(gated / "predictions.npz", allow_pickle=False) as table:
        assert set(table.files) == {"epoch", "label", "predicted", "probability", "path_bytes", "path_starts"}
        assert table["epoch"].tolist() == [last["epoch"]]
        assert (table["predicted"] >= 0).all()
        assert (table["label"] == table["predicted"]).mean() == last["val_top1"]
        assert ((table["probability"] > 0.25) & (table["probability"] <= 1)).all()  # of four classes
        begin, end = table["path_starts"][:2]
        assert table["path_bytes"][begin:end].tobytes().endswith(b"val/class_0/0000.jpg")


def test_network_learns_and_reloads_without_fastast(gated):
    """The four lines of docs/trained-networks.md."""
    summary = summary_of(gated)
    assert summary["accuracy"]["best_val_top1"] > 0.5
    classes = json.loads((gated / "classes.json").read_text())
    model = tiny(num_classes=len(classes))
    model.load_state_dict(safetensors.torch.load_file(gated / "model.safetensors"))
    best = torch.load(gated / "checkpoints" / "best.pt", weights_only=True)
    assert best["epoch"] == summary["accuracy"]["best_epoch"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in best["model"].items())


def test_same_command_gives_same_losses(gated, pictures, tmp_path):
    assert main(["train", *options(pictures, tmp_path / "again", threads=1)]) == 0
    assert losses(tmp_path / "again") == losses(gated)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (gated / "model.safetensors").read_bytes()
    assert main(["train", *options(pictures, tmp_path / "other", seed=1)]) == 0
    assert losses(tmp_path / "other") != losses(gated)


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("forward", {"target": 0.2}),
        ("forward", {"target": 0.2, "unbiased": True, "explore": 0.05}),
        ("forward", {"target": 0.2, "dense_calibration": 20}),
        ("dense", {}),
        ("random", {"target": 0.25}),
        ("memory", {"target": 0.25}),
        ("memory", {"target": 0.25, "unbiased": True}),
        ("memory", {"target": "auto", "significance": "variance"}),
        ("forward", {"target": "auto", "explore": 0.04}),
        ("infobatch", {}),
    ],
)
def test_counted_work_equals_hooks(pictures, tmp_path, gate, changes):
    """Rows that pass the network forward and backward, as hooks on it count them."""
    sizes = {"image_size": 32, "batch_size": 16, "epochs": 2.5, "warmup_epochs": 0.5}
    config = TrainConfig(data=str(pictures), arch="tests.nets:tiny", gate=gate, device="cpu", **sizes, **changes)
    reporter = Reporter()
    dataset, runtime = open_data(config, reporter), open_runtime("cpu")
    complete_config(config, runtime, dataset.train.num_samples)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with EnergyMeter() as meter:
        trainer = Trainer(config, runtime, dataset, folder, RunEnergy(meter), reporter)
        passed = {"forward": 0, "backward": 0}

        def see(module, inputs, logits):
            passed["forward"] += len(inputs[0])
            logits.register_hook(lambda grad: passed.update(backward=passed["backward"] + len(grad)))

        trainer.engine.model.register_forward_hook(see)
        checkpointer = Checkpointer(trainer, folder, 0, reporter)
        trainer.fit(checkpointer)
        assert checkpointer.close() is None
        trainer.close()
    whole, gated = trainer.log.counters.whole, total([trainer.log.counters.gated])
    assert passed == {"forward": whole.backward, "backward": whole.backward}
    assert whole.offered == 600
    assert whole.selected == whole.backward + trainer.log.num_leftover
    num_dense = max(120, 16 * config.dense_calibration)
    assert whole.scored == (600 - num_dense if trainer.gate.scores else 0)
    assert whole.decoded == (whole.selected if trainer.gate.plans else 600)
    share = gated.selected / gated.offered
    if gate == "infobatch":
        assert 0.5 < share < 1
    elif gate == "dense":
        assert share == 1
    elif config.target == "auto":
        shares = [line["target"] for line in trainer.log.epochs]
        assert all(0.05 <= aimed <= 1 for aimed in shares)
        if trainer.gate.plans:  # half of the first epoch is dense, half of the last is offered
            assert gated.selected == sum(round(s * n) for s, n in zip(shares, (120, 240, 120), strict=True))
        else:
            assert min(shares) * 0.9 < share <= 1
    else:
        assert abs(share - config.target) < (0.01 if trainer.gate.plans else 0.05 * config.target + 2 / gated.offered)


@pytest.mark.slow
def test_demo_run(tmp_path):
    done = run_fastast("train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"run folder: runs/{folder.name}" in done.stdout
    assert (folder / "report.html").stat().st_size > 10_000
    assert "savings, measured" in done.stdout
    summary = summary_of(folder)
    assert "the gate's share fell from 100 %" in " ".join(done.stdout.split())
    assert summary["accuracy"]["val_top1"] > 0.9
    assert summary["gate"]["shares"][-1] < 0.3
    assert summary["data"]["quarantined"] == 0


def test_damaged_picture_is_quarantined(pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "train" / "class_1" / "0003.jpg").write_bytes(b"no picture at all")
    whole = (data / "train" / "class_2" / "0005.jpg").read_bytes()
    start = whole.index(b"\xff\xda") + 14
    (data / "train" / "class_2" / "0005.jpg").write_bytes(whole[:start] + whole[-2:])  # entropy data cut out
    out = tmp_path / "run"
    assert main(["train", *options(data, out, epochs=2)]) == 0
    summary = summary_of(out)
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert entries[0]["id"] is None
    assert entries[0]["path"].endswith("class_1/0003.jpg")
    assert summary["data"]["train"] == 239
    assert summary["data"]["quarantined"] == len(entries)
    samples = summary["samples"]
    assert samples["offered"] == 2 * (240 - len(entries))
    assert samples["backward"] + samples["leftover"] == samples["selected"]


def test_buffers_that_are_not_saved(pictures, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, arch="tests.nets:WithConstant", epochs=1)]) == 0
    assert "scale" not in safetensors.torch.load_file(out / "model.safetensors")


def test_diverging_run_names_the_remedy(pictures, tmp_path, capsys):
    assert main(["train", *options(pictures, tmp_path / "run", lr=1e38, gate="dense")]) == 2
    error = capsys.readouterr().err
    assert "10 steps in a row" in error
    assert "--lr" in error


def test_progress_without_a_terminal(pictures, tmp_path):
    done = run_fastast("train", *options(pictures, tmp_path / "run", epochs=1), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert re.search(r"epoch 1/1 warmup: val top-1 \d+\.\d+ %", done.stdout)
    assert "run folder:" in done.stdout


@pytest.mark.parametrize("gate", ["dense", "forward", "memory"])
def test_loop_never_waits_for_the_device(pictures, tmp_path, monkeypatch, gate):
    """Every operator between two epochs' ends; plans and evaluation, outside the loop, may wait."""
    run_segment, plan = SegmentLoop.run, EpochPlanner.plan

    def guarded(self, segment):
        trainer = self.trainer
        plans = {segment: plan(trainer.planner, segment, trainer.loaders.train.bad_ids, trainer.engine.memory)}
        monkeypatch.setattr(EpochPlanner, "plan", lambda planner, segment, *rest: plans[segment])
        with no_sync(LaggedReader._read, PrefetchLoader._collect):
            return run_segment(self, segment)

    monkeypatch.setattr(SegmentLoop, "run", guarded)
    assert main(["train", *options(pictures, tmp_path / "run", gate=gate, epochs=2), "--unbiased"]) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_of_which_nothing_decodes(pictures, tmp_path, capsys, split):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for picture in list((data / split).rglob("*.jpg")):
        picture.with_suffix(".png").write_bytes(damaged_png())
        picture.unlink()
    assert main(["train", *options(data, tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "could be decoded" in error
