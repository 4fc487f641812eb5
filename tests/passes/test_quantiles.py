"""Exact quantiles of all entries, unweighted and weighted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skdice._passes.quantiles import quantiles
from skdice._rows.door import as_source

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


@given(matrices, st.data())
def test_quantiles_of_rows_with_integer_weights_equal_those_of_repeated_rows(X, data):
    weights = data.draw(st.lists(st.integers(0, 4), min_size=len(X), max_size=len(X)).filter(any))
    q = data.draw(st.floats(0, 1))
    repeated = np.repeat(X, weights, axis=0).ravel()
    repeated = repeated.astype(np.float64 if X.dtype == np.float64 else np.float32)
    source = as_source(X).inliers(None, np.array(weights, float))
    found = quantiles(source, [q, 0.5], batch_size=data.draw(st.integers(1, 7)))
    assert found == [float(np.quantile(repeated, q)), float(np.quantile(repeated, 0.5))]
