"""p-values as ONNX operators: a binary search among sorted scores, and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.reference import ReferenceDistribution
from skdice._export.graph import Graph

FloatArray = NDArray[np.floating[Any]]

# Calibration scores that a file holds at most, for all classes or for each class.
MOST_CALIBRATION_SCORES = 10_000


@dataclass(frozen=True, eq=False)
class PvalueTable:
    """The p-values of a conformal calibration as a step function of the score.

    Parameters
    ----------
    scores : ndarray of shape (n_kept,)
        Calibration scores in ascending order, without repetition.
    pvalues : ndarray of shape (n_kept + 1,), float64
        The p-value of a score by the number of kept scores at or below it.
    """

    scores: FloatArray
    pvalues: NDArray[np.float64]

    @classmethod
    def from_scores(
        cls, scores: FloatArray, rank: int, most: int = MOST_CALIBRATION_SCORES
    ) -> PvalueTable:
        """Return the table of sorted calibration scores, of which `most` are kept at most.

        All scores are kept where there are no more than `most`. Of more scores, the smallest
        half of `most` is kept, because small p-values matter, and then scores at ranks in a
        geometric series. Between two kept scores the p-value is that of the upper end, which is
        never smaller than the exact p-value, so that the guarantee of the exact p-values holds.

        Parameters
        ----------
        scores : ndarray of shape (n_calibration,)
            Calibration scores in ascending order.
        rank : int
            Rank of the threshold from 1. Its score is kept, so that the p-value of every row
            below the threshold is at most ``rank / (n_calibration + 1)``.
        most : int
            Number of scores that are kept at most.
        """
        n = len(scores)
        kept = np.unique(scores)
        if len(kept) > most:
            first = np.arange(most // 2)
            later = np.geomspace(most // 2, n - 1, most - most // 2 - 1).round()
            kept = np.unique(scores[np.union1d(np.append(first, rank - 1), later.astype(np.intp))])
        # The number of scores below the next kept one; above the last kept one there is none.
        below_next = np.append(np.searchsorted(scores, kept, side="left"), n)
        return cls(kept, (1 + below_next) / (n + 1))


def count_at_or_below(graph: Graph, ordered: FloatArray, values: str) -> str:
    """Return how many of an ascending array are at or below each value of a column: int64.

    This is a binary search whose steps are written out, because ONNX has no operator for it and
    a comparison of all pairs would take a matrix (n, len(ordered)). NaN gives 0, and infinity
    may give more than ``len(ordered)``.
    """
    n_bits = len(ordered).bit_length()
    # Entry p is the p-th smallest value. The surplus entries are above all values.
    padded = np.full(1 << n_bits, np.inf)
    padded[1 : len(ordered) + 1] = ordered
    table, place = graph.constant(padded), graph.constant(0)
    for bit in reversed(range(n_bits)):
        candidate = graph.add("Add", place, graph.constant(1 << bit))
        reached = graph.add("LessOrEqual", graph.add("Gather", table, candidate), values)
        place = graph.add("Where", reached, candidate, place)
    return place


def step_function(graph: Graph, ordered: FloatArray, steps: FloatArray, values: str) -> str:
    """Return the entry of `steps` at the number of an ascending array at or below each value.

    Parameters
    ----------
    graph : Graph
        The graph.
    ordered : ndarray of shape (n,)
        Values in ascending order.
    steps : ndarray of shape (n + 1,)
        The value of the function by the number of values at or below.
    values : str
        Name of a column (n_rows, 1).
    """
    # Infinity is found among the surplus entries of the search.
    surplus = (1 << len(ordered).bit_length()) - len(steps)
    table = graph.constant(np.pad(steps, (0, surplus), mode="edge"))
    return graph.add("Gather", table, count_at_or_below(graph, ordered, values))


def reference_log_pvalues(graph: Graph, reference: ReferenceDistribution, scores: str) -> str:
    """Return the logarithms of the p-values among reference scores, as `log_pvalues` does."""
    # One value below all kept scores, and one at each of them.
    asked = np.concatenate([[-np.inf], reference.scores])
    steps = reference.empirical_log_pvalues(asked)
    empirical = step_function(graph, reference.scores, steps, scores)
    if reference.tail_mean == 0:
        return empirical
    start = graph.constant(reference.tail_start)
    (at_start,) = reference.empirical_log_pvalues(np.array([reference.tail_start]))
    distance = graph.add("Sub", start, scores)
    steepness = graph.add("Div", distance, graph.constant(reference.tail_mean))
    tail = graph.add("Sub", graph.constant(at_start), steepness)
    return graph.add("Where", graph.add("Less", scores, start), tail, empirical)


def conformal_pvalues(graph: Graph, table: PvalueTable, is_bad: str, scores: str) -> str:
    """Return the p-values of a column of scores: the smallest possible one for a bad row."""
    # A p-value that is rounded down could be smaller than the guarantee allows.
    steps = round_up(table.pvalues, graph.dtype)
    found = step_function(graph, table.scores, steps, scores)
    return graph.add("Where", is_bad, graph.constant(steps[0]), found)


def round_up(values: NDArray[np.float64], dtype: np.dtype[Any]) -> FloatArray:
    """Return values in a dtype in which none is smaller than it was."""
    rounded: FloatArray = values.astype(dtype)
    return np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)
