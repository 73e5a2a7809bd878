"""What a run's page says first, where it shows mistakes, and how two runs compare."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastast.commands.report import run_report
from fastast.errors import InputError
from fastast.record.run_record import RunRecord, read_record
from fastast.report import answers
from fastast.report.baseline import accuracy_difference, put_beside
from fastast.report.mistakes import mistakes
from fastast.report.run_page import write_report
from tests.report.fake_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with joules and predictions; tests that change it put it back."""
    return write_run(tmp_path_factory.mktemp("answers") / "run", gpus=1, epochs=2)


def changed(run: Path, path: Path, **groups: dict[str, Any]) -> Path:
    """A copy of a run with other figures in its summary."""
    path.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (path / file.name).write_bytes(file.read_bytes())
    summary = json.loads((path / "summary.json").read_text())
    for group, values in groups.items():
        summary[group] = {**summary.get(group, {}), **values}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def predict(run: Path, label: np.ndarray, predicted: np.ndarray, probability: np.ndarray) -> RunRecord:
    """The run with these predictions, of pictures that are not there."""
    starts = np.zeros(len(label) + 1, np.int64)
    columns = {"label": label, "predicted": predicted, "probability": probability.astype(np.float32)}
    np.savez(run / "predictions.npz", **columns, path_bytes=np.zeros(0, np.uint8), path_starts=starts)
    return read_record(run)


def test_the_sentence_names_what_was_measured_first(run: Path, tmp_path: Path) -> None:
    answer = answers.answer(read_record(run))
    assert answer.text == (
        "The gate goes through 2.4x as many pictures a second as this run's own dense part (with the start of each) "
        "and trains 20 % of them, at 41 % fewer GPU joules a picture; accuracy lost: unknown, no dense run beside it. "
        "A bench tells, which would take about 1h19m at this run's pace:"
    )
    assert answer.command.startswith("fastast bench --data ")
    assert '--arms "dense;random:target=0.2;forward:target=0.2"' in answer.command
    found = copy.deepcopy(read_record(run))
    found.summary["gate"]["target"] = None  # the gate found its share by itself
    rate = found.summary["gate"]["activation_rate"]
    assert f'--arms "dense;random:target={rate:.2g};forward"' in answers.answer(found).command
    config = {"weights": "imagenet", "no_flip": True, "optimizer": "sgd"}
    tuned = dataclasses.replace(read_record(run), config=config)
    assert answers.answer(tuned).command.startswith("fastast bench --weights imagenet --no-flip --arms")
    assert [entry["name"] for entry in answers.savings(read_record(run))] == [
        "joules",
        "time",
        "work",
        "by AST's count",
    ]
    record = read_record(
        changed(run, tmp_path / "a", throughput={"dense_offered_per_s": None}, energy={"savings_measured": None})
    )
    assert answers.answer(record).text.startswith("By counting, 47 % less work a picture than dense training;")
    probed = answers.savings(read_record(changed(run, tmp_path / "c", probe={"seconds": 40.0})))
    whole = [entry["bars"][1]["value"] for entry in (*answers.savings(read_record(run)), *probed)]
    assert whole[5] == pytest.approx(whole[1] - 40 / 120 * (1 - whole[1]))
    assert "time" not in [entry["name"] for entry in answers.savings(record)]
    steady = {"steady_offered_per_s": 240.0, "steady_dense_offered_per_s": 120.0}  # the dense part began slowly
    record = read_record(changed(run, tmp_path / "d", throughput=steady))
    assert "2.0x as many pictures a second as this run's own dense part and trains" in answers.answer(record).text
    assert answers.savings(record)[1]["bars"][0]["value"] == pytest.approx(0.5)
    record = read_record(changed(run, tmp_path / "b", gate={"activation_rate": None}))
    assert "the gate never ran" in answers.answer(record).text


def test_a_run_without_an_end_says_how_to_go_on(run: Path, tmp_path: Path) -> None:
    record = read_record(changed(run, tmp_path / "a"))
    (record.path / "summary.json").unlink()
    (record.path / "samples.npz").unlink()
    answer = answers.answer(read_record(record.path))
    assert answer.text.startswith("Not finished: 60.00 % top-1 after epoch 2.")
    assert answer.command == f"fastast train --out {record.path} --resume"
    for name in ("metrics.jsonl", "predictions.npz"):
        (record.path / name).unlink()
    assert "nothing is known of its accuracy" in write_report(record.path).read_text()


def test_accuracy_has_its_binomial_error(run: Path) -> None:
    assert answers.accuracy_text(read_record(run)) == "60.00 ± 10.22 %"  # of 23 pictures, one was not decoded


def test_mistakes_are_counted_as_a_loop_counts_them(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 3, 200), rng.integers(-1, 3, 200).astype(np.int32)
    predicted[:2] = (7, 2)  # a class that does not exist
    found = mistakes(predict(changed(run, tmp_path / "a"), label, predicted, rng.random(200)))
    assert found is not None
    pairs = [(true, guess) for true, guess in zip(label.tolist(), predicted.tolist(), strict=True) if 0 <= guess < 3]
    assert found["num"] == len(pairs)
    assert found["num_wrong"] == sum(true != guess for true, guess in pairs)
    counts = [[cell["count"] for cell in row["cells"]] for row in found["matrix"]]
    assert counts == [[pairs.count((true, guess)) for guess in range(3)] for true in range(3)]
    shares = {true: pairs.count((true, true)) / sum(pair[0] == true for pair in pairs) for true in range(3)}
    names = read_record(run).classes
    assert [entry["name"] for entry in found["classes"]] == [names[true] for true in sorted(shares, key=shares.get)]
    assert found["pictures"] == []  # none of them exists


def test_of_many_classes_the_confusions_are_listed(run: Path, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "a")
    (path / "classes.json").write_text(json.dumps([f"c{i}" for i in range(30)]))
    label = np.repeat(np.arange(30), 10)
    predicted = label.astype(np.int32)
    predicted[:4], predicted[10:13], predicted[20] = 5, 0, 29
    found = mistakes(predict(path, label, predicted, np.ones(300)))
    assert found is not None
    assert found["matrix"] is None
    assert found["confusions"] == [
        ("c0", "c5", "4 of 10 (40 %)"),
        ("c1", "c0", "3 of 10 (30 %)"),
        ("c2", "c29", "1 of 10 (10 %)"),
    ]
    assert [(entry["name"], entry["text"]) for entry in found["classes"][:2]] == [
        ("c0", "60 % of 10"),
        ("c1", "70 % of 10"),
    ]


def test_paired_error_is_that_of_the_differences(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 400)
    first = np.where(rng.random(400) < 0.8, label, (label + 1) % 3).astype(np.int32)
    second = np.where(rng.random(400) < 0.1, (label + 1) % 3, first).astype(np.int32)
    second[0] = -1
    ours = predict(changed(run, tmp_path / "a"), label, first, np.ones(400))
    theirs = predict(changed(run, tmp_path / "b"), label, second, np.ones(400))
    found = accuracy_difference(ours, theirs)
    gained = [int(a == c) - int(b == c) for a, b, c in zip(first[1:], second[1:], label[1:], strict=True)]
    assert found.is_paired
    assert found.value == pytest.approx(np.mean(gained))
    assert found.error == pytest.approx(np.std(gained, ddof=1) / np.sqrt(399))
    (theirs.path / "predictions.npz").unlink()
    unpaired = accuracy_difference(ours, read_record(theirs.path))
    assert not unpaired.is_paired
    assert unpaired.error == pytest.approx(np.sqrt(0.6 * 0.4 / 399 + 0.6 * 0.4 / 500), rel=0.01)


def test_a_baseline_answers_the_question(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = changed(
        run, tmp_path / "plain", gate={"name": "dense"}, time_s={"total": 272.0}, compute={"forward_units": 38400.0}
    )
    sentence = put_beside(read_record(run), read_record(dense)).answer.text
    assert sentence == (
        "Beside dense training (plain): no difference in accuracy is shown (+0.00 ± 0.00 points of top-1); "
        "2.0x faster, 2.6x less work, as many GPU joules."
    )
    assert run_report([str(run)], str(tmp_path / "page.html"), str(dense)) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Beside plain</h2>" in page
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'page.html'}\n"  # a script may open it
    assert told.err.startswith(f"{sentence}\nnext: fastast ")


def test_runs_that_do_not_compare_are_refused(run: Path, tmp_path: Path) -> None:
    other = changed(run, tmp_path / "other", data={"fingerprint": "g"})
    with pytest.raises(InputError, match="other training or validation pictures"):
        run_report([str(run)], None, str(other))
    (other / "summary.json").unlink()
    with pytest.raises(InputError, match="has not finished; continue it with fastast train --out"):
        run_report([str(run)], None, str(other))
    with pytest.raises(InputError, match="--baseline: is for the page of one run"):
        run_report([str(run), str(run)], None, str(other))


def test_the_data_set_is_named(tmp_path: Path) -> None:
    assert answers.data_name({"data": "/sets/imagenette/"}) == "imagenette"
    assert answers.data_name({"train_dir": "/sets/a/train,/sets/a/more"}) == "a"
    assert answers.data_name({"data": None}) == "the demo set"
