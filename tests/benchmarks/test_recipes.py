"""Recipes: options exist and have reasons; the files for clusters are valid."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastast.cli import build_parser, main
from fastast.config.config_file import read_toml, resolve
from fastast.data import draw_dataset
from fastast.session import session
from tests.conftest import ROOT
from tests.processes import FORKS, command

RECIPES = ROOT / "benchmarks" / "recipes"
SBATCH = RECIPES / "slurm" / "train.sbatch"
PYTORCHJOB = RECIPES / "kubernetes" / "pytorchjob.yaml"
NAMES = ("cifar10-cpu", "imagenet100-quick", "imagenet100-t4x2", "imagenet100-t4x2-published", "imagenet1k-8gpu")
# Of sbatch(1), those that a training job may want.
SBATCH_OPTION = re.compile(
    "account|chdir|comment|constraint|cpus-per-task|deadline|dependency|error|exclude|exclusive|export|gpu-bind|gpus|"
    "gpus-per-node|gpus-per-task|gres|hint|job-name|mail-type|mail-user|mem|mem-per-cpu|mem-per-gpu|nice|no-requeue|"
    "nodelist|nodes|ntasks|ntasks-per-node|open-mode|output|partition|qos|requeue|reservation|signal|switches|time"
)


def test_all_recipes_exist():
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_with_reasons(name):
    path = RECIPES / f"{name}.toml"
    config = resolve({"data": "somewhere", **read_toml(str(path))})
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(read_toml(str(path)))
    for line in lines:
        assert re.fullmatch(r"\w+ = [^#]+ # \S.+", line), line
    assert config.gate != "forward"  # whose ceiling leaves little at a share of 10 %
    (words,) = re.findall(r"^#   (fastast train .*)$", path.read_text(), re.MULTILINE)
    args = build_parser().parse_args(shlex.split(words)[1:])
    assert args.config == f"benchmarks/recipes/{name}.toml"


def test_quick_recipe_matches_the_long_one():
    long, quick = (read_toml(str(RECIPES / f"imagenet100-{name}.toml")) for name in ("t4x2", "quick"))
    differing = {"epochs", "max_time", "checkpoint_every", "explore"}
    assert {k: v for k, v in long.items() if k not in differing} == {
        k: v for k, v in quick.items() if k not in differing
    }


def test_cpu_recipe_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "write_report", lambda folder: None)
    draw_dataset(tmp_path / "data", num_classes=4, train_per_class=64, val_per_class=8)
    words = ["--config", RECIPES / "cifar10-cpu.toml", "--data", tmp_path / "data", "--out", tmp_path / "run"]
    words += ["--epochs", "1", "--warmup-epochs", "0.25", "--threads", "1"]
    assert main(["train", *map(str, words)]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["arch"] == "resnet18"
    assert summary["gate"]["name"] == "memory"
    assert summary["samples"]["offered"] == 256
    assert 64 < summary["samples"]["selected"] < 150


def beside_python(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return found


def test_sbatch_passes_shellcheck():
    assert subprocess.run(["bash", "-n", SBATCH]).returncode == 0
    done = subprocess.run([beside_python("shellcheck"), SBATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_sbatch_options_exist():
    asked = re.findall(r"^#SBATCH --([a-z-]+)", SBATCH.read_text(), re.MULTILINE)
    assert {"signal", "requeue", "time", "ntasks-per-node", "gpus-per-node"} <= set(asked)
    assert all(SBATCH_OPTION.fullmatch(option) for option in asked)
    assert len(asked) == len(set(asked)) == SBATCH.read_text().count("\n#SBATCH")


FAKES = {
    "srun": 'echo "srun $*" >> "$LOG"\nwhile [ "$1" != python ]; do shift; done\nexit "$CODE"\n',
    "scontrol": 'echo "scontrol $*" >> "$LOG"\n',
}


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (2, False), (1, False), (138, True), (143, True), (3, True)]
)
def test_sbatch_requeues_only_after_a_planned_stop(tmp_path, code, requeued):
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "CODE": str(code)}
    environment["SLURM_JOB_ID"] = "4711"
    words = ["--data", "D", "--out", "O"]
    done = subprocess.run(["bash", SBATCH, *words], env=environment)
    assert done.returncode == (0 if requeued else code)
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert rest == (["scontrol requeue 4711"] if requeued else [])
    build_parser().parse_args(shlex.split(first.partition(" -m fastast ")[2]))


def documents() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="pip install -e '.[dev]'")
    return list(yaml.safe_load_all(PYTORCHJOB.read_text()))


def misfits(value: Any, kind: str, models: Any, place: str) -> list[str]:
    """Keys that a Kubeflow type does not have, and values of another type, anywhere below; pods are left out."""
    if (inner := re.fullmatch(r"dict\(str, (\w+)\)", kind)) is not None:
        return [line for key, item in value.items() for line in misfits(item, inner[1], models, f"{place}.{key}")]
    if kind in ("str", "int", "bool"):
        return [] if type(value).__name__ == kind else [f"{place}: {value!r} is no {kind}"]
    if not kind.startswith("KubeflowOrg"):
        return []
    model = getattr(models, kind)
    names = {outer: inner for inner, outer in model.attribute_map.items()}
    lines = [f"{place}.{key}: unknown" for key in value if key not in names]
    for key in value.keys() & names.keys():
        lines += misfits(value[key], model.openapi_types[names[key]], models, f"{place}.{key}")
    return lines


def test_kubernetes_file_fits_the_schemas():
    validator = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[dev]'")
    models = pytest.importorskip("kubeflow.training.models", reason="pip install -e '.[dev]'")
    *claims, job = documents()
    for claim in claims:
        validator.validate(claim, validator.latest_version(), strict=True)
    assert misfits(job, "KubeflowOrgV1PyTorchJob", models, job["kind"]) == []
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, **template}
    validator.validate(pod, validator.latest_version(), strict=True)
    broken = {**job, "spec": {**job["spec"], "nprocPerNode": 8, "elastic": {}}}
    assert len(misfits(broken, "KubeflowOrgV1PyTorchJob", models, "job")) == 2


def test_kubernetes_file_is_consistent():
    *claims, job = documents()
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    spec = worker["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch"
    assert job["spec"]["elasticPolicy"]["maxReplicas"] == worker["replicas"]
    assert job["spec"]["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert mounts["shm"] == "/dev/shm"
    assert {claim["metadata"]["name"] for claim in claims} == {
        volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
    }
    torchrun = importlib.import_module("torch.distributed.run").get_args_parser()
    launched = torchrun.parse_args(container["args"][1:])
    assert launched.module
    assert launched.training_script == "fastast"
    args = build_parser().parse_args(launched.training_script_args)
    assert args.data == mounts["pictures"]
    assert args.out.startswith(mounts["runs"])
    assert args.resume == "auto"


def set_variables(variables):
    os.environ.update(variables)


@pytest.mark.slow
def test_srun_starts_ranks_without_torchrun(pictures, tmp_path):
    out = tmp_path / "run"
    words = ["train", "--device", "cpu", "--arch", "tests.nets:tiny", "--data", pictures, "--out", out]
    words += ["--image-size", 32, "--batch-size", 16, "--epochs", 1, "--warmup-epochs", "0.5", "--target", "0.3"]
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    ranks = []
    for rank in range(2):
        own = {"SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        prepare = functools.partial(set_variables, {**step, **own})
        arguments = ([*map(str, words), "--threads", "1"], tmp_path / f"log{rank}", prepare)
        ranks.append(FORKS.Process(target=command, args=arguments))
        ranks[-1].start()
    for process in ranks:
        process.join()
    printed = [(tmp_path / f"log{rank}").read_text() for rank in range(2)]
    assert [process.exitcode for process in ranks] == [0, 0], printed
    assert "on each of 2 ranks" in printed[0]
    assert "epoch" not in printed[1]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["hardware"]["world_size"] == 2
    assert summary["samples"]["offered"] == 240
