"""Summaries of rows are those that NumPy makes in double precision."""

import numpy as np
import pytest

from skdice._compat.extras import has_numba
from skdice._engines.summaries import RowSummaries

pytestmark = pytest.mark.skipif(not has_numba(), reason="the summaries need numba")
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# The numbers of columns are below, at and beyond whole numbers of vectors.
SIZES = [1, 7, 8, 16, 17, 64, 1000]


def tolerance(dtype):
    return 1e-5 if dtype == np.float32 else 1e-12


def random(dtype, *shape, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


@by_dtype
@pytest.mark.parametrize("n_classes", SIZES)
@pytest.mark.parametrize("subtracts", [False, True])
def test_logits(dtype, n_classes, subtracts):
    products, bias = random(dtype, 50, n_classes + 3), random(dtype, n_classes, seed=1)
    subtracted = random(dtype, 50, n_classes, seed=2) if subtracts else None
    factors = np.abs(random(dtype, n_classes, n_classes, seed=3))
    summary = RowSummaries(np.dtype(dtype)).of_logits(
        products, bias, subtracted=subtracted, factors=factors
    )
    logits = (products[:, :n_classes] + bias).astype(float)
    logits -= 0 if subtracted is None else subtracted
    top = logits.max(axis=1)
    margins = ((top[:, None] - logits) * factors[logits.argmax(axis=1)]).sum(axis=1)
    rtol = tolerance(dtype)
    np.testing.assert_allclose(summary.maxima, top, rtol, atol=rtol)
    np.testing.assert_allclose(summary.totals, np.exp(logits - top[:, None]).sum(axis=1), rtol)
    np.testing.assert_allclose(summary.margins, margins, rtol)


@by_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 16, 19])
def test_a_logit_that_is_not_finite_shows(dtype, value, column):
    products = random(dtype, 3, 20)
    products[1, column] = value
    factors = np.ones((20, 20), dtype)
    summary = RowSummaries(np.dtype(dtype)).of_logits(
        products, np.zeros(20, dtype), factors=factors
    )
    for numbers in summary:
        assert np.isfinite(numbers).tolist() == [True, False, True]


def test_logits_of_minus_infinity_add_nothing():
    products = np.array([[-np.inf, 2.0, -np.inf], [-np.inf] * 3])
    summary = RowSummaries(np.dtype(float)).of_logits(products, np.zeros(3))
    np.testing.assert_array_equal(summary.maxima, [2, -np.inf])
    np.testing.assert_array_equal(summary.totals, [1, 0])


def test_an_exponential_sum_over_many_classes_is_exact():
    products = random(np.float32, 4, 30_000)
    summary = RowSummaries(np.dtype(np.float32)).of_logits(products, np.zeros(30_000, np.float32))
    below = products.astype(float) - products.max(axis=1, keepdims=True)
    np.testing.assert_allclose(summary.totals, np.exp(below).sum(axis=1), 1e-6)


@by_dtype
@pytest.mark.parametrize("size", SIZES)
def test_distances(dtype, size):
    rows, point = random(dtype, 30, size + 5), random(dtype, size, seed=1)
    expected = np.linalg.norm(rows[:, 2 : 2 + size].astype(float) - point, axis=1)
    for given in (rows, np.asfortranarray(rows)):
        distances = RowSummaries(np.dtype(dtype)).distances(given, point, 2)
        np.testing.assert_allclose(distances, expected, tolerance(dtype))


@by_dtype
@pytest.mark.parametrize("n_features", [1, 15, 16, 33, 500])
def test_clipped_rows(dtype, n_features):
    """Rows of which nothing, little, much and nearly all is cut off have the same precision."""
    rows = np.abs(random(dtype, 80, n_features))
    weight = random(dtype, n_features, 12, seed=1)
    rows[20:40, ::40] += 10
    rows[40:60] += 10
    rows[60:, 0] = 1e6
    weight[0] *= 1000  # what is cut off the first feature is large beside all that is left
    products = np.hstack([rows @ weight, random(dtype, 80, 2)])
    clipped, clipped_products = RowSummaries(np.dtype(dtype)).clipped(rows, 8.0, weight, products)
    np.testing.assert_array_equal(clipped, np.minimum(rows, 8))
    exact = clipped.astype(float) @ weight
    # The error of a sum is relative to the sum of the absolute values of its terms.
    size = clipped.astype(float) @ np.abs(weight)
    assert (np.abs(clipped_products - exact) <= tolerance(dtype) * size).all()


@by_dtype
@pytest.mark.parametrize("high", [0.0, -1.0])
def test_rows_clipped_at_a_value_that_is_not_positive(dtype, high):
    rows, weight = random(dtype, 20, 40), random(dtype, 40, 3, seed=1)
    clipped, products = RowSummaries(np.dtype(dtype)).clipped(rows, high, weight, rows @ weight)
    np.testing.assert_array_equal(clipped, np.minimum(rows, dtype(high)))
    np.testing.assert_allclose(products, clipped @ weight, tolerance(dtype))


def test_a_clipped_nan_stays():
    rows, weight = np.ones((2, 20)), np.ones((20, 3))
    rows[1, 4] = np.nan
    clipped, products = RowSummaries(np.dtype(float)).clipped(rows, 0.5, weight, rows @ weight)
    assert np.isnan(clipped[1, 4])
    assert np.isnan(products).tolist() == [[False] * 3, [True] * 3]
