from __future__ import annotations

import re
from pathlib import Path

import torch

from fastast.gates import registry

README = Path(registry.__file__).parent / "README.md"


def test_examples_run_as_printed(tmp_path, monkeypatch, capsys):
    """Both blocks, one after the other."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert capsys.readouterr().out.count("epoch ") == 3
    memory, controller = names["memory"], names["controller"]
    num_offered = 3 * 2048
    share = float(names["queue"].pushed) / num_offered
    assert 0.25 < share < 0.35
    assert 0.1 < float(controller.rate) < 0.5
    assert int(names["chosen"].sum()) == round(0.3 * 2048)
    assert int(memory.selected.sum()) == int(names["queue"].popped) + 3 * round(0.3 * 2048)
    assert float(names["loss"].detach().mean()) < 1.5  # it does learn: chance is 2.3
    state = torch.load(tmp_path / "gate.pt", weights_only=True)
    controller.load_state_dict(state["controller"])


def test_every_gate_has_its_card():
    text = README.read_text()
    for name in registry.GATES:
        assert f"\n## {name}\n" in text
        assert f"| [`{name}`](#{name}) |" in text
