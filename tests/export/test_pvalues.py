"""p-values in ONNX: the search among sorted scores, and the thinned table."""

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import onnxruntime
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_model, make_opsetid

from skdice._export.graph import Graph
from skdice._export.pvalues import StepFunction, evaluate, pvalue_function, round_up
from skdice._passes.threshold import conformal_pvalues, conformal_rank


def run_search(functions, values, which=None):
    """Return the values of step functions in ONNX Runtime."""
    graph = Graph(np.dtype(np.float64), 17)
    column = graph.add("Identity", "values")
    if which is not None:
        which = graph.constant(which[:, None])
    found = evaluate(graph, functions, column, which)
    finished = graph.finish([("found", found, TensorProto.DOUBLE)], "values", 1)
    model = make_model(finished, opset_imports=[make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"values": values[:, None]})[0]


def counting(points):
    """Return the function that counts the points at or below a score."""
    return StepFunction(points, np.arange(len(points) + 1.0))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 100, 1000])
def test_search_counts_as_numpy_does(n):
    rng = np.random.default_rng(n)
    points = np.sort(rng.integers(0, 50, n).astype(np.float64))  # with ties
    values = np.concatenate([points, points + 0.5, [-1e300, 1e300, -np.inf, np.inf, np.nan]])
    expected = np.searchsorted(points, values, side="right")
    expected[-1] = 0
    np.testing.assert_array_equal(run_search([counting(points)], values), expected)


def test_each_row_is_searched_in_its_own_function():
    rng = np.random.default_rng(0)
    all_points = [np.sort(rng.normal(size=n)) for n in (1, 200, 3, 16, 15)]
    functions = [counting(points) for points in all_points]
    values, which = rng.normal(size=2000), rng.integers(0, 5, 2000)
    values[:30] = np.repeat([-np.inf, np.inf, 1e300], 10)
    expected = [
        np.searchsorted(all_points[n], value, side="right")
        for n, value in zip(which, values, strict=True)
    ]
    np.testing.assert_array_equal(run_search(functions, values, which), expected)


def looked_up(function, scores):
    return function.steps[np.searchsorted(function.points, scores, side="right")]


def test_pvalues_by_hand():
    full = pvalue_function(np.array([1.0, 2.0, 2.0, 5.0]), threshold=1.0)
    np.testing.assert_array_equal(full.points, [1, 2, 5])
    np.testing.assert_allclose(full.steps, [0.2, 0.4, 0.8, 1.0])
    # Of the scores 0..9 the smallest two stay, that of the threshold, the largest, and one between.
    thinned = pvalue_function(np.arange(10.0), threshold=3.0, most=5)
    np.testing.assert_array_equal(thinned.points, [0, 1, 2, 3, 9])
    np.testing.assert_allclose(thinned.steps, np.array([1, 2, 3, 4, 10, 11]) / 11)


@given(
    scores=st.lists(st.integers(0, 60), min_size=19, max_size=300),
    most=st.integers(4, 40),
)
def test_thinning_never_makes_a_pvalue_smaller(scores, most):
    scores = np.sort(np.array(scores, np.float64))
    rank = conformal_rank(len(scores), 0.05)
    threshold = scores[rank - 1]
    function = pvalue_function(scores, threshold, most)
    asked = np.arange(-1, 61.5, 0.5)
    exact, found = conformal_pvalues(scores, asked), looked_up(function, asked)
    assert len(function.points) <= most
    assert (found >= exact).all()
    assert found.max() == 1.0
    if len(np.unique(scores)) <= most:
        np.testing.assert_array_equal(found, exact)
    assert (found[asked < threshold] <= rank / (len(scores) + 1)).all()


def test_the_pvalues_of_a_large_calibration_are_close():
    scores = np.sort(np.random.default_rng(0).normal(size=1_000_000))
    function = pvalue_function(scores, scores[50_000])
    assert len(function.points) <= 10_000
    asked = np.random.default_rng(1).normal(size=100_000)
    exact, found = conformal_pvalues(scores, asked), looked_up(function, asked)
    assert (found >= exact).all()
    assert (found <= exact * 1.002).all()
    small = exact < 0.004
    np.testing.assert_array_equal(found[small], exact[small])


def test_the_probability_of_a_small_thinned_pvalue_is_at_most_its_value():
    # The statement of the guarantee: P(p <= a) <= a, over calibrations and rows.
    rng = np.random.default_rng(0)
    n_calibrations, n = 20_000, 99
    scores = np.sort(rng.normal(size=(n_calibrations, n)), axis=1)
    rows = rng.normal(size=n_calibrations)
    functions = [pvalue_function(each, each[3], most=10) for each in scores]
    pvalues = np.array([looked_up(f, row) for f, row in zip(functions, rows, strict=True)])
    for level in (0.01, 0.03, 0.05, 0.1, 0.3, 0.5, 0.9):
        error = np.sqrt(level * (1 - level) / n_calibrations)
        assert (pvalues <= level).mean() <= level + 3 * error


def test_rounding_up():
    values = np.arange(1, 2001) / 2001
    rounded = round_up(values, np.dtype(np.float32))
    assert rounded.dtype == np.float32
    assert (rounded.astype(np.float64) >= values).all()
    np.testing.assert_allclose(rounded, values, rtol=2e-7)
    np.testing.assert_array_equal(round_up(values, np.dtype(np.float64)), values)
