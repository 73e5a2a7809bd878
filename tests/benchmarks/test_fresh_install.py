"""The newcomer's walk: commands run in an environment of their own, and the first that fails ends it."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.fresh_install import walk


@pytest.mark.slow
def test_commands_run_in_a_new_environment(tmp_path):
    (tmp_path / "it.py").write_text("import sys\nopen('prefix', 'w').write(sys.prefix)\nimport torch\n")
    with pytest.raises(subprocess.CalledProcessError, match=r"it\.py"):  # which has no torch
        walk(("python it.py", "touch later"), tmp_path, tmp_path)
    assert (tmp_path / "prefix").read_text() == str(tmp_path / "env")
    assert not (tmp_path / "later").exists()
    steps, found = walk(("pip --version",), tmp_path, tmp_path)
    assert steps[0]["command"] == "pip --version"
    assert found["pip"][1] > 1_000_000
