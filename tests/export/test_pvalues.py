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
from skdice._export.pvalues import PvalueTable, count_at_or_below, round_up
from skdice._passes.threshold import conformal_pvalues, conformal_rank


def run_search(ordered, values):
    graph = Graph(np.dtype(np.float64), 17)
    flat = graph.add("Identity", "values")
    places = count_at_or_below(graph, ordered, flat)
    finished = graph.finish([("count", places, TensorProto.INT64)], "values", 1)
    model = make_model(finished, opset_imports=[make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (count,) = session.run(None, {"values": values[:, None]})
    return count


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 100, 1000])
def test_search_counts_as_numpy_does(n):
    rng = np.random.default_rng(n)
    ordered = np.sort(rng.integers(0, 50, n).astype(np.float64))  # with ties
    values = np.concatenate([ordered, ordered + 0.5, [-1e300, 1e300, -np.inf, np.nan]])
    expected = np.searchsorted(ordered, values, side="right")
    expected[-1] = 0
    np.testing.assert_array_equal(run_search(ordered, values), expected)


def looked_up(table, scores):
    return table.pvalues[np.searchsorted(table.scores, scores, side="right")]


def test_a_table_by_hand():
    # Of the scores 0..9 the smallest two stay, 3 for the threshold, and 9.
    table = PvalueTable.from_scores(np.arange(10.0), rank=4, most=5)
    assert {0.0, 1.0, 3.0, 9.0} <= set(table.scores)
    full = PvalueTable.from_scores(np.array([1.0, 2.0, 2.0, 5.0]), rank=1)
    np.testing.assert_array_equal(full.scores, [1, 2, 5])
    np.testing.assert_allclose(full.pvalues, [0.2, 0.4, 0.8, 1.0])


@given(
    scores=st.lists(st.integers(0, 60), min_size=19, max_size=300),
    most=st.integers(4, 40),
)
def test_thinning_never_makes_a_pvalue_smaller(scores, most):
    scores = np.sort(np.array(scores, np.float64))
    rank = conformal_rank(len(scores), 0.05)
    table = PvalueTable.from_scores(scores, rank, most)
    asked = np.arange(-1, 61.5, 0.5)
    exact, found = conformal_pvalues(scores, asked), looked_up(table, asked)
    assert len(table.scores) <= most
    assert (found >= exact).all()
    assert found.max() == 1.0
    if len(np.unique(scores)) <= most:
        np.testing.assert_array_equal(found, exact)
    below = asked < scores[rank - 1]
    assert (found[below] <= rank / (len(scores) + 1)).all()


def test_the_thinned_table_of_a_large_calibration_is_close():
    scores = np.sort(np.random.default_rng(0).normal(size=1_000_000))
    table = PvalueTable.from_scores(scores, conformal_rank(len(scores), 0.05))
    assert len(table.scores) <= 10_000
    asked = np.random.default_rng(1).normal(size=100_000)
    exact, found = conformal_pvalues(scores, asked), looked_up(table, asked)
    assert (found >= exact).all()
    assert (found <= exact * 1.002).all()
    small = exact < 0.004
    np.testing.assert_array_equal(found[small], exact[small])


def test_the_probability_of_a_small_pvalue_of_a_thinned_table_is_at_most_its_value():
    # The statement of the guarantee: P(p <= a) <= a, over calibrations and rows.
    rng = np.random.default_rng(0)
    n_calibrations, n = 20_000, 99
    scores = np.sort(rng.normal(size=(n_calibrations, n)), axis=1)
    rows = rng.normal(size=n_calibrations)
    tables = [PvalueTable.from_scores(each, rank=4, most=10) for each in scores]
    pvalues = np.array([looked_up(t, row) for t, row in zip(tables, rows, strict=True)])
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
