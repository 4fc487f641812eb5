import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, logsumexp, softmax

from skdice._scores import SCORES, energy, gen, max_logit, msp

logits = arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-30, 30)
)


def gen_reference(values):
    """GEN from the logarithms of p and of 1 - p, each a log-sum-exp in float64."""
    log_p = log_softmax(np.asarray(values, float), axis=1)
    total = np.zeros(len(log_p))
    for row, lp in enumerate(log_p):
        terms = []
        for c in range(len(lp)):
            others = np.delete(np.asarray(values[row], float), c)
            log_q = (
                logsumexp(others) - logsumexp(np.asarray(values[row], float))
                if len(others)
                else -np.inf
            )
            terms.append((lp[c], np.exp(0.1 * (lp[c] + log_q))))
        total[row] = -sum(term for _, term in sorted(terms)[::-1][:100])
    return total


@given(logits)
def test_scores_equal_their_definitions(values):
    np.testing.assert_allclose(energy(values), logsumexp(values, axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(max_logit(values), values.max(axis=1))
    np.testing.assert_allclose(msp(values), softmax(values, axis=1).max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(gen(values), gen_reference(values), rtol=1e-9, atol=1e-12)


def test_gen_by_hand():
    # p = 3/4 and 1/4: twice (3/16)^0.1.
    np.testing.assert_allclose(gen(np.log([[3.0, 1.0]])), -2 * (3 / 16) ** 0.1, rtol=1e-14)


def test_gen_takes_the_hundred_most_likely_classes():
    values = np.random.default_rng(0).normal(size=(20, 300)) * 3
    np.testing.assert_allclose(gen(values), gen_reference(values), rtol=1e-11)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stable_far_from_zero(name, dtype):
    values = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]], dtype)
    result = SCORES[name](values)
    assert result.dtype == dtype
    assert np.isfinite(result).all()
    expected = {
        "energy": [1e4, -1e4 + np.log(3), 1e4 + np.log(3)],
        "max_logit": [1e4, -1e4, 1e4],
        "msp": [1, 1 / 3, 1 / 3],
        "gen": [0, -3 * (2 / 9) ** 0.1, -3 * (2 / 9) ** 0.1],
    }
    np.testing.assert_allclose(result, expected[name], rtol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_float32_agrees_with_float64(name):
    values = np.random.default_rng(1).normal(size=(500, 50)) * 8
    single = SCORES[name](values.astype(np.float32))
    np.testing.assert_allclose(single, SCORES[name](values.astype(np.float32).astype(float)), 1e-5)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n_classes", [1, 2, 150])
def test_overwriting_changes_the_logits_only(name, n_classes):
    values = np.random.default_rng(2).normal(size=(7, n_classes))
    kept = values.copy()
    expected = SCORES[name](values)
    np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(SCORES[name](values, overwrite=True), expected)


@pytest.mark.parametrize("name", SCORES)
def test_confident_rows_score_higher(name):
    score = SCORES[name](np.array([[8.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert score[0] > score[1]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n_classes", [1, 2, 3, 150])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_have_no_finite_score(name, n_classes, value):
    values = np.random.default_rng(0).normal(size=(4, n_classes))
    values[1, n_classes // 2] = value
    values[2] = -np.inf
    with np.errstate(invalid="ignore", divide="ignore"):
        score = SCORES[name](values)
    assert np.isfinite(score).tolist() == [True, False, False, True]


@pytest.mark.parametrize("n_classes", [1, 2, 3, 150])
def test_gen_has_no_score_where_a_logit_is_minus_infinity(n_classes):
    values = np.random.default_rng(0).normal(size=(3, n_classes))
    values[1, n_classes // 2] = -np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(gen(values)).tolist() == [False, True, False]
