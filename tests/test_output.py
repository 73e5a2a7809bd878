"""Work goes on when nobody reads its output any more."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.train.test_run import options


@pytest.mark.parametrize(
    "how", ["closed pipe", *(pytest.param(how, marks=pytest.mark.slow) for how in ("full disk", "closed"))]
)
def test_lost_output_does_not_end_a_run(pictures, tmp_path, how):
    """`fastast train | head -1` once ended without a checkpoint, silently."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastast", "train", *options(pictures, out, gate="dense", epochs=2)]
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "wb") as full:
        stdout = {"closed pipe": subprocess.PIPE, "full disk": full, "closed": None}[how]
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)
    if how == "closed pipe":
        process.stdout.readline()
        process.stdout.close()
    _, error = process.communicate(timeout=200) if how != "closed pipe" else (None, process.stderr.read())
    assert (process.wait(200), error) == (0, b"")
    assert (out / "report.html").exists()


def test_help_into_a_closed_pipe(tmp_path):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "fastast", "train", "--help-all"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")
