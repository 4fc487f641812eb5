from math import fsum

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from skdice._reductions import RunningMean, quantiles
from skdice._threshold import score_threshold

anything = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0])
matrices = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: arrays(
        dtype,
        st.tuples(st.integers(1, 20), st.integers(1, 4)),
        elements=st.floats(-6e4, 6e4, width=16) if dtype == np.float16 else anything,
    )
)


@given(matrices, st.floats(0, 1), st.integers(1, 7))
def test_quantiles_equal_numpy(X, q, batch_size):
    flat = X.ravel().astype(np.float32 if X.dtype == np.float16 else X.dtype)
    assert quantiles(X, [q, 0.5], batch_size=batch_size) == [
        float(np.quantile(flat, q)),
        float(np.quantile(flat, 0.5)),
    ]


@pytest.mark.parametrize(
    "X",
    [
        np.arange(60).reshape(12, 5),
        np.random.default_rng(0).normal(size=(300, 40)).astype(">f4"),
        np.asfortranarray(np.random.default_rng(1).normal(size=(301, 7))),
        np.full((9, 3), -2.5),
        np.array([[1e308, -1e308, 5e-324]]),
    ],
    ids=["integers", "big-endian", "fortran", "constant", "extremes"],
)
def test_quantiles_of_every_kind_of_array(X):
    flat = X.ravel().astype(np.float32 if X.dtype.itemsize == 4 else np.float64)
    wanted = [0.0, 0.1, 0.37, 0.9, 1.0]
    with np.errstate(over="ignore"):
        assert quantiles(X, wanted) == [float(np.quantile(flat, q)) for q in wanted]


def test_mean_does_not_depend_on_the_split_even_where_columns_cancel():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(5000, 6)) * np.array([1, 1e3, 1e-3, 1e6, 1, 1])
    X[:, 4] -= X[:, 4].mean()
    means = []
    for size in (1, 7, 1000, 5000):
        running = RunningMean(6)
        for start in range(0, len(X), size):
            running.add(X[start : start + size])
        means.append(running.mean())
    for mean in means[1:]:
        np.testing.assert_allclose(mean, means[0], rtol=1e-12)


def test_mean_equals_the_exactly_rounded_sum():
    rng = np.random.default_rng(4)
    for dtype in (np.float32, np.float64):
        X = np.maximum(rng.normal(size=(3000, 5)), 0).astype(dtype)
        running = RunningMean(5)
        running.add(X[:1234])
        running.add(X[1234:])
        expected = [fsum(column.astype(float)) / len(X) for column in X.T]
        np.testing.assert_allclose(running.mean(), expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("large", [1e6, 1e8])
def test_mean_does_not_depend_on_the_split_around_large_rows_that_cancel(dtype, large):
    small = np.random.default_rng(6).normal(1e-3, 1e-3, size=(5000, 1))
    X = np.concatenate([[[large]], small, [[-large]]]).astype(dtype)
    whole, parts = RunningMean(1), RunningMean(1)
    whole.add(X)
    for block in np.split(X, [1, 3000, 5001]):
        parts.add(block)
    np.testing.assert_allclose(parts.mean(), whole.mean(), rtol=1e-12)
    np.testing.assert_allclose(whole.mean(), fsum(X[:, 0].astype(float)) / len(X), rtol=1e-12)


def test_mean_at_the_end_of_the_range():
    running = RunningMean(2)
    running.add(np.array([[1e308, 1.0], [-1e308, 2.0], [1e308, 6.0]]))
    np.testing.assert_allclose(running.mean(), [1e308 / 3, 3.0], rtol=1e-12)


def test_mean_of_a_column_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(9)
    X = rng.normal(size=(3000, 2)) * np.array([1e25, 1.0])
    X[:, 1] -= X[:, 1].mean() - 1e-6
    whole, parts = RunningMean(2), RunningMean(2)
    whole.add(X)
    for block in np.split(X, [7, 1500]):
        parts.add(block)
    np.testing.assert_allclose(parts.mean(), whole.mean(), rtol=1e-12)
    np.testing.assert_allclose(whole.mean()[1], fsum(X[:, 1]) / len(X), rtol=1e-12)


@given(st.integers(1, 400), st.floats(0, 0.5, exclude_min=True), st.randoms())
def test_threshold_flags_exactly_the_share(n, contamination, random):
    scores = np.array(random.sample(range(10 * n), n), dtype=float)
    below = int((scores < score_threshold(scores, contamination)).sum())
    assert below / n <= contamination < (below + 1) / n


@pytest.mark.parametrize(
    ("share", "below"), [(0.05, 5), (0.29, 29), (0.07, 7), (0.5, 50), (1e-9, 0)]
)
def test_threshold_by_hand(share, below):
    assert score_threshold(np.arange(100.0)[::-1], share) == below


def test_threshold_with_ties_is_the_smallest_with_more_than_the_share_at_or_below():
    assert score_threshold(np.array([1.0, 1.0, 1.0, 2.0]), 0.25) == 1
    assert score_threshold(np.array([1.0, 1.0, 2.0, 2.0]), 0.5) == 2
