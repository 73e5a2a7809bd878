"""`fastast train`: what it says of options that the gate does not use."""

import pytest

from fastast.cli import main
from fastast.session import session


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["--gate", "dense", "--target", "0.3"], "no effect with --gate dense: --target"),
        (
            ["--gate", "random", "--epochs", "1", "--selection", "hard", "--prune", "0.2"],
            "random: --selection, --prune",
        ),
        (["--gate", "memory", "--explore", "0.01", "--anneal", "0.1"], None),
    ],
)
def test_options_that_the_gate_does_not_use_are_noted(tmp_path, monkeypatch, capsys, arguments, note):
    monkeypatch.setattr(session, "_run", lambda *_, **__: 0)
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert note in printed if note else "no effect" not in printed
