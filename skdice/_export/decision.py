"""From scores to one score, a decision and a p-value, as ONNX operators."""

from __future__ import annotations

from skdice._engines.layer import Layer
from skdice._export.description import CombinedLayers, FittedDetector
from skdice._export.graph import Graph
from skdice._export.pvalues import PvalueTable, conformal_pvalues, reference_log_pvalues
from skdice._export.scores import layer_scores


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
    by_class = detector.by_class
    threshold = graph.constant(detector.threshold)
    if by_class is not None:
        logits = graph.linear(features, by_class.head.weight, by_class.head.bias)
        predicted = graph.add("ArgMax", logits, axis=1, keepdims=1)
        threshold = graph.add("Gather", graph.constant(by_class.thresholds), predicted)
    columns["is_ood"] = graph.add("Or", is_bad, graph.add("Less", scores, threshold))
    if detector.calibration_scores is not None and detector.calibration is not None:
        table = PvalueTable.from_scores(detector.calibration_scores, detector.calibration.rank)
        columns["pvalue"] = conformal_pvalues(graph, table, is_bad, scores)
    return columns
