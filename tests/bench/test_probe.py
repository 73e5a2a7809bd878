"""The parts of training, timed on a real network and real pictures."""

import json

import pytest

from fastast.bench import probe
from fastast.bench.rows import machine_ceiling
from fastast.bench.runs import Runner
from fastast.packing.packer import run_pack
from tests.bench.made import PARTS
from tests.conftest import ROOT

OPTIONS = {"arch": "tests.nets:tiny", "image_size": 32, "batch_size": 16, "lr": 0.05, "device": "cpu", "target": 0.3}


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "SETTLING_ROUNDS", 1)


def test_each_gate_pays_for_what_it_does(pictures, one_round):
    found = probe.measure_parts({**OPTIONS, "data": str(pictures)}, ["random", "forward", "proxy", "infobatch"])
    assert set(found) == {"dense", "random", "forward", "proxy", "infobatch"}
    for parts in found.values():
        assert set(parts) == set(PARTS)
        assert 0 < parts["train_s"] < 1
        assert 0 < parts["decode_s"] < 1
    for gate in ("forward", "proxy"):  # they score and decode all that is offered
        parts = found[gate]
        assert parts["score_s"] > 0
        assert (parts["decode_all_s"], parts["decode_selected_s"]) == (parts["decode_s"], 0)
    for gate in ("random", "infobatch"):  # they read only what they chose
        assert found[gate]["score_s"] == found[gate]["decode_all_s"] == 0
        assert found[gate]["decode_selected_s"] == found[gate]["decode_s"]
        assert machine_ceiling(found[gate], 0.25) == pytest.approx(4)
    assert machine_ceiling(found["dense"], 1.0) == pytest.approx(1)


def test_thumbnails_are_decoded_for_all_and_pictures_for_the_selected(pictures, tmp_path, one_round):
    run_pack(pictures, tmp_path / "pack", thumbnails=16, say=lambda line: None)
    found = probe.measure_parts({**OPTIONS, "data": str(tmp_path / "pack"), "proxy_size": 16}, ["proxy"])["proxy"]
    assert found["decode_selected_s"] == found["decode_s"] > 0
    assert 0 < found["decode_all_s"] != found["decode_s"]
    assert found["score_s"] > 0


def test_the_process_writes_its_parts_or_one_line(tmp_path, pictures, one_round, capsys):
    asked, result = tmp_path / "asked.json", tmp_path / "result.json"
    asked.write_text(json.dumps({"options": {**OPTIONS, "data": str(pictures)}, "gates": ["memory"]}))
    assert probe.main(str(asked), str(result)) == 0
    assert set(json.loads(result.read_text())) == {"dense", "memory"}
    asked.write_text(json.dumps({"options": {**OPTIONS, "data": str(tmp_path / "absent")}, "gates": ["memory"]}))
    assert probe.main(str(asked), str(result)) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_of_its_own_times_them(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parts, reason = Runner(tmp_path, {**OPTIONS, "data": str(pictures)}).probe(["forward"])
    assert reason is None
    assert set(parts) == {"dense", "forward"}
    parts, reason = Runner(tmp_path, {**OPTIONS, "data": "absent"}).probe(["forward"])
    assert parts is None
    assert "absent" in reason
