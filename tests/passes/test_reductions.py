import sys
from math import fsum

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from skdice._passes import mean as mean_pass
from skdice._passes.mean import FeatureStatistics, column_sums, gather_statistics
from skdice._passes.quantiles import quantiles
from skdice._rows.door import as_source

pytest.importorskip("numba")
from skdice._passes.sum_kernel import compiled_column_sums
from skdice._passes.threshold import score_threshold

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
    assert quantiles(as_source(X), [q, 0.5], batch_size=batch_size) == [
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
        assert quantiles(as_source(X), wanted) == [float(np.quantile(flat, q)) for q in wanted]


@pytest.fixture(scope="module", params=["numpy", "compiled"])
def mean_of(request):
    def mean(*blocks, half=False):
        running = FeatureStatistics(blocks[0].shape[1])
        for block in blocks:
            compiled = request.param == "compiled"
            sums = compiled_column_sums(block) if compiled else column_sums(block, half=half)
            running._add_sums(len(block), sums, len(block))
        assert running.n_samples == sum(len(block) for block in blocks)
        return running.mean()

    return mean


def exact_mean(X):
    return [fsum(column.astype(float)) / len(X) for column in X.T]


def test_mean_does_not_depend_on_the_split_even_where_columns_cancel(mean_of):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(5000, 6)) * np.array([1, 1e3, 1e-3, 1e6, 1, 1])
    X[:, 4] -= X[:, 4].mean()
    whole = mean_of(X)
    for size in (1, 7, 1000):
        parts = mean_of(*np.split(X, range(size, len(X), size)))
        np.testing.assert_allclose(parts, whole, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_equals_the_exactly_rounded_sum(mean_of, dtype):
    X = np.maximum(np.random.default_rng(4).normal(size=(3000, 5)), 0).astype(dtype)
    np.testing.assert_allclose(mean_of(X[:1234], X[1234:]), exact_mean(X), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("large", [1e6, 1e8])
def test_mean_does_not_depend_on_the_split_around_large_rows_that_cancel(mean_of, dtype, large):
    small = np.random.default_rng(6).normal(1e-3, 1e-3, size=(5000, 1))
    X = np.concatenate([[[large]], small, [[-large]]]).astype(dtype)
    whole = mean_of(X)
    np.testing.assert_allclose(mean_of(*np.split(X, [1, 3000, 5001])), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, exact_mean(X), rtol=1e-12)


def test_mean_at_the_end_of_the_range(mean_of):
    X = np.array([[1e308, 1.0], [-1e308, 2.0], [1e308, 6.0]])
    np.testing.assert_allclose(mean_of(X), [1e308 / 3, 3.0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_of_a_column_does_not_depend_on_its_neighbours(mean_of, dtype):
    rng = np.random.default_rng(9)
    X = rng.normal(size=(3000, 2)) * np.array([1e25, 1.0])
    X[:, 1] -= X[:, 1].mean() - 1e-6
    X = X.astype(dtype)
    whole = mean_of(X)
    np.testing.assert_allclose(mean_of(*np.split(X, [7, 1500])), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, exact_mean(X), rtol=1e-12)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 600), st.just(2)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32)
        | st.sampled_from([0.0, 2.0**100, -(2.0**100), 2.0**-140]),
        fill=st.sampled_from([0.0, 1.0, -1.5, 2.0**-60]),
    )
)
def test_mean_of_single_precision_loses_nothing_that_float64_can_hold(mean_of, X):
    # Beyond a 2^-105 of the largest magnitude, no pair of float64 sums could hold more.
    bound = 1e-30 * np.abs(X).max(axis=0).astype(float) + 1e-15 * np.abs(exact_mean(X))
    if len(X) > 256 and X.min() >= 0:
        bound += 1e-13 * X.mean(axis=0, dtype=float)
    assert (np.abs(mean_of(X) - exact_mean(X)) <= bound).all()


def test_half_precision_rows_sum_exactly(mean_of):
    rng = np.random.default_rng(11)
    X = (rng.normal(size=(5000, 3)) * [1e4, 1, 1e-4]).astype(np.float16)
    X[0], X[-1] = 65504, -65504
    rows = X.astype(np.float32)
    assert list(mean_of(rows[:77], rows[77:], half=True)) == exact_mean(rows)


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


def test_large_sources_are_summed_by_compiled_code(monkeypatch):
    X = np.random.default_rng(0).normal(size=(1003, 7)).astype(np.float32)
    found = []
    for limit in (len(X) * 7, len(X) * 7 + 1):
        monkeypatch.setattr(mean_pass, "COMPILED_VALUES", limit)
        found.append(gather_statistics(as_source(X), batch_size=100).mean())
    np.testing.assert_allclose(*found, rtol=1e-15)
    np.testing.assert_allclose(found[0], exact_mean(X), rtol=1e-15)
    # Where numba is not installed, NumPy does it.
    monkeypatch.setattr(mean_pass, "COMPILED_VALUES", 0)
    monkeypatch.setattr(mean_pass, "has_numba", lambda: False)
    monkeypatch.delitem(sys.modules, "skdice._passes.sum_kernel")
    gather_statistics(as_source(X))
    assert "skdice._passes.sum_kernel" not in sys.modules
