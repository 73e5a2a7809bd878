"""Regressions solved side by side, against one problem at a time by a plain solver."""

from contextlib import closing

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastast.errors import InputError
from fastast.models import feature_store, logistic_regression
from fastast.models.feature_store import FeatureStore
from fastast.models.logistic_regression import fit, measure

ROWS, FEATURES, CLASSES, FOLDS = 300, 12, 3, 3
ALIKE, UNLIKE = torch.ones(CLASSES), torch.tensor([0.2, 1.0, 3.0])


def rows():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    features = torch.randn(ROWS, FEATURES, generator=generator) * torch.linspace(0.1, 3, FEATURES) + 2
    features[:, :CLASSES] += 0.5 * F.one_hot(labels, CLASSES)
    return features.half(), labels, torch.arange(ROWS) // 7 % FOLDS


def store(folder=None, part=slice(None)):
    features, labels, folds = rows()
    features, ids = features[part], torch.arange(ROWS)[part]
    filled = FeatureStore(len(ids) + 5, FEATURES, labels, folds, folder and folder / "features.bin")
    for first in range(0, len(ids), 64):
        some = slice(first, first + 64)
        filled.append(features[some], ids[some])
    return filled


def empty(folder):
    _, labels, folds = rows()
    return FeatureStore(ROWS, FEATURES, labels, folds, folder / "features.bin")


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
def test_each_problem_has_the_solution_of_a_plain_solver(class_weights):
    problems = [(0, 1e-2), (2, 1e-3), (-1, 1e-3)]
    with closing(store()) as features:
        heads = solve(features, *zip(*problems, strict=True), class_weights)
        losses = heads.losses(features)
    labels = rows()[1]
    for number, problem in enumerate(problems):
        expected = F.cross_entropy(reference(*problem, class_weights), labels, reduction="none")
        torch.testing.assert_close(losses[number].double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("host_bytes", [1 << 30, 0], ids=["memory", "file"])
def test_saved_features_give_the_same_bits(tmp_path, monkeypatch, host_bytes):
    monkeypatch.setattr(feature_store, "CHUNK", 128)
    with closing(store()) as features:
        expected = solve(features, [0, -1], [1e-2, 1e-3])
    monkeypatch.setattr(feature_store, "HOST_BYTES", host_bytes)
    with closing(store(tmp_path)) as features:
        assert features.save() == ROWS
        assert all(map(torch.equal, solve(features, [0, -1], [1e-2, 1e-3]), expected))
    with closing(empty(tmp_path)) as features:
        assert not features.restore(np.arange(1, ROWS))  # other pictures
        assert features.num_rows == 0
    with closing(empty(tmp_path)) as features:
        assert features.restore(np.arange(200))
        features.append(rows()[0][200:], torch.arange(200, ROWS))
        assert features.save() == ROWS
        assert all(map(torch.equal, solve(features, [0, -1], [1e-2, 1e-3]), expected))
    with closing(empty(tmp_path)) as features:
        assert features.restore(np.arange(ROWS))
        assert all(map(torch.equal, solve(features, [0, -1], [1e-2, 1e-3]), expected))


def test_features_without_a_folder_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "HOST_BYTES", 0)
    with closing(store(tmp_path / "absent")) as features:
        assert features.save() == 0
        assert len(solve(features, [0], [1e-2]).bias)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "HOST_BYTES", 0)
    monkeypatch.setattr(feature_store.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for .* free some space"):
        empty(tmp_path)


def test_features_that_are_no_numbers_are_refused():
    with closing(store()) as features:
        features.append(torch.full((1, FEATURES), torch.nan), torch.tensor([0]))
        with pytest.raises(InputError, match="not finite"):
            measure(features, ALIKE, FOLDS, lambda tensor: tensor)


def test_work_is_a_fixed_number_of_iterations():
    iterations = []
    with closing(store(part=slice(40))) as features:
        scaling = measure(features, ALIKE, FOLDS, lambda tensor: tensor)
        penalty = torch.tensor([1e-3])
        fit(features, scaling, torch.tensor([-1]), penalty, lambda _: None, lambda: iterations.append(0))
    assert len(iterations) == logistic_regression.NUM_ITERATIONS
