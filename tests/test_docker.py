"""The container image: its files by their own checkers, and (marked system) built and run for real."""

import configparser
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastast.cli import build_parser
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
RUN_LINES = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/docker.md").read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("docker run ")
]


def beside_python(name):
    """A command that pip installed with this Python, or on PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return found


def test_hadolint_finds_nothing():
    done = subprocess.run([beside_python("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_file_fits_the_compose_specification():
    command = [beside_python("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def locked(cuda):
    """Name -> version of every package in a lock file; of those that depend on the Python version, the last."""
    lines = (DOCKER / f"cuda{cuda}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", lines, re.MULTILINE))


def required():
    """Names that fastast requires on every Python that an image may hold."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].split("\n")
    return {re.split(r"[>=;]", line)[0] for line in lines if line and "python_version" not in line}


@pytest.mark.parametrize("cuda", ["12", "13"])
def test_lock_files_hold_all_that_fastast_requires(cuda):
    names = {name.replace("cuda120", f"cuda{cuda}0") for name in required()}
    versions = locked(cuda)
    assert names <= set(versions)
    # All CUDA libraries are of one major version, and each torch has its own torchvision.
    assert {name[-4:] for name in versions if re.search(r"-cu1\d$", name)} == {f"cu{cuda}"}


def test_every_package_of_a_lock_file_has_its_hash():
    for path in DOCKER.glob("cuda*.txt"):
        for package in re.split(r"\n(?=[a-z])", path.read_text())[1:]:
            assert "--hash=sha256:" in package, package.splitlines()[0]


def inner_command(words):
    """What a `docker run` line starts inside: all that follows the name of the image."""
    return words[words.index("fastast") + 1 :]


def test_readme_runs_the_image_for_train_bench_and_the_gpu_suite():
    parsed = set()
    for command in map(inner_command, RUN_LINES):
        if command[0] == "fastast":
            parsed.add(build_parser().parse_args(command[1:]).command)
        elif command[:2] == ["python", "-m"]:
            importlib.import_module(f"{command[2]}.__main__").make_parser().parse_args(command[3:])
            parsed.add(command[2])
    assert parsed == {"train", "bench", "benchmarks.gpu"}


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(
    not all(map(shutil.which, ("buildah", "debootstrap", "apt-get"))), reason="needs buildah and debootstrap"
)
def test_the_image_builds_and_trains_and_stops():
    done = subprocess.run(
        ["bash", "tests/docker_build.sh"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
