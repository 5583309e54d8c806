"""Errors, tests and variance components for pairs that share models, against slow plain references."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from kt.analysis import dyadic, statistics
from kt.analysis.dyadic import LEAST, Dyads, ols


def all_pairs(models):
    return np.array(list(permutations(range(models), 2))).T


def some_pairs(rng, models, share):
    t, s = all_pairs(models)
    keep = rng.random(len(t)) < share
    return t[keep], s[keep]


def slow_covariance(y, x, t, s):
    """Aronow, Samii and Assenova, as the double sum over dyads that share a model."""
    bread = np.linalg.inv(x.T @ x)
    e = y - x @ bread @ x.T @ y
    hat = x @ bread @ x.T
    w = x @ bread
    k = x.shape[1]
    meat, taken = np.zeros((k, k)), np.zeros(k)
    for p in range(len(y)):
        for q in range(len(y)):
            if {t[p], s[p]} & {t[q], s[q]}:
                meat += np.outer(w[p], w[q]) * e[p] * e[q]
                taken += w[p] * w[q] * hat[p, q]
    return meat, 1 - taken / (w**2).sum(0)


def slow_two_way(y, x, first, second, few=False):
    """Cameron, Gelbach and Miller 2011: clusters of one sort, plus the other, minus both; corrected for few or not."""

    def clustered(groups):
        bread = np.linalg.inv(x.T @ x)
        e = y - x @ bread @ x.T @ y
        meat = sum(np.outer(g, g) for c in set(groups) for g in [(x * e[:, None])[groups == c].sum(0)])
        return bread @ meat @ bread

    def factor(groups):
        return len(set(groups)) / (len(set(groups)) - 1) if few else 1

    both = clustered(first * 1000 + second)
    return clustered(first) * factor(first) + clustered(second) * factor(second) - both


def design(rng, t, s, models):
    x = rng.normal(size=models)
    return np.column_stack([np.ones(len(t)), x[t], x[t] - rng.normal(size=models)[s]])


@pytest.mark.parametrize(("models", "share"), [(5, 1.0), (9, 0.6), (14, 0.3)])
def test_regression_errors_agree_with_the_double_sum_over_dyads(models, share):
    rng = np.random.default_rng(models)
    compared = 0
    for _ in range(5):
        t, s = some_pairs(rng, models, share)
        x = design(rng, t, s, models)
        y = rng.normal(size=models)[t] + 2 * rng.normal(size=models)[s] + rng.normal(size=len(t))
        fit = ols(y, x, Dyads.of(t, s))
        assert fit.beta == pytest.approx(np.linalg.lstsq(x, y, rcond=None)[0])
        meat, left = slow_covariance(y, x, t, s)
        found = statistics.moments(y - x @ fit.beta, t, s)
        floor = LEAST * dyadic._carried(x @ np.linalg.inv(x.T @ x), found, Dyads.of(t, s)).sum(0)
        expected = np.sqrt(np.maximum(np.diag(meat) / left, floor))
        assert fit.se == pytest.approx(expected)
        compared += int((np.diag(meat) / left > floor).sum())
    assert compared > 2


def test_where_no_model_is_in_both_roles_dyadic_is_two_way_clustering():
    rng = np.random.default_rng(0)
    t, s = (grid.ravel() for grid in np.indices((7, 9)))
    s = s + 7
    x = np.column_stack([np.ones(len(t)), rng.normal(size=7)[t], rng.normal(size=(7, 9)).ravel()])
    y = rng.normal(size=7)[t] + rng.normal(size=16)[s] + rng.normal(size=len(t))
    bread = np.linalg.inv(x.T @ x)
    e = y - x @ bread @ x.T @ y
    ours = Dyads.of(t, s).over_sharing((x @ bread) * e[:, None])
    assert ours == pytest.approx(slow_two_way(y, x, t, s))


def test_two_way_errors_agree_with_the_slow_sum_over_clusters():
    rng = np.random.default_rng(2)
    t, s = some_pairs(rng, 12, 0.7)
    x = design(rng, t, s, 12)
    y = rng.normal(size=12)[t] + rng.normal(size=12)[s] + rng.normal(size=len(t))
    expected = np.diag(slow_two_way(y, x, t, s, few=True))
    assert (expected > 0).all()
    assert ols(y, x, Dyads.of(t, s)).se_two_way == pytest.approx(np.sqrt(expected))


def test_ordinary_errors_are_those_of_the_textbook():
    rng = np.random.default_rng(1)
    t, s = all_pairs(6)
    x, y = rng.normal(size=len(t)), rng.normal(size=len(t))
    fit = ols(y, np.column_stack([np.ones(len(t)), x]), Dyads.of(t, s))
    expected = stats.linregress(x, y)
    assert fit.beta[1] == pytest.approx(expected.slope)
    assert fit.se_iid == pytest.approx([expected.intercept_stderr, expected.stderr])


def test_the_mean_is_the_regression_on_a_constant():
    rng = np.random.default_rng(2)
    t, s = some_pairs(rng, 9, 0.7)
    y = rng.normal(size=9)[s] + rng.normal(size=len(t))
    fit = ols(y, np.ones((len(y), 1)), Dyads.of(t, s))
    assert dyadic.mean(y, t.tolist(), s.tolist()) == pytest.approx((fit.beta[0], max(fit.se[0], fit.se_iid[0])))


def test_intervals_cover_near_nominal_where_ordinary_ones_fail():
    rng = np.random.default_rng(3)
    t, s = all_pairs(12)
    dyads = Dyads.of(t, s)
    covered = np.zeros(2)
    for _ in range(300):
        x = np.column_stack([np.ones(len(t)), rng.normal(size=12)[t]])
        y = rng.normal(size=12)[t] + rng.normal(size=12)[s] + rng.normal(size=len(t))
        fit = ols(y, x, dyads)
        low, high = fit.interval()
        covered += [low[1] <= 0 <= high[1], abs(fit.beta[1]) < 1.96 * fit.se_iid[1]]
    assert covered[0] / 300 > 0.91
    assert covered[1] / 300 < 0.85


def test_dependent_columns_are_refused_and_too_few_pairs_have_no_error():
    t, s = all_pairs(4)
    with pytest.raises(ValueError, match="linearly dependent"):
        ols(np.arange(12.0), np.ones((12, 2)), Dyads.of(t, s))
    fit = ols([1.0, 2.0], np.array([[1.0, 0.0], [1.0, 1.0]]), Dyads.of([0, 1], [1, 2]))
    assert fit.beta == pytest.approx([1, 1])
    assert np.isinf(fit.se).all()
    assert fit.p() == pytest.approx([1, 1])


def test_variance_components_are_those_planted_also_where_pairs_are_missing():
    rng = np.random.default_rng(4)
    t, s = some_pairs(rng, 150, 0.5)
    a = rng.normal(0, 2, 150)
    b = -0.5 * a + rng.normal(0, 0.5, 150)
    found = statistics.moments(5 + a[t] + b[s] + rng.normal(0, 1.5, len(t)), t, s)
    assert found.teacher == pytest.approx(a.var(), rel=0.05)
    assert found.student == pytest.approx(b.var(), rel=0.05)
    assert found.residual == pytest.approx(1.5**2, rel=0.05)
    assert found.covariance == pytest.approx(np.cov(a, b)[0, 1], rel=0.1)


def test_variance_components_that_cannot_be_told_apart_are_all_residual():
    found = statistics.moments(np.array([1.0, 2.0, 4.0]), np.array([0, 0, 0]), np.array([1, 2, 3]))
    assert (found.teacher, found.student, found.known) == (0, 0, False)
    assert found.residual == pytest.approx(np.var([1, 2, 4], ddof=1))


def test_shrunken_effects_solve_the_mixed_model_equations():
    rng = np.random.default_rng(5)
    t, s = some_pairs(rng, 6, 0.8)
    y = rng.normal(size=6)[t] + rng.normal(size=6)[s] + rng.normal(size=len(t))
    found = statistics.Components(0.7, 1.3, 2.0)
    average, teachers, students = statistics.shrunken(y, t, s, 6, found)
    z = np.column_stack([np.eye(6)[t], np.eye(6)[s]])
    prior = np.diag([0.7] * 6 + [1.3] * 6)
    omega = np.linalg.inv(z @ prior @ z.T + 2.0 * np.eye(len(y)))
    mean = (omega.sum(0) @ y) / omega.sum()
    assert average == pytest.approx(mean)
    assert np.concatenate([teachers, students]) == pytest.approx(prior @ z.T @ omega @ (y - mean))


def test_bootstrap_weights_a_pair_by_how_often_both_its_models_are_drawn():
    rng = np.random.default_rng(6)
    t, s = some_pairs(rng, 7, 0.7)
    y, x = rng.normal(size=len(t)), np.column_stack([np.ones(len(t)), rng.normal(size=len(t))])
    drawn = statistics.weights(7, 30, rng)
    assert (drawn.sum(1) == 7).all()
    means, slopes = statistics.means(y, t, s, drawn), statistics.slopes(y, x, t, s, drawn)
    for draw, mean, slope in zip(drawn, means, slopes, strict=True):
        w = draw[t] * draw[s]
        if (w > 0).sum() > 3:
            assert mean == pytest.approx(np.average(y, weights=w))
            assert slope == pytest.approx(np.linalg.lstsq(x * np.sqrt(w)[:, None], y * np.sqrt(w), rcond=None)[0])


def test_permutation_p_values_are_uniform_for_a_null_and_small_for_a_planted_property():
    rng = np.random.default_rng(7)
    t, s = all_pairs(10)
    below = []
    for _ in range(200):
        of_model = rng.normal(size=(2, 10))
        y = rng.normal(size=10)[t] + 2 * of_model[1][t] + 0.3 * rng.normal(size=len(t))
        matrix = np.stack([np.tile(m[:, None], 10) for m in of_model], -1)
        matrix[np.arange(10), np.arange(10)] = 0
        p = statistics.permutation_p(y - y.mean(), t, s, matrix - matrix.mean((0, 1)), 99, rng)
        below.append(p <= 0.1)
    null, planted = np.mean(below, 0)
    assert 0.04 < null < 0.17
    assert planted > 0.9


def test_corrections_agree_with_hand_computed_ones_and_leave_unknown_values_out():
    p = np.array([0.01, 0.04, np.nan, 0.03])
    assert statistics.holm(p) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert statistics.benjamini_hochberg(p) == pytest.approx([0.03, 0.04, np.nan, 0.04], nan_ok=True)


def test_pairs_of_one_student_that_are_all_equal_are_one_observation():
    assert dyadic.mean([-15.0] * 4, list("abcd"), list("ssss")) == (-15.0, math.inf)
    mean, error = dyadic.mean([-15.0, -15.0, -15.0, -14.0], list("abcd"), list("ssss"))
    assert (mean, math.isfinite(error)) == (-14.75, True)
