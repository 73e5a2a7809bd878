"""Student's t and Holm's correction, against printed tables and a plain twin."""

import itertools

import numpy as np
import pytest

from fastast.bench.student import holm, p_value, paired_test, quantile


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216)])
def test_quantiles_and_p_values_of_the_printed_tables(degrees, t):
    assert quantile(degrees) == pytest.approx(t, rel=1e-5)
    assert p_value(t, degrees) == pytest.approx(0.05, rel=1e-4)
    assert p_value(0.0, degrees) == 1
    assert p_value(-t, degrees) == p_value(t, degrees)


def test_p_value_of_a_known_t():
    assert p_value(2.0, 2) == pytest.approx(1 - 2 / 6**0.5)  # in closed form: t / sqrt(2 + t^2)
    assert p_value(1.0, 1) == pytest.approx(0.5)


def test_paired_test_by_hand():
    test = paired_test(np.array([0.01, 0.02, 0.03]))
    error = 0.01 / 3**0.5
    assert test.mean == pytest.approx(0.02)
    assert test.half_width == pytest.approx(4.30265 * error, rel=1e-5)
    assert test.p == pytest.approx(p_value(0.02 / error, 2))


def test_agreement_by_chance_is_not_believed():
    same = np.array([0.01, 0.01, 0.01])  # one picture of a hundred, three times
    assert paired_test(same).p == 0
    assert paired_test(same, least_sd=0.01).p == pytest.approx(p_value(3**0.5, 2))
    assert paired_test(np.zeros(3)).p == 1


def test_holm_equals_the_rule_step_by_step():
    rng = np.random.default_rng(0)
    for m in (1, 2, 5):
        p = rng.uniform(0, 0.1, (50, m))
        adjusted = holm(p)
        for row, found in zip(p, adjusted, strict=True):
            refused = set()
            for step, index in enumerate(np.argsort(row)):
                if row[index] > 0.05 / (m - step):
                    break
                refused.add(index)
            assert refused == set(np.flatnonzero(found <= 0.05))
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_any_number_of_benches_at_once():
    rng = np.random.default_rng(1)
    differences = rng.normal(0, 1, (4, 3, 5))
    whole = paired_test(differences)
    for i, k in itertools.product(range(4), range(3)):
        one = paired_test(differences[i, k])
        assert (whole.mean[i, k], whole.p[i, k]) == (pytest.approx(one.mean), pytest.approx(one.p))
