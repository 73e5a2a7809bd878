"""Peers beside the runs of a bench: same pictures, same accuracy, one file of both, nothing run twice."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import bench_results
from benchmarks.peers import __main__ as command
from benchmarks.peers import one
from benchmarks.peers.pictures import link_pictures
from benchmarks.peers.training import Task, Training
from fastast import cli
from fastast.config import TrainConfig
from fastast.data import open_dataset
from fastast.errors import InputError
from fastast.run_folder import read_json

OPTIONS = "--arch tests.nets:tiny --image-size 32 --batch-size 16 --lr 0.1 --device cpu --precision fp32 --gate dense"
BUDGETS = [{"name": "0.2ep", "kind": "ep", "amount": 0.2}, {"name": "1kJ", "kind": "joules", "amount": 1e3}]


@pytest.fixture(scope="module")
def finished_bench(pictures, tmp_path_factory):
    """The folder of a bench of one dense arm with two seeds, one of its budgets in joules."""
    root = tmp_path_factory.mktemp("bench") / "R"
    runs = []
    for seed in range(2):
        folder = f"runs/seed{seed}"
        words = [*OPTIONS.split(), "--epochs", "0.3", "--seed", str(seed), "--data", str(pictures)]
        assert cli.main(["train", *words, "--out", str(root / folder)]) == 0
        place = {"arm": "dense", "budget": "0.2ep", "seed": seed, "folder": folder}
        runs.append({**place, "summary": read_json(root / folder / "summary.json")})
    bench = {
        **{"schema": 2, "finished": True, "version": "0.1.0", "commit": "abc", "argv": ["bench"]},
        "options": {"arch": "tests.nets:tiny", "image_size": 32},
        **{"hardware": runs[0]["summary"]["hardware"], "budgets": BUDGETS, "seeds": [0, 1], "runs": runs},
        **{"arms": [{"name": name, "options": {"gate": name}} for name in ("dense", "infobatch")]},
        **{"failures": [], "points": [], "paired": [], "cost_at_equal_accuracy": [], "notes": ["a note"]},
        "verdict": {"sentences": [], "winners": []},
    }
    (root / "bench.json").write_text(json.dumps(bench))
    return root


@pytest.fixture
def bench(finished_bench, tmp_path):
    return shutil.copytree(finished_bench, tmp_path / "R")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "adamw"}, "--optimizer adamw"),
        ({"class_weights": "balanced"}, "--class-weights balanced"),
        ({"nproc": "2"}, "--nproc 2"),
        ({"weights": "imagenet", "start": "probe"}, "name each peer's"),
    ],
)
def test_arm_that_the_peers_cannot_be_compared_with_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        command._require_shared(TrainConfig(**changes), tmp_path, {"timm": None})


def test_peers_of_a_probe_may_have_a_learning_rate_each(tmp_path):
    command._require_shared(TrainConfig(weights="imagenet", start="probe"), tmp_path, {"timm": 0.01})


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that the command starts: in this process, but for timm, which fails."""
    names = []

    def start(words, log):
        written, out, began_s = words[-3:]
        names.append(log.parent.name)
        if log.parent.name.endswith("timm"):
            log.write_text("began\nsomething broke\n")
            return 1
        monkeypatch.setattr(one.sys, "argv", ["one", written, out, began_s])
        return one.main()

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(one, "Task", lambda **options: Task(**options | {"workers": 0}))  # starting one takes seconds
    return names


def test_peers_join_the_bench_seed_by_seed_and_none_runs_twice(bench, started, tmp_path, capsys):
    words = [str(bench), "--peers", "torchvision,timm,infobatch"]
    assert command.main(words) == 0
    assert started == [f"seed{seed}-0.2ep-{peer}" for seed in range(2) for peer in words[2].split(",")]
    result, before = read_json(bench / "peers.json"), read_json(bench / "bench.json")
    assert result["runs"][:2] == before["runs"]
    assert [(run["arm"], run["seed"]) for run in result["runs"][2:]] == [
        (arm, seed) for seed in range(2) for arm in ("torchvision", "infobatch (peer)")
    ]
    assert [(arm["name"], arm["options"], arm["peer"]) for arm in result["arms"][2:]] == [
        (name, {"lr": 0.1}, True) for name in ("torchvision", "timm", "infobatch (peer)")
    ]
    assert [(fail["arm"], fail["seed"], fail["reason"]) for fail in result["failures"]] == [
        ("timm", seed, "something broke") for seed in range(2)
    ]
    units = {point["arm"]: point["units"] for point in result["points"]}
    assert units["torchvision"] == 144  # 3 x 0.2 x 240
    assert {(row["arm"], row["against"]) for row in result["paired"]} == {
        ("torchvision", "dense"),
        ("infobatch (peer)", "dense"),
    }
    assert result["verdict"]["sentences"]
    assert "no peer ran with 1kJ: they keep no budget of joules" in result["notes"]
    assert any(note.startswith("torchvision: the loop") for note in result["notes"])
    assert all((bench / run["folder"]).is_dir() for run in result["runs"])
    page = (bench / "peers.html").read_text()
    assert "infobatch (peer)" in page
    assert "something broke" in page
    bench_results.main([str(bench / "peers.json"), "--name", "peers", "--title", "Peers", "--out", str(tmp_path)])
    published = read_json(tmp_path / "peers.json")
    assert published["command"] == "fastast bench && python -m benchmarks.peers R --peers torchvision,timm,infobatch"
    assert len(published["runs"]) == 6
    assert "| torchvision |" in (tmp_path / "peers.md").read_text()

    started.clear()
    command.main([*words, "--lr", "infobatch=0.05"])
    assert started == [f"seed{seed}-0.2ep-{peer}" for seed in range(2) for peer in ("timm", "infobatch")]
    result = read_json(bench / "peers.json")
    assert result["arms"][-1]["options"] == {"lr": 0.05}
    assert len(result["runs"]) == 6


def test_accuracy_is_that_of_fastast_on_the_same_pictures(finished_bench, pictures, tmp_path):
    run = read_json(finished_bench / "bench.json")["runs"][0]
    weights = str(finished_bench / run["folder"] / "model.safetensors")
    data = link_pictures(open_dataset(pictures), tmp_path / run["summary"]["data"]["fingerprint"])
    options = {"arch": "tests.nets:tiny", "image_size": 32, "batch_size": 16, "precision": "fp32", "workers": 0}
    task = Task(peer="torchvision", kind="ep", amount=1.0, seed=0, lr=0.1, data=str(data), weights=weights, **options)
    training = Training(task, 0.0)
    top1, top5 = training.evaluate()
    accuracy = run["summary"]["accuracy"]
    assert training.num_val == 60
    assert top1 == pytest.approx(accuracy["best_val_top1"], abs=1.01 / 60)  # a level of a pixel may decide a picture
    assert 0.35 < top1 < 1
    assert top5 == accuracy["val_top5"] == 1.0
    assert training.work.units == 0


def test_pictures_keep_their_labels_and_order(pictures, tmp_path):
    dataset = open_dataset(pictures)
    out = link_pictures(dataset, tmp_path / "links")
    for split, catalog in (("train", dataset.train), ("val", dataset.val)):
        links = sorted((out / split).glob("*/*"))
        assert [int(link.parent.name) for link in links] == catalog.labels.tolist()
        assert [str(link.resolve()) for link in links] == [catalog.path(k) for k in range(catalog.num_samples)]


def test_pack_is_refused(pictures, tmp_path):
    assert cli.main(["pack", str(pictures), str(tmp_path / "pack")]) == 0
    with pytest.raises(InputError, match="the peers read no packs"):
        link_pictures(open_dataset(tmp_path / "pack"), tmp_path / "links")


def test_what_cannot_be_compared_is_refused(bench, pictures, started, capsys):
    def refused(message, *words, **changes):
        before = read_json(bench / "bench.json")
        (bench / "bench.json").write_text(json.dumps({**before, **changes}))
        with pytest.raises(SystemExit) as end:
            command.main([str(bench), *words])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
        (bench / "bench.json").write_text(json.dumps(before))

    refused("not of schema 2", schema=1)
    refused("has no dense run with seed 5", seeds=[5])
    refused("--peers torch: choose from torchvision", "--peers", "torch")
    refused("--lr timm: give NAME=LR of a peer that runs, for example timm=0.05", "--peers", "timm", "--lr", "timm")
    refused("--lr ast=1: give NAME=LR", "--peers", "timm", "--lr", "ast=1")
    runs = read_json(bench / "bench.json")["runs"]
    runs[0]["summary"]["data"]["fingerprint"] = "other"
    refused("its pictures have changed since", runs=runs)
    assert started == []
