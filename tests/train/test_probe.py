"""`--start probe`: the head fits before the first step, the gate knows what to choose, and a stop changes nothing."""

import json
import os
import re
import signal
from contextlib import closing

import numpy as np
import pytest
import torch
import torchvision

from benchmarks.robustness.crash_test import differences
from fastast.cli import main
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.distributed.ranks import Ranks
from fastast.engine.steps import balanced_weights
from fastast.errors import InputError
from fastast.feed import Batch
from fastast.gates.memory import label_probability
from fastast.models import feature_store
from fastast.models.feature_store import FeatureStore
from fastast.models.head import Head
from fastast.models.linear_probe import NUM_FOLDS, as_trained, collect, fit_probe, folds_of
from fastast.run_folder import RunFolder
from fastast.signals import StopRequest
from fastast.train.defaults import complete_config
from fastast.train.probe import RunProbe
from fastast.train.validation import Validation
from tests.distributed.rank_processes import RankProcesses, command, train
from tests.nets import tiny
from tests.stops import stopping_at
from tests.train.test_run import lines_of, options, summary_of

NUM_TRAIN, CLASSES = 240, 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for seven other classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "other.pt"
    torch.save(tiny(7).state_dict(), path)
    return path


def probed(data, out, weights, **changes):
    """A run that starts from the weights, as words of the command line."""
    chosen = {"weights": weights, "gate": "memory", "target": "auto", "epochs": 1.5, "lr": 0.001, **changes}
    words = options(data, out, **chosen)
    place = words.index("--warmup-epochs")
    return words[:place] + words[place + 2 :]


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory, weights):
    out = tmp_path_factory.mktemp("runs") / "probed"
    assert main(["train", *probed(pictures, out, weights)]) == 0
    return out


def test_probe_is_the_default_for_other_classes_and_replaces_the_warmup(run):
    summary, config = summary_of(run), json.loads((run / "config.json").read_text())
    assert (config["start"], config["warmup_epochs"], config["freeze_bn"]) == ("probe", 0.0, "auto")
    assert summary["model"]["start"] == "probe"
    probe = summary["probe"]
    assert probe["val_top1"] == summary["accuracy"]["probe_top1"] > 0.4  # by chance 0.25
    assert probe["pictures"] == NUM_TRAIN
    assert summary["gate"]["warmup_epochs"] == 0
    assert 0 < summary["gate"]["shares"][0] < 1
    assert {line["phase"] for line in lines_of(run)} == {"gated"}


def test_work_of_the_probe_is_counted(run):
    summary = summary_of(run)
    probe, compute = summary["probe"], summary["compute"]
    assert probe["forward_units"] == NUM_TRAIN + probe["fit_units"]
    assert probe["fit_units"] > 0
    assert compute["forward_units"] == pytest.approx(probe["forward_units"] + 3 * summary["samples"]["backward"])
    saved = 1 - compute["forward_units"] / compute["dense_forward_units"]
    assert summary["energy"]["run_savings_arithmetic"] == pytest.approx(saved)


def test_remembered_losses_are_those_of_unseen_pictures(run):
    samples = np.load(run / "samples.npz")
    assert np.isfinite(samples["last_loss"]).all()
    assert (samples["selected"] == 0).any()


def test_fine_tuning_that_spoils_the_probe_leaves_its_weights(pictures, tmp_path, weights, capsys):
    out = tmp_path / "run"
    assert main(["train", *probed(pictures, out, weights, lr=30, freeze_bn="off", gate="dense", target=1)]) == 0
    accuracy = summary_of(out)["accuracy"]
    assert accuracy["val_top1"] < accuracy["best_val_top1"] == accuracy["probe_top1"]
    assert accuracy["best_epoch"] == torch.load(out / "checkpoints" / "best.pt")["epoch"] == 0
    assert "fine-tuning did not improve on it" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_budget_pays_for_the_probe_and_the_training_still_decays(pictures, tmp_path, weights):
    out = tmp_path / "run"
    words = probed(pictures, out, weights, batch_size=4)
    place = words.index("--epochs")
    words[place : place + 2] = ["--budget", "4ep"]
    assert main(["train", *words]) == 0
    summary, steps = summary_of(out), [line for line in lines_of(out) if line["kind"] == "step"]
    assert abs(summary["compute"]["forward_units"] - 4 * 3 * NUM_TRAIN) <= 3 * 4
    assert steps[0]["progress"] < 0.05
    assert steps[-1]["progress"] > 0.98


def test_budget_that_the_probe_takes_is_refused_with_what_works(pictures, tmp_path, weights, capsys):
    out = tmp_path / "run"
    words = probed(pictures, out, weights, batch_size=2, gate="dense", target=1)
    place = words.index("--epochs")
    words[place : place + 2] = ["--budget", "1ep"]
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "the probe takes" in error
    assert not out.exists()  # nothing was trained, nor read
    words[place : place + 2] = re.search("--budget [0-9.]+ep(?=, or --start random)", error)[0].split()
    assert main(["train", *words]) == 0
    assert summary_of(out)["samples"]["steps"] >= 100


@pytest.fixture
def appended(monkeypatch):
    """Of each batch of features that is read, how many there are."""
    append, seen = FeatureStore.append, []

    def counted(self, features, ids):
        append(self, features, ids)
        seen.append(len(ids))

    monkeypatch.setattr(FeatureStore, "append", counted)
    return seen


@pytest.mark.parametrize("host_bytes", [1 << 30, 0], ids=["memory", "file"])
def test_resumed_probe_equals_undisturbed_run(pictures, tmp_path, monkeypatch, weights, run, appended, host_bytes):
    """Stops among the features, in the regression, in the evaluation of its head, and in training."""
    parts = tmp_path / "parts"
    monkeypatch.setattr(feature_store, "HOST_BYTES", host_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", stopping_at([7, 60, 102, 4]))
        codes = [main(["train", *probed(pictures, parts, weights), "--resume"]) for _ in range(5)]
    assert codes == [128 + signal.SIGUSR1] * 4 + [0]
    assert sum(appended) == NUM_TRAIN  # none was read twice
    assert list(parts.glob("checkpoints/features*")) == []
    assert differences(RunFolder(parts), RunFolder(run)) == []


def test_killed_probe_goes_on_from_its_last_checkpoint(pictures, tmp_path, monkeypatch, weights, run, appended):
    out = tmp_path / "run"
    words = probed(pictures, out, weights, checkpoint_every=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(RunProbe, "_spent", lambda self: 1 / 0 if len(appended) == 9 else {"seconds": 1.0, "gpu_j": None})
        with pytest.raises(ZeroDivisionError):
            main(["train", *words])
    assert main(["train", *words, "--resume"]) == 0
    assert sum(appended) == NUM_TRAIN + appended[8]
    assert summary_of(out)["probe"]["seconds"] > 1
    assert np.array_equal(*(np.load(each / "samples.npz")["last_loss"] for each in (out, run)))


def test_head_outlasts_a_kill_in_its_evaluation(pictures, tmp_path, monkeypatch, weights, run, appended):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["train", *probed(pictures, out, weights)])
    assert main(["train", *probed(pictures, out, weights), "--resume"]) == 0
    assert sum(appended) == NUM_TRAIN
    assert differences(RunFolder(out), RunFolder(run)) == []


def test_two_ranks_probe_as_one(pictures, tmp_path, weights, run):
    out = tmp_path / "ranks"
    words = probed(pictures, out, weights, batch_size=8, threads=1, epochs=0.3)
    assert train(tmp_path, 2, [*words, "--max-time", "0.001s"]) == [3, 3]
    assert len(list(out.glob("checkpoints/features-?-of-2-*.bin"))) == 2
    assert train(tmp_path, 2, [*words, "--max-time", "1h", "--resume"]) == [0, 0]
    ours, alone = summary_of(out)["probe"], summary_of(run)["probe"]
    assert (ours["pictures"], ours["penalty"]) == (alone["pictures"], alone["penalty"])
    assert ours["held_out_loss"] == pytest.approx(alone["held_out_loss"], abs=1e-3)
    assert ours["val_top1"] == pytest.approx(alone["val_top1"], abs=0.02)


def no_room_on_rank_1():
    """Its features cannot be saved."""
    if os.environ["RANK"] == "1":
        FeatureStore.save = lambda self: 0


def test_probe_goes_on_from_the_features_that_all_ranks_have_saved(pictures, tmp_path, weights):
    words = probed(pictures, tmp_path / "run", weights, batch_size=8, threads=1, epochs=0.3)
    with RankProcesses(tmp_path, 2, command, [*words, "--max-time", "0.001s"], no_room_on_rank_1) as ranks:
        assert ranks.codes() == [3, 3]
    assert train(tmp_path, 2, [*words, "--max-time", "1h", "--resume"]) == [0, 0]
    assert summary_of(tmp_path / "run")["probe"]["pictures"] == NUM_TRAIN


def test_random_start_keeps_the_published_warmup(pictures, tmp_path, weights):
    out = tmp_path / "run"
    assert main(["train", *probed(pictures, out, weights, start="random")]) == 0
    summary = summary_of(out)
    assert (summary["probe"], summary["model"]["start"], summary["accuracy"]["probe_top1"]) == (None, "random", None)
    assert summary["gate"]["warmup_epochs"] == 1


def test_probe_without_weights_is_refused(pictures, tmp_path, capsys):
    assert main(["train", *probed(pictures, tmp_path / "run", weights="none", start="probe")]) == 2
    assert "--start probe: needs --weights" in capsys.readouterr().err


def test_network_without_a_head_to_fit_starts_at_random_unless_a_probe_was_asked_for(pictures, tmp_path, capsys):
    weights, out = tmp_path / "squeezenet.pt", tmp_path / "run"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), weights)
    words = [*probed(pictures, out, weights, arch="squeezenet1_1"), "--max-time", "0.001s"]
    assert main(["train", *words, "--start", "probe"]) == 2
    assert "use --start random" in capsys.readouterr().err
    assert not out.exists()  # the same command with the remedy works
    assert main(["train", *words]) == 3
    assert "--start random: squeezenet1_1 does not end in a linear layer" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["start"], config["warmup_epochs"]) == ("random", 1)


def test_start_is_settled_by_the_weights():
    assert TrainConfig().start == "random"
    assert TrainConfig(weights="imagenet").start is None  # the classes will tell
    probed = TrainConfig(weights="imagenet", start="probe")
    assert (probed.warmup_epochs, probed.keeps_statistics) == (0, True)
    assert not TrainConfig(weights="imagenet", start="probe", freeze_bn="off").keeps_statistics


def test_options_must_go_with_the_warmup_that_follows_from_the_start():
    runtime, half = open_runtime("cpu"), TrainConfig(weights="imagenet", epochs=0.5)
    complete_config(half, runtime, NUM_TRAIN, new_head=True)
    with pytest.raises(InputError, match="--warmup-epochs 1"):
        complete_config(TrainConfig(weights="imagenet", epochs=0.5), runtime, NUM_TRAIN)


def test_classes_weigh_in_the_regression_as_in_the_training():
    """At the optimum the mean probability of a class is its share, which the weights make equal."""
    torch.manual_seed(0)
    head, counts = Head(tiny(3), "tiny"), np.array([60, 30, 10])
    labels, images = torch.arange(3).repeat_interleave(torch.from_numpy(counts)), torch.rand(100, 3, 32, 32)
    batch = Batch(images + 0.1 * labels[:, None, None, None], labels, torch.arange(100), labels >= 0, 100)

    def mean_probability(class_weights):
        folds = torch.from_numpy(folds_of(labels.numpy(), 0))
        with closing(FeatureStore(100, head.layer.in_features, labels, folds)) as store:
            collect(store, head, [batch], lambda network, pictures: network(pictures), lambda: None)
            found = fit_probe(store, class_weights, 100, Ranks(), max)
        weight, bias = found.head
        probability = torch.softmax(head.features(batch.images).detach() @ weight + bias, 1)
        return (class_weights[labels] / class_weights[labels].sum()) @ probability

    balanced = torch.from_numpy(balanced_weights(counts))
    torch.testing.assert_close(mean_probability(torch.ones(3)), torch.tensor([0.6, 0.3, 0.1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(mean_probability(balanced), torch.full((3,), 1 / 3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gate_reads_the_probability_of_the_probe(smoothing):
    p = torch.tensor([1e-6, 0.2, 0.9, 1 - 1e-6, torch.nan])
    losses = as_trained(-p.log(), smoothing, CLASSES).double().numpy()
    seen, _ = label_probability(losses[:4], smoothing, CLASSES)
    np.testing.assert_allclose(seen, p[:4], atol=1e-5)
    assert np.isnan(losses[4])


def test_folds_are_stratified():
    labels = np.arange(40) % 5 // 2
    folds = folds_of(labels, 3)
    assert (np.bincount(folds) == 40 // NUM_FOLDS).all()
    counts = [np.bincount(labels[folds == fold], minlength=3) for fold in range(NUM_FOLDS)]
    assert np.ptp(counts, axis=0).max() <= 1
    assert (folds_of(labels, 4) != folds).any()
