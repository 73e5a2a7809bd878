"""The parts of training, timed on a real network and real pictures."""

import json

import pytest

from fastast.bench import probe
from fastast.bench.runner import Runner
from fastast.bench.statistics import machine_ceiling
from tests.bench.fake_runs import PARTS
from tests.conftest import ROOT

OPTIONS = {"arch": "tests.nets:tiny", "image_size": 32, "batch_size": 16, "lr": 0.05, "device": "cpu", "target": 0.3}


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "WARMUP_ROUNDS", 1)


def test_parts_of_each_gate(pictures, one_round):
    found = probe.measure_parts({**OPTIONS, "data": str(pictures)}, ["random", "forward", "infobatch"])
    assert set(found) == {"dense", "random", "forward", "infobatch"}
    for parts in found.values():
        assert set(parts) == set(PARTS)
        assert 0 < parts["train_s"] < 1
        assert 0 < parts["decode_s"] < 1
    forward = found["forward"]  # scores and decodes every offered sample
    assert forward["score_s"] > 0
    assert (forward["decode_all_s"], forward["decode_selected_s"]) == (forward["decode_s"], 0)
    for gate in ("random", "infobatch"):  # read only the chosen samples
        assert found[gate]["score_s"] == found[gate]["decode_all_s"] == 0
        assert found[gate]["decode_selected_s"] == found[gate]["decode_s"]
        assert machine_ceiling(found[gate], 0.25) == pytest.approx(4)
    assert machine_ceiling(found["dense"], 1.0) == pytest.approx(1)


def test_probe_writes_parts_or_one_line(tmp_path, pictures, one_round, capsys):
    asked, result = tmp_path / "asked.json", tmp_path / "result.json"
    asked.write_text(json.dumps({"options": {**OPTIONS, "data": str(pictures)}, "gates": ["memory"]}))
    assert probe.main(str(asked), str(result)) == 0
    assert set(json.loads(result.read_text())) == {"dense", "memory"}
    asked.write_text(json.dumps({"options": {**OPTIONS, "data": str(tmp_path / "absent")}, "gates": ["memory"]}))
    assert probe.main(str(asked), str(result)) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.slow
def test_probe_in_a_process(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parts, reason = Runner(tmp_path, {**OPTIONS, "data": str(pictures)}).probe(["forward"])
    assert reason is None
    assert set(parts) == {"dense", "forward"}
    parts, reason = Runner(tmp_path, {**OPTIONS, "data": "absent"}).probe(["forward"])
    assert parts is None
    assert "absent" in reason
