"""p-values as ONNX operators: step functions of the score, found by a binary search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.reference_scores import ReferenceDistribution
from skdice._export.graph import Graph

FloatArray = NDArray[np.floating[Any]]

# Calibration scores that a file holds at most, of all rows or of each predicted class.
MOST_CALIBRATION_SCORES = 10_000


@dataclass(frozen=True, eq=False)
class StepFunction:
    """A function of the score that changes at some points only.

    Parameters
    ----------
    points : ndarray of shape (n_points,)
        Scores in ascending order.
    steps : ndarray of shape (n_points + 1,)
        Value of the function by the number of points at or below a score.
    """

    points: FloatArray
    steps: FloatArray


def pvalue_function(
    scores: FloatArray, threshold: float, most: int = MOST_CALIBRATION_SCORES
) -> StepFunction:
    """Return the conformal p-value by the score, which changes at no more than `most` points.

    Where there are no more than `most` different calibration scores, the p-value is exact. Of
    more scores, the smallest half of `most` is kept, because small p-values matter, and then
    scores at ranks in a geometric series. Between two kept scores the p-value is that of the upper
    end, which is never smaller than the exact p-value, so that the guarantee of the exact
    p-values holds.

    Parameters
    ----------
    scores : ndarray of shape (n_calibration,)
        Calibration scores in ascending order.
    threshold : float
        The threshold. If it is one of the scores, it is kept, so that rows below it have the
        p-values that belong to its rank, and no larger ones.
    most : int
        Number of points at most.
    """
    n = len(scores)
    points = np.unique(scores)
    if len(points) > most:
        place = min(int(np.searchsorted(scores, threshold)), n - 1)
        first = np.append(np.arange(most // 2), place)
        later = np.geomspace(most // 2, n - 1, most - most // 2 - 1).round().astype(np.intp)
        points = np.unique(scores[np.union1d(first, later)])
    # The number of scores below the next point; above the last point all scores are below.
    below_next = np.append(np.searchsorted(scores, points, side="left"), n)
    return StepFunction(points, (1 + below_next) / (n + 1))


def log_pvalue_function(reference: ReferenceDistribution) -> StepFunction:
    """Return the logarithm of the p-value among reference scores by the score, without a tail."""
    # One value below all kept scores, and one at each of them.
    asked = np.concatenate([[-np.inf], reference.scores])
    return StepFunction(reference.scores, reference.empirical_log_pvalues(asked))


def evaluate(
    graph: Graph, functions: Sequence[StepFunction], values: str, which: str | None = None
) -> str:
    """Return the value of a step function at each value of a column (n, 1).

    This is a binary search whose steps are written out, because ONNX has no operator for it and
    a comparison with all points would take a matrix (n, n_points).

    Parameters
    ----------
    graph : Graph
        The graph.
    functions : sequence of StepFunction
        The functions.
    values : str
        Name of the column of values. NaN counts as below all points.
    which : str or None
        Name of a column (n, 1), int64: the place of the function of each row. None for the first.
    """
    sizes = np.array([len(each.points) for each in functions])
    starts = np.cumsum(sizes) - sizes
    # The points of a function with the start s are at s + 1, s + 2 and so on.
    n_bits = int(sizes.max()).bit_length()
    points = np.concatenate([each.points for each in functions])
    table = graph.constant(np.pad(points, (1, 1 << n_bits), constant_values=np.inf))
    steps = graph.constant(np.concatenate([each.steps for each in functions]))
    # Each function has one step more than points.
    start, size, first_step = (
        graph.constant(each[0])
        if which is None
        else graph.add("Gather", graph.constant(each), which)
        for each in (starts, sizes, starts + np.arange(len(sizes)))
    )
    place = graph.constant(0)
    for bit in reversed(range(n_bits)):
        candidate = graph.add("Add", place, graph.constant(1 << bit))
        point = graph.add("Gather", table, graph.add("Add", start, candidate))
        reached = graph.add(
            "And",
            graph.add("LessOrEqual", candidate, size),
            graph.add("LessOrEqual", point, values),
        )
        place = graph.add("Where", reached, candidate, place)
    return graph.add("Gather", steps, graph.add("Add", first_step, place))


def reference_log_pvalues(graph: Graph, reference: ReferenceDistribution, scores: str) -> str:
    """Return the logarithms of the p-values among reference scores, as `log_pvalues` does."""
    empirical = evaluate(graph, [log_pvalue_function(reference)], scores)
    if reference.tail_mean == 0:
        return empirical
    start = graph.constant(reference.tail_start)
    (at_start,) = reference.empirical_log_pvalues(np.array([reference.tail_start]))
    distance = graph.add("Sub", start, scores)
    steepness = graph.add("Div", distance, graph.constant(reference.tail_mean))
    tail = graph.add("Sub", graph.constant(at_start), steepness)
    return graph.add("Where", graph.add("Less", scores, start), tail, empirical)


def round_up(values: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Return values in a dtype in which none is smaller than it was.

    A p-value that is rounded down could be smaller than its guarantee allows.
    """
    rounded: FloatArray = values.astype(dtype)
    return np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)
