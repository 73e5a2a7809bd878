"""A newcomer's walk: README's commands in new environments, without pip's cache, and how long each takes.

    python -m benchmarks.fresh_install [--tests] [--out JSON]

From a copy of the committed files: `pip install .` and `fastast train` in one environment; with --tests also
`pip install -e '.[test]'` and `pytest` in another. The first command that fails ends it. It needs an index of packages,
and shows most on a machine or in a container that has nothing but Python and git.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, command_line, make_parser, provenance, publish

USE = ("pip install .", "fastast train")
TEST = ("pip install -e '.[test]'", "pytest")
# What the names of packages begin with that serve NVIDIA GPUs only; DALI and what it decodes with serve a CPU too.
GPU_ONLY = ("nvidia-cu", "nvidia-nccl", "nvidia-nvshmem", "nvidia-nvjitlink", "triton")
Packages = dict[str, tuple[str, int]]  # by name, each with its version and its bytes
PACKAGES = {"torch": "torch", "torchvision": "torchvision", "dali": "nvidia-dali-cuda120"}
INSTALLED = """
import importlib.metadata as m, json
found = {}
for d in m.distributions():
    files = [f.locate() for f in d.files or ()]
    found[d.name.lower()] = d.version, sum(f.lstat().st_blocks * 512 for f in files if f.is_file())
print(json.dumps(found))
"""


def walk(commands: Sequence[str], source: Path, scratch: Path) -> tuple[list[dict[str, Any]], Packages]:
    """Runs README's commands in a new environment.

    Args:
        commands: shell commands.
        source: a checkout, the working folder.
        scratch: an empty folder for the environment and the caches.

    Returns:
        Of each command its text, its seconds and the load of the machine; of each package its version and its bytes.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    subprocess.run([sys.executable, "-m", "venv", scratch / "env"], check=True)
    binaries = scratch / "env" / "bin"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(scratch / "env")}
    environment |= {"PIP_NO_CACHE_DIR": "1", "XDG_CACHE_HOME": str(scratch / "cache")}
    steps = []
    for command in commands:
        print(f"$ {command}", flush=True)
        began = time.perf_counter()
        subprocess.run(shlex.split(command), cwd=source, env=environment, check=True, stdout=sys.stderr)
        seconds, load = time.perf_counter() - began, os.getloadavg()[1]  # of the last five minutes
        steps.append({"command": command, "seconds": round(seconds, 1), "load": round(load, 1)})
    found = subprocess.run([binaries / "python", "-c", INSTALLED], capture_output=True, check=True, cwd=scratch)
    return steps, json.loads(found.stdout)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.fresh_install", __doc__, table=False)
    parser.add_argument("--tests", action="store_true", help="also README's commands for the tests")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"title": "README's commands in new environments", "command": command_line(parser, args)}
    steps: list[dict[str, Any]] = []
    for number, commands in enumerate((USE, TEST) if args.tests else (USE,)):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "fastast"
            subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
            more, found = walk(commands, source, Path(folder))
        steps += more
        if number == 0:
            result["size_gb"] = sum(size for _, size in found.values()) / 1e9
            result["gpu_only_gb"] = sum(size for name, (_, size) in found.items() if name.startswith(GPU_ONLY)) / 1e9
            versions = {name: found[package][0] for name, package in PACKAGES.items()}
    origin = provenance(torch.device("cpu"))
    publish({**result, "steps": steps, **origin, "versions": {**origin["versions"], **versions}}, args.out)


if __name__ == "__main__":
    main()
