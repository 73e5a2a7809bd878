"""`--arms` and `--budgets`: what they name, and one line with a remedy for every mistake."""

import pytest

from fastast.bench.arms import Arm, Budget, check_runs, parse_arms, parse_budgets
from fastast.errors import InputError


def test_arms_have_gates_and_typed_options():
    text = "dense; random:target=0.30 ;memory:no-flip,target=0.3,warmup_epochs=0;infobatch:prune=0.5,threads=2"
    text += ";memory:target=auto"
    arms = parse_arms(text)
    assert [arm.name for arm in arms] == [
        "dense",
        "random:target=0.3",
        "memory:no-flip,target=0.3,warmup-epochs=0",
        "infobatch:prune=0.5,threads=2",
        "memory:target=auto",
    ]
    assert arms[2].options == {"no_flip": True, "target": 0.3, "warmup_epochs": 0.0}
    assert arms[4].options == {"target": "auto"}
    assert arms[3].options == {"prune": 0.5, "threads": 2}
    assert arms[1].to_json() == {"name": "random:target=0.3", "options": {"gate": "random", "target": 0.3}}


def test_name_does_not_depend_on_the_order_of_options():
    one, two = (
        parse_arms("dense;memory:target=0.3,explore=0.1;random"),
        parse_arms("dense;memory:explore=0.1,target=.3"),
    )
    assert one[1] == two[1]
    assert one[1].name == two[1].name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dense;magic:target=0.3", ["--arms magic: choose from dense, random"]),
        ("dense;proxy", ["--arms proxy was removed", "use memory"]),
        ("dense;memory:targt=0.3", ["--arms memory:targt=0.3: unknown option 'targt'; did you mean target?"]),
        ("dense;memory:read=mmap", ["--arms memory:read=mmap: --read was removed"]),
        ("dense;memory:target", ["--arms memory:target: target needs a value, as in target=VALUE"]),
        ("dense;memory:target=x", ["--arms memory:target=x: target=x: expected a number or auto"]),
        ("dense;memory:threads=1.5", ["threads=1.5: expected a whole number"]),
        ("dense;memory:no-flip=1", ["no-flip takes no value; write no-flip alone"]),
        ("dense;dense:target=0.3", ["--arms dense:target=0.3: --target does nothing with dense; leave it out"]),
        ("dense;memory:budget=3ep", ["--budget is set for each run", "--budgets"]),
        ("dense;memory:image-size=96", ["--image-size must be the same in all runs", "beside --arms"]),
        ("dense;memory:target=0.3;memory:target=.3", ["is named twice"]),
        ("dense;dense:lr=0.1234561;dense:lr=0.1234562", ["is named twice"]),  # by six digits
        ("random;memory", ["has no dense arm", '--arms "dense;random;memory"']),
    ],
)
def test_bad_arm_is_named_with_a_remedy(text, words):
    with pytest.raises(InputError) as caught:
        parse_arms(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "amounts", "names"),
    [
        ("0.5,1,2ep", "ep", [0.5, 1, 2], ["0.5ep", "1ep", "2ep"]),
        ("2ep, 1ep", "ep", [1, 2], ["1ep", "2ep"]),
        ("5,10m", "time", [300, 600], ["5m", "10m"]),
        ("90s,1h30m", "time", [90, 5400], ["1m30s", "1h30m"]),
        ("100kJ,0.15kWh", "joules", [1e5, 5.4e5], ["100kJ", "540kJ"]),
    ],
)
def test_budgets_share_the_last_unit(text, kind, amounts, names):
    budgets = parse_budgets(text)
    assert [budget.amount for budget in budgets] == amounts
    assert {budget.kind for budget in budgets} == {kind}
    assert [budget.name for budget in budgets] == names
    assert parse_budgets(",".join(names)) == budgets  # a name is what `--budget` takes


def test_scaled_budget_has_three_digits():
    assert Budget("ep", 2.0).scaled(1 / 3).name == "0.667ep"
    assert Budget("time", 600.0).scaled(0.1234).name == "1m14s"
    assert parse_budgets(Budget("time", 100.0).scaled(0.123).name) == [Budget("time", 12.3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2", "--budgets 1: expected"),
        ("1,,2ep", "--budgets : expected"),
        ("1ep,10m", "use one unit for all"),
        ("1,1.0ep", "named twice"),
        ("10.01s,10.02s", "named twice"),
        ("0ep", "--budgets 0ep: expected"),
    ],
)
def test_bad_budgets_are_named_with_a_remedy(text, words):
    with pytest.raises(InputError) as caught:
        parse_budgets(text)
    assert words in str(caught.value)


def test_runs_are_checked_by_the_rules_of_train():
    budgets = parse_budgets("0.5,2ep")
    arms = [Arm("dense", {}), Arm("memory", {"target": 30.0})]
    with pytest.raises(InputError, match=r"^--arms memory:target=30: --target 30: must be in \(0, 1\]"):
        check_runs({"data": "d"}, arms, budgets)
    with pytest.raises(InputError, match=r"^--lr 0.0"):  # of all arms
        check_runs({"data": "d", "lr": 0.0}, arms, budgets)


def test_arm_whose_gate_never_runs_is_noted():
    arms = parse_arms("dense;memory:warmup-epochs=1;random:warmup-epochs=0")
    (note,) = check_runs({"data": "d"}, arms, parse_budgets("0.5,1,2ep"))
    assert note.startswith("memory:warmup-epochs=1 is dense training with 0.5ep, 1ep: --warmup-epochs 1")
