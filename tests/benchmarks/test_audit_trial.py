"""The trial of the audit counts what was found of what was planted."""

import json

from benchmarks.audit_trial import judge_copies, judge_labels, main
from benchmarks.planted_faults import Planted

PLANTED = Planted({"exact train": [("b", "a"), ("d", "c")], "cropped val": [("f", "e")]}, {"w": "cat", "x": "dog"})


def test_copies_count_in_one_group_with_their_original():
    rows = [{"group": group, "path": path} for group, path in zip("1122334", "abcefgh", strict=True)]
    assert judge_copies(rows, PLANTED) == {"found": {"exact train": 1, "cropped val": 0}, "other_groups": 2}


def test_suspected_labels_are_split_into_right_and_wrong():
    paths = ["w", *(str(i) for i in range(18)), "x"]
    rows = [{"split": "train", "path": path} for path in paths] + [{"split": "val", "path": "w"}]
    assert judge_labels(rows, PLANTED) == {"suspected": 20, "rightly": 2, "rightly_of_top": 0.5}
    assert judge_labels([], PLANTED) == {"suspected": 0, "rightly": 0, "rightly_of_top": None}


def test_trial_writes_what_it_found(pictures, tmp_path, capsys):
    out = tmp_path / "trial.json"
    words = f"--data {pictures} --train 200 --val 40 --per-kind 2 --arch tests.nets:tiny --image-size 32 --epochs 2"
    main([*words.split(), "--seeds", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    (trial,) = result["trials"]
    assert trial["found"]["exact train"] == trial["found"]["exact val"] == 2
    assert trial["wrong"] == 10
    assert trial["val_top1"] > 0
    table = out.with_suffix(".md").read_text()
    assert "| exact val | 2 | 2 |" in table
    assert "--per-kind 2" in table
