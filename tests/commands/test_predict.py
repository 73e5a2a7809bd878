"""`fastast predict`: the numbers of `fastast evaluate` for any pictures, in every format, and what cannot be read."""

import csv
import io
import itertools
import json
import os
import shutil
import sys

import pytest

import fastast
from fastast.cli import main
from fastast.commands import predict
from fastast.output import tolerant_stream
from tests.data.image_files import cut_png, encode, picture

CSV = "path,prediction,probability,prediction_2,probability_2,prediction_3,probability_3"


def predicted(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_same_numbers_as_evaluate_to_the_picture(run, pictures, tmp_path):
    evaluated, ours = tmp_path / "e.csv", tmp_path / "p.csv"
    assert main(["evaluate", str(run), "--data", str(pictures), "--out", str(evaluated)]) == 0
    assert main(["predict", str(run), str(pictures / "val"), "--out", str(ours), "--top", "1"]) == 0
    expected = [{name: row[name] for name in row if name != "label"} for row in predicted(evaluated)]
    assert len(expected) == 60
    assert predicted(ours) == expected


def test_files_folders_and_patterns_in_the_order_given(run, pictures, tmp_path, monkeypatch, capsys):
    names = [f"class_{i}/{j:04d}.jpg" for i in (0, 1) for j in range(3)]
    for name in (*names, "class_1/deeper/0009.jpg", "odd[1].jpg", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "val" / "class_2" / "0000.jpg", tmp_path / name)
    (tmp_path / "class_1" / "notes.txt").write_text("no picture by its name")
    monkeypatch.chdir(tmp_path)

    def paths(*named):
        assert main(["predict", str(run), *named, "--format", "jsonl"]) == 0
        return [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]

    assert paths("class_1", names[0]) == [*names[3:], "class_1/deeper/0009.jpg", names[0]]
    assert paths("class_*/0001.jpg") == [names[1], names[4]]
    assert paths("**/0009.jpg", "odd[1].jpg") == ["class_1/deeper/0009.jpg", "odd[1].jpg"]
    assert paths(".") == ["./odd[1].jpg", *(f"./{name}" for name in names), "./class_1/deeper/0009.jpg"]


def test_every_format_and_python_say_the_same(run, pictures, tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    folder = str(pictures / "val" / "class_3")
    for kind in ("csv", "jsonl", "parquet"):
        assert main(["predict", str(run), folder, "--out", str(tmp_path / f"p.{kind}")]) == 0
    assert "15 pictures" in capsys.readouterr().err
    expected = fastast.load(run).predict(folder)
    assert [prediction.path for prediction in expected] == sorted(f"{folder}/{i:04d}.jpg" for i in range(15))
    for prediction in expected:
        names, probabilities = zip(*prediction.top, strict=True)
        assert len(set(names)) == 3
        assert sorted(probabilities, reverse=True) == list(probabilities)
        assert 0.75 < sum(probabilities) < 1
    flat = [
        [path, *(cell for name, probability in top for cell in (name, f"{probability:.6f}"))]
        for path, top, _ in expected
    ]
    assert (tmp_path / "p.csv").read_text().splitlines() == [CSV, *map(",".join, flat)]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [
        [line["path"], *(cell for p in line["predictions"] for cell in (p["class"], f"{p['probability']:.6f}"))]
        for line in lines
    ] == flat
    table = pyarrow.read_table(tmp_path / "p.parquet")
    assert table.column_names == CSV.split(",")
    assert [[v if isinstance(v, str) else f"{v:.6f}" for v in row.values()] for row in table.to_pylist()] == flat
    assert main(["predict", str(run), folder]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["top", "prob", "2.", "prob", "3.", "prob", "path"]
    assert [line.split()[0::2] for line in printed[1:]] == [[*row[1::2], row[0]] for row in flat]
    assert len({line.index(folder) for line in printed[1:]} | {printed[0].index("path")}) == 1


def test_what_cannot_be_read_is_named_and_the_exit_code_says_so(run, pictures, tmp_path, capsys):
    folder = tmp_path / "d"
    shutil.copytree(pictures / "val" / "class_0", folder)
    (folder / "0001.jpg").write_bytes(b"no picture")
    (folder / "0002.png").write_bytes(cut_png(encode(picture(40, 40), "PNG"), 0.3))  # passes the scan
    (folder / "0003.jpg").unlink()
    (folder / "0003.jpg").symlink_to("gone")
    os.mkfifo(folder / "0004.jpeg")
    names = sorted(os.listdir(folder))
    bad = ["0001.jpg", "0002.png", "0003.jpg", "0004.jpeg"]
    reasons = ["text, not", "damaged picture data", "cannot be opened: the link leads", "not a regular file"]
    for kind in ("csv", "jsonl"):
        assert main(["predict", str(run), str(folder), "--out", str(tmp_path / f"p.{kind}"), "--batch-size", "2"]) == 4
        error = capsys.readouterr().err
        assert f"wrote {tmp_path}/p.{kind}: 17 pictures, 4 of them could not be read" in error
        for name, reason in zip(bad, reasons, strict=True):
            assert f"{folder}/{name}: {reason}" in error
    rows = predicted(tmp_path / "p.csv")
    assert [os.path.basename(row["path"]) for row in rows] == names
    assert [os.path.basename(row["path"]) for row in rows if not row["prediction"]] == bad
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [os.path.basename(line["path"]) for line in lines if "error" in line] == bad
    assert main(["predict", str(run), str(folder)]) == 4
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("not read ") for line in printed) == 4
    assert len({line.index(str(folder)) for line in printed[1:]}) == 1
    missing = fastast.load(run).predict([folder / "0000.jpg", folder / "none.jpg"])
    assert [prediction.error is None for prediction in missing] == [True, False]


def test_names_that_are_not_utf8(run, pictures, tmp_path, capsys):
    odd = os.fsencode(tmp_path) + b"/caf\xe9\n.jpg"
    shutil.copy(pictures / "val" / "class_0" / "0000.jpg", odd)
    for kind in ("csv", "jsonl"):
        assert main(["predict", str(run), os.fsdecode(odd), "--out", str(tmp_path / f"p.{kind}")]) == 0
    assert predicted(tmp_path / "p.csv")[0]["path"] == f"{tmp_path}/caf\\udce9\n.jpg"
    assert os.fsencode(json.loads((tmp_path / "p.jsonl").read_text())["path"]) == odd
    assert main(["predict", str(run), os.fsdecode(odd)]) == 0
    assert capsys.readouterr().out.endswith("caf\\udce9\\n.jpg\n")


def test_printing_ends_when_nobody_reads(monkeypatch):
    """`fastast predict RUN D | head` would otherwise go through every picture of D."""

    class Closed(io.StringIO):
        def flush(self):
            raise error

    lines = (f"{i}\n" for i in itertools.count())
    for error in (BrokenPipeError(32, "closed"), OSError(28, "full")):
        with tolerant_stream(Closed()) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            stream.flush()
            if isinstance(error, BrokenPipeError):
                predict._print(lines)
            else:
                with pytest.raises(OSError, match="full"):
                    predict._print(lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["*.nothing"], "no file matches it"),
        (["."], "no picture there"),
        (["{data}", "--top", "0"], "--top 0"),
        (["{data}", "--out", "p.txt"], "end it in .csv"),
        (["{data}", "--out", "none/p.csv"], "no such folder"),
        (["{data}", "--format", "parquet"], "add --out FILE.parquet"),
        (["{data}", "--arch", "resnet18"], "leave --arch out"),
    ],
)
def test_bad_input_is_one_line(run, pictures, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), *(word.format(data=pictures) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_weights_without_classes_say_what_to_add(run, pictures, tmp_path, capsys):
    """What the message says works when followed."""
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "w.pt")
    arguments = ["predict", str(tmp_path / "w.pt"), str(pictures / "val"), "--arch", "tests.nets:tiny"]
    arguments += ["--image-size", "32"]
    assert main(arguments) == 2
    assert "put a classes.json beside it" in capsys.readouterr().err
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] in "abcd"


def test_parquet_without_its_package(run, pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["predict", str(run), str(pictures), "--out", "p.parquet"]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
