"""The GPU suite, dry: what crashes, hangs or is missing costs its own item alone, and a killed suite goes on."""

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

from benchmarks import index
from benchmarks.gpu import items, targets, traffic
from benchmarks.gpu.__main__ import main, visible_gpus
from benchmarks.gpu.items import ITEMS, MACHINE, Item, all_items
from benchmarks.gpu.page import page
from benchmarks.gpu.settings import NotMeasured, Settings
from benchmarks.gpu.suite import Suite
from fastast.errors import InputError
from tests.conftest import ROOT

# ------------------------------------------------------------------------------------------- items of the tests' own

NEED_A_GPU = {"gpu_tests", "dense_fp16"}
HARDWARE = {"device": "cpu", "name": "a stand-in", "threads": 1, "driver": None, "cores": 2}
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


def item(name, function="works", budget_s=30.0, needs_dali=True):
    return Item(name, f"what {name} is", function, budget_s, 5.0, needs_dali)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Makes a suite of stand-in items."""
    own = {**FUNCTIONS, MACHINE.place: lambda *args: FUNCTIONS["machine"](*args)}
    monkeypatch.setitem(FUNCTIONS, "machine", read_machine)
    monkeypatch.setattr(Item, "function", lambda self: own[self.place])
    settings = Settings(device="cpu", tiny=True, data=None, work=tmp_path, seconds=0.0)
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


def test_a_crash_a_hang_and_a_failure_cost_their_own_item_alone(suite, tmp_path):
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
    assert found["hang"]["reason"] == "ended after 1 s"
    assert found["fail"]["reason"] == "ValueError: no such thing"
    assert found["not here"]["reason"] == "needs two moons"
    assert found["good"]["reason"] is None
    # What an item had found before its end counts.
    assert [found[name]["figures"]["before"] for name in ("crash", "hang", "fail")] == [1, 2, 3]
    assert "a line of its own" in found["fail"]["log"]
    assert not alive(found["hang"]["figures"]["child"])  # what it had started is gone, too
    assert found["good"]["commit"] == "abc"
    assert len(suite.pages) == 6  # after each item
    assert "| crash | what crash is | " in page(one.results)


def test_a_second_call_goes_on_with_what_is_missing(suite, tmp_path):
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
    assert second["c"]["figures"]["at"] < second["b"]["figures"]["at"]  # what was never tried comes first


def test_without_time_an_item_is_not_begun_and_what_was_found_stays(suite, tmp_path):
    suite(item("a"), item("b", "crashes")).run(minutes=1)
    before = stored(tmp_path)
    slow = item("slow")
    suite(item("a"), item("b"), slow).run(minutes=0.06)  # 0.6 s beyond the reserve, one is the least
    after = stored(tmp_path)
    assert after["a"] == before["a"]
    assert after["b"] == before["b"]
    assert after["slow"]["status"] == "not measured"
    assert after["slow"]["reason"].startswith("no time left")


def test_an_items_budget_is_cut_to_what_is_left(suite, tmp_path):
    suite(item("a", budget_s=600.0)).run(minutes=0.5)
    assert 10 < stored(tmp_path)["a"]["figures"]["seconds"] <= 27


def test_items_that_need_dali_say_that_it_is_missing(suite, tmp_path, monkeypatch):
    monkeypatch.setitem(VERSIONS, "dali", None)
    suite(item("a"), item("b", needs_dali=False)).run(minutes=1)
    found = stored(tmp_path)
    assert (found["a"]["status"], found["a"]["reason"]) == ("not measured", "DALI is not installed")
    assert found["b"]["status"] == "measured"


def test_figures_of_two_machines_never_share_a_file(suite, tmp_path, monkeypatch):
    suite(item("a")).run(minutes=1)
    before = (tmp_path / "out.json").read_text()
    monkeypatch.setitem(HARDWARE, "name", "another")
    with pytest.raises(InputError, match="was measured with name a stand-in, this is another; name another file"):
        suite(item("b")).run(minutes=1)
    with pytest.raises(InputError, match="was begun with --seed 0"):
        suite(item("b"), seed=1)
    assert (tmp_path / "out.json").read_text() == before
    (tmp_path / "out.json").write_text('{"title": "something else"}')
    with pytest.raises(InputError, match="holds something else"):
        suite(item("a"))


def test_a_killed_suite_takes_its_item_with_it_and_the_results_count(suite, tmp_path):
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


# ----------------------------------------------------------------------------------------------- the items themselves


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


def test_every_item_of_a_dry_run_is_measured_or_needs_a_gpu(dry):
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


def test_the_loops_of_a_dry_run_all_ran(dry):
    figures = {name: entry["figures"] for name, entry in dry[0]["items"].items()}
    dense, drawn = figures["dense"], figures["fed"]["sets"]["drawn"]
    assert set(dense["rates"]) == {"plain AMP loop", "plain AMP loop, channels-last", "eager"}
    assert dense["notes"] == {"compiled": "needs a GPU", "compiled, CUDA graphs": "needs a GPU"}
    names = {"synthetic", "from JPEGs", "decode alone, cpu", "NVIDIA-style DALI loop", "torchvision loop"}
    assert set(drawn["rates"]) == names
    for rate in (*dense["rates"].values(), *drawn["rates"].values()):
        assert 0 < rate["range"][0] <= rate["images_per_s"] <= rate["range"][1]
        assert (rate["j_per_image"], rate["joules_note"]) == (None, "no GPU")
    assert {row["name"] for row in figures["gates_10"]["rows"]} == {"dense", "random"}
    assert {run["steps"] for name, run in figures["precisions"].items() if isinstance(run, dict)} == {4}
    assert figures["ceilings"]["network"]["forward_and_backward_ms"] > 0


def test_what_is_right_on_a_cpu_is_found_right(dry):
    figures = {name: entry["figures"] for name, entry in dry[0]["items"].items()}
    for row in figures["mixed_pixels"]["rows"]:
        assert (row["largest_levels"], row["head_equals_tail"]) == (0.0, True)
    loader = figures["hostile"]["loader"]
    assert (loader["good_pictures_lost"], loader["delivered_twice"]) == (0, 0)
    assert loader["delivered"] == 43  # 40 good ones, progressive, gray, CMYK
    assert loader["quarantined_in_the_pass"] == ["PNG with damaged pixels"]
    assert "20000 x 20000 in its header" in loader["refused_by_the_scan"]


def test_no_target_is_judged_by_a_dry_run(dry):
    verdicts = {row["verdict"] for row in targets.targets(dry[0])}
    assert verdicts == {"not measured"}


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path):
    done = run_suite(tmp_path / "gpu.json", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["items"]
    assert {name for name, entry in found.items() if entry["status"] != "measured"} == NEED_A_GPU
    assert found["accuracy"]["figures"]["n"] == 1


def test_without_dali_the_dense_path_is_measured_all_the_same(tmp_path):
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


def test_the_command_refuses_what_would_not_end(tmp_path, capsys):
    assert main(["--device", "cpu", "--out", str(tmp_path / "a.json")]) == 2
    assert "add --tiny" in capsys.readouterr().err
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "a.json"), "--items", "nothing"]) == 2
    assert "choose from mixed_pixels" in capsys.readouterr().err


def test_visible_gpus_are_those_that_cuda_would_show(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-7")
    assert visible_gpus() == ["2", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_with_all_gpus_the_short_items_run_on_each():
    found = all_items(3, every_gpu=True)
    assert [item.name for item in found[len(ITEMS) :]] == [
        *("ceilings, GPU 1", "dense, GPU 1", "ceilings, GPU 2", "dense, GPU 2", "scaling")
    ]
    assert [item.gpu for item in found[len(ITEMS) :]] == [1, 1, 2, 2, None]
    assert all_items(3, every_gpu=False) == list(ITEMS)
    for item in (items.MACHINE, *found):
        assert callable(item.function())


# ----------------------------------------------------------------------------------------------- counts and verdicts


def test_work_is_counted_from_shapes():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)
        )
    work = traffic.count_work(model, 16)
    conv, linear = 2 * 27 * 8 * 64, 2 * 512 * 10
    assert work.forward_flops == conv + linear
    assert work.train_flops == 2 * conv + 3 * linear  # nobody needs the pictures' gradient
    values = 3 * (3 * 256 + 512) + 8 * 512 + 3 * (512 + 10)
    assert work.train_bytes == 2 * values
    bound = work.bound_per_s(10 * work.train_flops, 7 * work.train_bytes)
    assert bound == pytest.approx({"arithmetic": 10.0, "memory": 7.0})


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


def test_targets_are_met_missed_or_not_measured_and_say_why():
    results = figures_at_goal()
    assert {row["verdict"] for row in targets.targets(results)} == {"met"}
    assert len(targets.targets(results)) == 3 + 2 * 2 * 4 + 1
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


# ---------------------------------------------------------------------------------------------------- the results page


def test_the_page_over_all_results_is_up_to_date():
    made = index.index(index.RESULTS)
    stored = (index.RESULTS / index.PAGE).read_text()
    assert made == stored, "run `python -m benchmarks.index`"


def test_the_page_names_hardware_versions_commit_and_day_of_every_result(tmp_path):
    origin = {"hardware": HARDWARE, "versions": VERSIONS, "measured_at": "2026-01-02T03:04:05+00:00"}
    (tmp_path / "step_overhead.json").write_text(json.dumps({**origin, "forward_ms": 1.25, "rows": []}))
    (tmp_path / "gpu-x.json").write_text(json.dumps({**origin, "title": "GPU suite", "command": "python -m x"}))
    (tmp_path / "gpu-x.md").write_text("table")
    index.main(["--results", str(tmp_path)])
    lines = (tmp_path / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert rows[0].startswith("| [gpu-x](gpu-x.md) ([JSON](gpu-x.json)) | GPU suite | a stand-in, 1 threads | torch 2")
    assert "What gating costs" in rows[1]
    assert all(row.endswith("| abc | 2026-01-02 |") for row in rows)
    assert "**step_overhead**: `benchmarks.step_overhead` forward_ms 1.25." in lines
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"bad.json: does not say its hardware and versions and measured_at"):
        index.index(tmp_path)
