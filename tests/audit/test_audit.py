"""`fastast audit`: planted faults are found. `benchmarks.audit_trial` measures that on photographs."""

import csv
import errno
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.planted_faults import plant
from fastast.audit.fingerprints import read_fingerprints
from fastast.audit.groups import find_groups, is_exact
from fastast.audit.pictures import open_pictures
from fastast.cli import main
from fastast.gates.sampling import adaptive_share
from tests.conftest import damaged_png


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_duplicates(folder, data, planted):
    """Asserts that all planted pairs are in one group; returns the groups that hold none of them."""
    groups = defaultdict(list)
    for row in table(folder / "duplicates.csv"):
        row["path"] = str(Path(row["path"]).relative_to(data))
        groups[row["group"]].append(row)
    place = {row["path"]: number for number, rows in groups.items() for row in rows}
    expected = set()
    for kind, pairs in planted.pairs.items():
        for copy, original in pairs:
            assert copy in place, f"{kind}: {copy} was not found"
            assert place[copy] == place[original], f"{kind}: {copy}"
            rows = groups[place[copy]]
            expected.add(place[copy])
            assert rows[0]["kind"] == ("leak" if kind.endswith("val") else "repeated")
            assert {row["match"] for row in rows} == {"exact" if kind.startswith("exact") else "near"}
    return [rows for number, rows in groups.items() if number not in expected]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Class folders of smooth random pictures."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for split, num in (("train", 40), ("val", 10)):
        for name in ("cats, and dogs", "<b>birds"):
            (root / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC)
                image.save(root / split / name / f"{name[:2]}{i}.jpg", quality=92)
    return root


def test_planted_faults_of_a_drawn_set_are_found(drawn, tmp_path, capsys):
    data = tmp_path / "set"
    planted = plant(drawn, data, num_train=70, num_val=16, per_kind=2, wrong=0.0)
    folder = data / "train" / "cats, and dogs"
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "broken.png").write_bytes(damaged_png())
    twin = next(data.glob("train/<b>birds/*.jpg"))
    (folder / "other-class.jpg").write_bytes(twin.read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.csv").write_text("of an earlier audit")
    assert main(["audit", "--data", str(data), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "8 validation pictures are in train as well" in said
    commands = f"fastast train --data {data} --out runs/set", "fastast audit runs/set"
    assert f"next: {', then '.join(commands)}: with a trained network it finds suspected labels too" in said
    assert "2 files are not readable" in said
    (other,) = check_duplicates(out, data, planted)
    assert {row["kind"] for row in other} == {"two classes"}
    assert {Path(row["path"]).name for row in other} >= {"other-class.jpg"}
    assert [Path(row["path"]).name for row in table(out / "unreadable.csv")] == ["page.jpg", "broken.png"]
    counts = table(out / "classes.csv")
    assert sum(int(row["train"]) for row in counts) == 70 + 8 + 2
    assert sum(int(row["val"]) for row in counts) == 16 + 8
    page = (out / "audit.html").read_text()
    assert page.index("Leaks: validation") < page.index("One picture under two labels") < page.index("Repeated")
    assert "<b>birds" not in page
    assert 'src="http' not in page
    assert "Train one, then audit it" in page
    assert all(f"<code>{command}</code>" in page for command in commands)
    assert not (out / "labels.csv").exists()


def test_same_pixels_in_other_bytes_are_no_exact_copies(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((96, 96), Image.Resampling.NEAREST)
        for level in (1, 9):
            path = tmp_path / "train" / f"class{i % 2}" / f"{i}-{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, compress_level=level)
    pictures = open_pictures(tmp_path, progress=lambda *_: None, on_note=lambda _: None)
    groups = find_groups(pictures, read_fingerprints(pictures, lambda *_: None))
    assert [len(group.rows) for group in groups] == [2] * 12
    assert min(min(group.likeness) for group in groups) > 0.99
    assert not any(map(is_exact, (value for group in groups for value in group.likeness)))


def test_full_disk_is_named_before_the_thumbnails_are_mapped(drawn, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["audit", "--data", str(drawn), "--out", str(tmp_path / "out")]) == 2
    assert "another folder in TMPDIR" in capsys.readouterr().err


def test_audit_of_a_run_contradicts_wrong_labels_and_forecasts(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "16", "--epochs", "4", "--lr", "0.05"]
    assert main(["train", "--data", str(pictures), "--out", str(run), *options, "--gate", "dense"]) == 0
    capsys.readouterr()
    assert main(["audit", str(run), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    suspects = table(run / "audit" / "labels.csv")
    assert (f"{len(suspects)} label" in said) == bool(suspects)
    for row in suspects:
        assert row["predicted"] != row["class"]
        assert float(row["probability"]) < 0.05 < 0.5 < float(row["predicted_probability"])
    with np.load(run / "samples.npz") as samples:
        smoothing, classes = json.loads((run / "config.json").read_text())["label_smoothing"], 4
        p = (np.exp(-samples["last_loss"].astype(np.float64)) - smoothing / classes) / (1 - smoothing)
    scores = np.sqrt(p.clip(0, 1)) * (1 - p.clip(0, 1))
    page = (run / "audit" / "audit.html").read_text()
    assert f"as if {100 * scores.mean() ** 2 / (scores**2).mean():.0f} % of them taught alike" in page
    assert f"would train {adaptive_share(scores):.0%}".replace("%", " %") in page
    assert main(["audit", str(run), "--out", str(pictures / "train" / "x")]) == 2
    assert "name one outside it" in capsys.readouterr().err


def test_what_cannot_be_audited_is_refused(pictures, tmp_path, capsys):
    for words, remedy in (
        ([], "fastast audit --data DIR"),
        (["--data", str(tmp_path / "none")], "check the path"),
        (["--data", str(pictures), "--out", str(pictures / "train" / "x")], "name one outside it"),
        ([str(tmp_path)], "model.safetensors"),
    ):
        assert main(["audit", *words]) == 2
        error = capsys.readouterr().err
        assert remedy in error
        assert error.count("\n") == 1
