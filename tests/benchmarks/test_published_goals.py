"""The published goals beside whole runs: met, missed, or not measured, and by what."""

import json

from benchmarks.published_goals import GOALS, table


def write_run(folder, *, top1, trained, probe_s, joules, speed):
    """100 pictures, 40 times offered; a dense one takes 3 forwards, the probe 1 for each picture."""
    units = 100 + 3 * trained
    summary = {
        "stopped": None,
        "data": {"train": 100},
        "samples": {"offered": 4000, "backward": trained},
        "accuracy": {"val_top1": top1},
        "probe": {"seconds": probe_s},
        "time_s": {"train": 50.0},
        "throughput": {"dense_offered_per_s": speed},
        "compute": {"forward_units": units, "dense_forward_units": 12000},
        "energy": {"run_savings_measured": joules, "run_savings_arithmetic": 1 - units / 12000, "notes": ["no GPU"]},
    }
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_goals_are_judged_over_the_whole_run(tmp_path):
    short = write_run(tmp_path / "short", top1=0.7512, trained=400, probe_s=0.0, joules=None, speed=10)
    full = write_run(tmp_path / "full", top1=0.749, trained=1300, probe_s=10.0, joules=0.881, speed=None)
    header, _, *rows = table([short, full]).splitlines()
    assert header.endswith("| short: 40 epochs | full: 40 epochs |")
    found = [[cell.strip() for cell in row.split("|")[3:-1]] for row in rows[: len(GOALS)]]
    assert found == [
        ["75.12 %: met", "74.90 %: missed"],
        ["not measured", "88.1 %: met"],
        ["89.2 %: met", "66.7 %: missed"],
        ["10.0 %: met", "32.5 %: missed"],
        ["8.00x: met", "not measured"],
        ["9.23x: met", "3.00x: missed"],
    ]
    assert rows[len(GOALS) :] == ["- short, joules: no GPU"]
