"""Regressions solved side by side, against one problem at a time by a plain solver."""

import pytest
import torch
import torch.nn.functional as F

from fastast.errors import InputError
from fastast.models import feature_store, logistic_regression
from fastast.models.feature_store import FeatureStore
from fastast.models.logistic_regression import fit, measure

CPU, ROWS, FEATURES, CLASSES, FOLDS = torch.device("cpu"), 300, 12, 3, 3
ALIKE, UNLIKE = torch.ones(CLASSES), torch.tensor([0.2, 1.0, 3.0])


def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    features = torch.randn(ROWS, FEATURES, generator=generator) * torch.linspace(0.1, 3, FEATURES) + 2
    features[:, :CLASSES] += 0.5 * F.one_hot(labels, CLASSES)
    return features.half(), labels, torch.arange(ROWS) // 7 % FOLDS


def store(folder, part=slice(None)):
    features, labels, folds = (values[part] for values in rows())
    filled = FeatureStore(len(labels) + 5, FEATURES, CPU, folder)
    for first in range(0, len(labels), 64):
        some = slice(first, first + 64)
        filled.append(features[some], labels[some], folds[some])
    return filled


def reference(left_out, penalty, class_weights):
    """Logits of all rows by torch's L-BFGS in double precision, on centred features of mean square 1."""
    features, labels, folds = rows()
    share = class_weights.double()[labels]
    share /= share.sum()
    x = features.double() - share @ features.double()
    x = x / (share @ x.square().sum(1)).sqrt()
    weight, bias = (
        torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((FEATURES, CLASSES), CLASSES)
    )
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    mine = folds != left_out

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(x[mine] @ weight + bias, labels[mine], class_weights.double())
        loss += penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return (x @ weight + bias).detach()


def solve(features, left_out, penalties, class_weights=ALIKE, reduce=lambda tensor: tensor):
    scaling = measure(features, class_weights, FOLDS, reduce)
    return fit(features, scaling, torch.tensor(left_out), torch.tensor(penalties), reduce)


@pytest.mark.parametrize("class_weights", [ALIKE, UNLIKE], ids=["alike", "unlike"])
def test_each_problem_has_the_solution_of_a_plain_solver(tmp_path, class_weights):
    problems = [(0, 1e-2), (2, 1e-3), (-1, 1e-3)]
    with store(tmp_path) as features:
        heads = solve(features, *zip(*problems, strict=True), class_weights)
        losses = heads.losses(features)
    labels = rows()[1]
    for number, problem in enumerate(problems):
        expected = F.cross_entropy(reference(*problem, class_weights), labels, reduction="none")
        torch.testing.assert_close(losses[number].double(), expected, atol=2e-3, rtol=2e-3)


def test_features_in_a_file_give_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK", 128)
    with store(tmp_path) as features:
        kept = solve(features, [0, -1], [1e-2, 1e-3])
    monkeypatch.setattr(feature_store, "HOST_BYTES", 0)
    with store(tmp_path) as features:
        read = solve(features, [0, -1], [1e-2, 1e-3])
        assert list(tmp_path.iterdir()) == []  # the file has no name
    assert all(map(torch.equal, kept, read))


def test_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "HOST_BYTES", 0)
    monkeypatch.setattr(feature_store.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for .* free some space"):
        FeatureStore(10, FEATURES, CPU, tmp_path)


def test_features_that_are_no_numbers_are_refused(tmp_path):
    with store(tmp_path) as features:
        features.append(torch.full((1, FEATURES), torch.nan), *torch.zeros(2, 1, dtype=torch.int64))
        with pytest.raises(InputError, match="not finite"):
            measure(features, ALIKE, FOLDS, lambda tensor: tensor)


def test_work_is_a_fixed_number_of_iterations(tmp_path):
    iterations = []
    with store(tmp_path, slice(40)) as features:
        scaling = measure(features, ALIKE, FOLDS, lambda tensor: tensor)
        penalty = torch.tensor([1e-3])
        fit(features, scaling, torch.tensor([-1]), penalty, lambda _: None, lambda: iterations.append(0))
    assert len(iterations) == logistic_regression.NUM_ITERATIONS
