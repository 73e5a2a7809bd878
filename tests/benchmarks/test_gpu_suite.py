"""The GPU suite: an item that crashes, hangs or fails costs only itself, a killed suite resumes; items in a dry run."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import dense, targets
from benchmarks.gpu.__main__ import main, visible_gpus
from benchmarks.gpu.gated import run_until
from benchmarks.gpu.items import ITEMS, MACHINE, TINY, Item, NotMeasured, Settings, all_items
from benchmarks.gpu.page import page
from benchmarks.gpu.suite import Suite
from fastast.errors import InputError
from tests.conftest import ROOT

NEED_A_GPU = {"gpu_tests", "dense_fp16"}
HARDWARE = {"device": "cpu", "name": "a machine", "threads": 1, "driver": None, "cores": 2}
VERSIONS = {"torch": "2.6", "dali": "2.4", "python": "3.11", "commit": "abc", "fastast": "0.1"}


def read_machine(settings, report):
    report.add(hardware=HARDWARE, versions=VERSIONS, measured_at="2026-01-01T00:00:00+00:00", checks=[])


def works(settings, report):
    report.add(seconds=settings.seconds, device=settings.device, at=time.monotonic())


def crashes(settings, report):
    faulthandler.disable()  # pytest turns it on
    report.add(before=1)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(settings, report):
    with subprocess.Popen(["sleep", "600"]) as child:
        report.add(before=2, child=child.pid)
        (settings.work / "hangs").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)


def fails(settings, report):
    print("a line of its own")
    report.add(before=3)
    raise ValueError("no such thing\nand more")


def is_not_here(settings, report):
    raise NotMeasured("needs two moons")


FUNCTIONS = {f.__name__: f for f in (works, crashes, hangs, fails, is_not_here)}


def item(name, function="works", limit_s=30.0, needs_dali=True):
    return Item(name, f"what {name} is", function, limit_s, 5.0, needs_dali)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Makes a suite of fake items."""
    own = {**FUNCTIONS, MACHINE.place: lambda *args: FUNCTIONS["machine"](*args)}
    monkeypatch.setitem(FUNCTIONS, "machine", read_machine)
    monkeypatch.setattr(Item, "function", lambda self: own[self.place])
    settings = Settings(device="cpu", tiny=True, data=None, work=tmp_path, seconds=0.0, **TINY)
    pages = []

    def make(*entries, **changes):
        orders = Settings(**{**{f: getattr(settings, f) for f in Settings.__slots__}, **changes})
        return Suite(tmp_path / "out.json", orders, list(entries), [], "the command", pages.append)

    make.pages = pages
    return make


def stored(tmp_path):
    return json.loads((tmp_path / "out.json").read_text())["items"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_crash_hang_and_failure_cost_only_their_item(suite, tmp_path):
    one = suite(
        item("crash", "crashes"), item("hang", "hangs", 1.0), item("fail", "fails"), item("not here", "is_not_here"),
        item("good"),
    )  # fmt: skip
    one.run(minutes=1)
    found = stored(tmp_path)
    assert list(found) == ["machine", "crash", "hang", "fail", "not here", "good"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "machine": "measured",
        "crash": "crashed",
        "hang": "timed out",
        "fail": "failed",
        "not here": "not measured",
        "good": "measured",
    }
    assert found["crash"]["reason"] == "its process ended by SIGSEGV"
    assert found["hang"]["reason"] == "stopped after 1 s"
    assert found["fail"]["reason"] == "ValueError: no such thing"
    assert found["not here"]["reason"] == "needs two moons"
    assert found["good"]["reason"] is None
    # Figures found before the end of an item are kept.
    assert [found[name]["figures"]["before"] for name in ("crash", "hang", "fail")] == [1, 2, 3]
    assert "a line of its own" in found["fail"]["log"]
    assert not alive(found["hang"]["figures"]["child"])  # so is its child
    assert found["good"]["commit"] == "abc"
    assert len(suite.pages) == 6  # after each item
    assert "| crash | what crash is | " in page(one.results)


def test_second_call_measures_what_is_missing(suite, tmp_path):
    suite(item("a"), item("b", "fails")).run(minutes=1)
    first = stored(tmp_path)
    FUNCTIONS["fails"], broken = works, FUNCTIONS["fails"]
    try:
        suite(item("a"), item("b", "works"), item("c")).run(minutes=1)
    finally:
        FUNCTIONS["fails"] = broken
    second = stored(tmp_path)
    assert second["a"] == first["a"]
    assert second["b"]["status"] == second["c"]["status"] == "measured"
    assert second["c"]["figures"]["at"] < second["b"]["figures"]["at"]  # items never tried come first


def test_item_without_time_is_not_started(suite, tmp_path):
    suite(item("a", limit_s=600.0), item("b", "crashes")).run(minutes=0.5)
    assert 10 < stored(tmp_path)["a"]["figures"]["seconds"] <= 27  # the limit is cut to the time left
    before = stored(tmp_path)
    slow = item("slow")
    suite(item("a"), item("b"), slow).run(minutes=0.06)  # 0.6 s beyond the reserve, one is the least
    after = stored(tmp_path)
    assert after["a"] == before["a"]
    assert after["b"] == before["b"]
    assert after["slow"]["status"] == "not measured"
    assert after["slow"]["reason"].startswith("no time left")


def test_items_that_need_dali_name_it(suite, tmp_path, monkeypatch):
    monkeypatch.setitem(VERSIONS, "dali", None)
    suite(item("a"), item("b", needs_dali=False)).run(minutes=1)
    found = stored(tmp_path)
    assert (found["a"]["status"], found["a"]["reason"]) == ("not measured", "DALI is not installed")
    assert found["b"]["status"] == "measured"


def test_results_of_two_machines_are_not_mixed(suite, tmp_path, monkeypatch):
    suite(item("a")).run(minutes=1)
    before = (tmp_path / "out.json").read_text()
    monkeypatch.setitem(HARDWARE, "name", "another")
    with pytest.raises(InputError, match="was measured with name a machine, this is another; name another file"):
        suite(item("b")).run(minutes=1)
    with pytest.raises(InputError, match="was started with --seed 0"):
        suite(item("b"), seed=1)
    assert (tmp_path / "out.json").read_text() == before
    (tmp_path / "out.json").write_text('{"title": "something else"}')
    with pytest.raises(InputError, match="holds something else"):
        suite(item("a"))


def test_killed_suite_ends_its_item_and_resumes(suite, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=lambda: suite(item("a"), item("b", "hangs"), item("c")).run(minutes=5)
    )
    process.start()
    pids = tmp_path / "hangs"
    for _ in range(400):
        if pids.exists() and pids.read_text().count(" ") == 1:
            break
        time.sleep(0.05)
    process.kill()
    process.join()
    assert stored(tmp_path)["a"]["status"] == "measured"
    assert "b" not in stored(tmp_path)
    for pid in map(int, pids.read_text().split()):
        for _ in range(100):
            if not alive(pid):
                break
            time.sleep(0.05)
        assert not alive(pid)
    suite(item("a"), item("b"), item("c")).run(minutes=1)
    assert {entry["status"] for entry in stored(tmp_path).values()} == {"measured"}


def run_suite(out, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The results of a dry run, its longest items left out."""
    root = tmp_path_factory.mktemp("dry")
    names = [item.name for item in ITEMS if item.name not in ("dense_large", "gates_30", "accuracy")]
    done = run_suite(root / "gpu.json", "--items", *names, XDG_CACHE_HOME=str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((root / "gpu.json").read_text()), (root / "gpu.md").read_text()


def test_dry_run_measures_every_item_that_needs_no_gpu(dry):
    results, text = dry
    for name, entry in results["items"].items():
        wanted = ("not measured", "needs a GPU") if name in NEED_A_GPU else ("measured", None)
        assert (entry["status"], entry["reason"]) == wanted, (name, entry)
        assert name in NEED_A_GPU or entry["figures"]
        assert f"| {name} | {entry['what']} |" in text
    assert results["tiny"]
    assert results["hardware"]["cores"] >= 1
    assert results["versions"]["torch"] == torch.__version__
    assert "A dry run at tiny sizes" in text
    assert {row["verdict"] for row in targets.targets(results)} == {"not measured"}


def test_dry_run_runs_all_loops(dry):
    figures = {name: entry["figures"] for name, entry in dry[0]["items"].items()}
    synthetic, drawn = figures["dense"], figures["fed"]["sets"]["drawn"]
    assert set(synthetic["rates"]) == {"plain AMP loop", "plain AMP loop, channels-last", "eager"}
    assert synthetic["notes"] == {"compiled": "needs a GPU", "compiled, CUDA graphs": "needs a GPU"}
    names = {"synthetic", "from JPEGs", "decode alone, cpu", "NVIDIA-style DALI loop", "torchvision loop"}
    assert set(drawn["rates"]) == names
    for rate in (*synthetic["rates"].values(), *drawn["rates"].values()):
        assert 0 < rate["range"][0] <= rate["images_per_s"] <= rate["range"][1]
        assert (rate["j_per_image"], rate["joules_note"]) == (None, "no GPU")
    assert {row["name"] for row in figures["gates_10"]["rows"]} == {"dense", "memory"}
    assert {run["steps"] for run in figures["precisions"]["formats"].values()} == {4}
    assert figures["ceilings"]["copy_gb_per_s"] > 0
    for row in figures["mixed_pixels"]["rows"]:
        assert (row["largest_levels"], row["head_equals_tail"]) == (0.0, True)


@pytest.mark.slow
def test_whole_dry_run(tmp_path):
    done = run_suite(tmp_path / "gpu.json", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["items"]
    assert {name for name, entry in found.items() if entry["status"] != "measured"} == NEED_A_GPU
    assert found["accuracy"]["figures"]["n"] == 1


@pytest.mark.slow
def test_dense_item_runs_without_dali(tmp_path):
    fake = tmp_path / "path" / "nvidia"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    options = ["--items", "dense", "fed", "gates_10"]
    done = run_suite(tmp_path / "gpu.json", *options, XDG_CACHE_HOME=str(tmp_path), PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["versions"]["dali"] is None
    assert found["items"]["dense"]["figures"]["rates"]["eager"]["images_per_s"] > 0
    assert {found["items"][name]["reason"] for name in options[2:]} == {"DALI is not installed"}


def test_command_refuses_bad_usage(tmp_path, capsys):
    assert main(["--device", "cpu", "--out", str(tmp_path / "a.json")]) == 2
    assert "add --tiny" in capsys.readouterr().err
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "a.json"), "--items", "nothing"]) == 2
    assert "choose from dense" in capsys.readouterr().err


def test_visible_gpus_follow_cuda_visible_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-7")
    assert visible_gpus() == ["2", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_all_gpus_add_short_items_and_scaling():
    found = all_items(3, every_gpu=True)
    assert [item.name for item in found[len(ITEMS) :]] == [
        *("dense, GPU 1", "ceilings, GPU 1", "dense, GPU 2", "ceilings, GPU 2", "scaling")
    ]
    assert [item.gpu for item in found[len(ITEMS) :]] == [1, 1, 2, 2, None]
    assert all_items(3, every_gpu=False) == list(ITEMS)
    for item in (MACHINE, *found):
        assert callable(item.function())


def conv_and_linear(num_classes):
    layers = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8 * 64, num_classes))


def test_flops_are_counted_from_shapes():
    conv, linear = 2 * 27 * 8 * 64, 2 * 512 * dense.NUM_CLASSES
    found = dense.count_flops(f"{__name__}:conv_and_linear", 16)
    assert found == 2 * conv + 3 * linear  # the pictures need no gradient


def figures_at_goal():
    """Results in which every target is just met."""
    rates = {"plain AMP loop, channels-last": 3500.0, "eager": 3600.0, "compiled": 4550.0}
    rows = [
        {
            "name": gate,
            "share_of_machine_ceiling": goal,
            "energy": {"savings_measured": 0.81, "savings_arithmetic": 0.9, "reason": None},
        }
        for gate, goal in targets.OF_CEILING.items()
    ]
    figures = {
        "dense": {"rates": {name: {"images_per_s": rate} for name, rate in rates.items()}},
        "fed": {"sets": {"drawn": {"share_of_synthetic": 0.9}}},
        "gates_10": {"rows": rows},
        "gates_30": {"rows": rows},
        "precisions": {"fp16_reserved_gb": 14.0},
    }
    entries = {name: {"reason": None, "figures": found} for name, found in figures.items()}
    return {"tiny": False, "hardware": {"name": "NVIDIA H200"}, "items": entries}


def test_bench_that_overruns_is_terminated():
    code = run_until(time.monotonic() + 0.5, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert code == -signal.SIGTERM
    assert run_until(time.monotonic() + 60, [sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_targets_are_met_missed_or_not_measured():
    results = figures_at_goal()
    assert {row["verdict"] for row in targets.targets(results)} == {"met"}
    assert len(targets.targets(results)) == 3 + 2 * 2 * len(targets.OF_CEILING) + 1
    faster = {"plain AMP loop, channels-last": {"images_per_s": 4000.0}, "eager": {"images_per_s": 4600.0}}
    results["items"]["dense_large"] = {"reason": None, "figures": {"rates": faster}}
    found = {row["what"]: row for row in targets.targets(results)}
    times = found["dense, synthetic: times the plain AMP loop, channels-last"]
    assert (times["found"], times["verdict"]) == (1.15, "missed")  # of the same item as the best rate
    results["items"]["fed"]["figures"]["sets"]["drawn"]["share_of_synthetic"] = 0.89
    row = results["items"]["gates_10"]["figures"]["rows"][0]
    row["energy"] = {"savings_measured": None, "savings_arithmetic": 0.9, "reason": "epochs under 2 s"}
    results["hardware"]["name"] = "NVIDIA A100"
    del results["items"]["precisions"]
    found = {row["what"]: row for row in targets.targets(results)}
    assert found["dense, from JPEGs: share of synthetic"]["verdict"] == "missed"
    assert found["forward at 10 %: measured less arithmetic savings"]["reason"] == "epochs under 2 s"
    h200 = found["dense, synthetic, one H200: images/s"]
    assert (h200["verdict"], h200["reason"]) == ("not measured", "this is NVIDIA A100")
    assert found["fp16 at batch 128: GB of GPU memory, for a T4"]["reason"] == "not tried"
