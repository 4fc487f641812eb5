"""From scores to one score, a decision and a p-value, as ONNX operators."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.layer import Layer
from skdice._export.description import CombinedLayers, FittedDetector
from skdice._export.graph import Graph
from skdice._export.pvalues import (
    StepFunction,
    evaluate,
    pvalue_function,
    reference_log_pvalues,
    round_up,
)
from skdice._export.scores import layer_scores

FloatArray = NDArray[np.floating[Any]]


def scores_of(graph: Graph, layer: Layer | CombinedLayers, features: str) -> str:
    """Return the scores of a detector or an ensemble: (n, 1).

    Raises
    ------
    ValueError
        A score or a shaping is a function of the user.
    """
    if not isinstance(layer, CombinedLayers):
        return layer_scores(graph, layer, features)
    columns, not_finite = [], None
    for member, reference in zip(layer.layers, layer.references, strict=True):
        scores = scores_of(graph, member, features)
        columns.append(reference_log_pvalues(graph, reference, scores))
        is_bad = graph.is_not_finite(scores)
        not_finite = is_bad if not_finite is None else graph.add("Or", not_finite, is_bad)
    assert not_finite is not None  # an ensemble has at least one member
    log_pvalues = graph.add("Concat", *columns, axis=1)
    operator = "ReduceMean" if layer.combination == "fisher" else "ReduceMin"
    return graph.nan_where(not_finite, graph.reduce(operator, log_pvalues))


def decide(graph: Graph, detector: FittedDetector, features: str, scores: str) -> dict[str, str]:
    """Return the columns of all outputs by name, of shape (n, 1).

    A row with a feature or a score that is not finite, which a detector in Python refuses, has
    the score NaN, is out-of-distribution, and has the smallest p-value.
    """
    is_bad = graph.add("Or", graph.any(graph.is_not_finite(features)), graph.is_not_finite(scores))
    columns = {"score": graph.nan_where(is_bad, scores)}
    if detector.threshold is None:
        return columns
    threshold, predicted = graph.constant(detector.threshold), None
    by_class = detector.by_class
    if by_class is not None:
        logits = graph.linear(features, by_class.head.weight, by_class.head.bias)
        predicted = graph.add("ArgMax", logits, axis=1, keepdims=1)
        threshold = graph.add("Gather", graph.constant(by_class.thresholds), predicted)
    columns["is_ood"] = graph.add("Or", is_bad, graph.add("Less", scores, threshold))
    if detector.calibration_scores is None:
        return columns
    functions, place_of_class = pvalue_functions(detector, detector.calibration_scores)
    functions = [StepFunction(each.points, round_up(each.steps, graph.dtype)) for each in functions]
    which = None
    if predicted is not None:
        which = graph.add("Gather", graph.constant(place_of_class), predicted)
    smallest = graph.constant(functions[0].steps[0])
    pvalues = evaluate(graph, functions, scores, which)
    columns["pvalue"] = graph.add("Where", is_bad, smallest, pvalues)
    return columns


def pvalue_functions(
    detector: FittedDetector, scores: FloatArray
) -> tuple[list[StepFunction], list[int]]:
    """Return the p-values by the score, and which of them is that of each predicted class.

    The first is that of all rows. Classes with too few calibration rows have it, too.
    """
    assert detector.threshold is not None
    functions, by_class = [pvalue_function(scores, detector.threshold)], detector.by_class
    if by_class is None:
        return functions, []
    places = [0] * len(by_class.thresholds)
    for n, threshold in enumerate(by_class.thresholds):
        if n not in by_class.fallback_classes:
            places[n] = len(functions)
            of_class = scores[by_class.calibration_classes == n]
            functions.append(pvalue_function(of_class, threshold))
    return functions, places
