"""The scores of the detectors as ONNX operators: columns (n, 1) from features (n, n_features).

These functions repeat the formulas of `skdice._scores` and `skdice._engines.geometric`, because an
ONNX graph cannot call them. `tests/export/test_export.py` holds the results equal. Only operators
that every runtime has are used, and sums of exponentials subtract the maximum first, because a
runtime need not do so in ``ReduceLogSumExp``.
"""

import numpy as np
from onnx import TensorProto

from skdice._engines.activations import Activation, Clip, ScaleRows
from skdice._engines.geometric import ROUNDINGS, FDBDArrays, fdbd_arrays
from skdice._engines.layer import FDBDLayer, Layer, MaskedLayer, ViMLayer
from skdice._export.graph import Graph
from skdice._scores import GEN_GAMMA, GEN_TOP_CLASSES


def layer_scores(graph: Graph, layer: Layer, features: str) -> str:
    """Return the scores of a fitted layer; NaN where a logit is NaN.

    Raises
    ------
    ValueError
        The score or the shaping is a function of the user.
    """
    if isinstance(layer, MaskedLayer):
        features = shaped(graph, layer.shaping, features, layer.weight.shape[1])
    logits = graph.linear(features, layer.weight, layer.bias)
    if isinstance(layer, MaskedLayer):
        column = _score_of_logits(graph, layer, logits)
    elif isinstance(layer, FDBDLayer):
        column = fdbd(graph, layer, features, logits)
    else:
        column = vim(graph, layer, features, logits)
    # A runtime may leave NaN out of a maximum.
    return graph.nan_where(graph.any(graph.add("IsNaN", logits)), column)


def shaped(graph: Graph, shaping: Activation | None, features: str, n_features: int) -> str:
    """Return the features after a shaping; a row that has no meaning after it is NaN or infinite.

    The logits of such a row are NaN or infinite, too, so that its score is not finite.
    """
    match shaping:
        case None:
            return features
        case Clip(low, high):
            clipped = graph.add("Min", features, graph.constant(high))
            if low == -np.inf:
                return clipped
            is_low = graph.add("Less", features, graph.constant(low))
            return graph.add("Where", is_low, graph.constant(0.0), clipped)
        case ScaleRows():
            return _scaled_rows(graph, shaping, features, n_features)
        case other:
            raise ValueError(
                f"shaping is {other.transformer!r}: only those of skdice.shaping can be exported"
            )


def _scaled_rows(graph: Graph, shaping: ScaleRows, features: str, n_features: int) -> str:
    kept = _largest(graph, n_features - shaping.n_pruned, features)
    before, after = (graph.reduce("ReduceSum", each) for each in (features, kept))
    zero, one = graph.constant(0.0), graph.constant(1.0)
    both_zero = graph.add("And", graph.add("Equal", before, zero), graph.add("Equal", after, zero))
    ratio = graph.add("Where", both_zero, one, graph.add("Div", before, after))
    # An infinite ratio comes from negative features alone, and has no meaning.
    factor = graph.nan_where(graph.is_not_finite(ratio), graph.add("Exp", ratio))
    scaled = graph.add("Mul", kept if shaping.zero_pruned else features, factor)
    # The masked weight must not decide whether a value that is not finite shows in the logits.
    return graph.nan_where(graph.any(graph.is_not_finite(scaled)), scaled)


def _largest(graph: Graph, n_kept: int, features: str) -> str:
    """Return the features with zeros in place of all but the `n_kept` largest of each row.

    Of the features that tie for the last places, those in the first columns are kept.
    """
    least = graph.columns(graph.largest(features, n_kept), n_kept - 1, n_kept)
    above = graph.add("Greater", features, least)
    equal = graph.add("Equal", features, least)
    n_above, as_numbers = (graph.add("Cast", each, to=TensorProto.INT32) for each in (above, equal))
    # CumSum and ReduceSum of int32 are among the types that every version of ONNX Runtime has.
    all_places = graph.add("Cast", graph.constant(n_kept), to=TensorProto.INT32)
    places = graph.add("Sub", all_places, graph.reduce("ReduceSum", n_above))
    rank = graph.add("CumSum", as_numbers, graph.constant(1))
    is_first = graph.add("And", equal, graph.add("LessOrEqual", rank, places))
    is_kept = graph.add("Or", above, is_first)
    return graph.add("Where", is_kept, features, graph.constant(0.0))


def energy(graph: Graph, logits: str) -> str:
    """Log-sum-exp of the logits."""
    total, maximum = _exponentials(graph, logits)
    return graph.add("Add", graph.add("Log", total), maximum)


def msp(graph: Graph, logits: str) -> str:
    """Maximum softmax probability."""
    total, _ = _exponentials(graph, logits)
    return graph.add("Div", graph.constant(1.0), total)


def _exponentials(graph: Graph, logits: str) -> tuple[str, str]:
    """Return the sum of exp(logits - row maximum), and the row maximum."""
    maximum = graph.reduce("ReduceMax", logits)
    exponentials = graph.add("Exp", graph.add("Sub", logits, maximum))
    return graph.reduce("ReduceSum", exponentials), maximum


def gen(graph: Graph, logits: str, n_classes: int) -> str:
    """Generalised entropy, through logarithms as `skdice._scores.gen` computes it."""
    infinite = graph.any(graph.is_not_finite(logits))
    if n_classes == 1:
        return graph.nan_where(infinite, graph.add("Sub", logits, logits))
    ordered = graph.largest(logits, n_classes)
    top, rest = graph.columns(ordered, 0, 1), graph.columns(ordered, 1, n_classes)
    # Subtract the largest logit first, because the logits may be large and close together.
    others = graph.add("Sub", rest, top)
    log_others = energy(graph, others)
    one = graph.constant(1.0)
    # There is no operator for log(1 + x). The absolute error of this logarithm is what counts.
    log_total = graph.add("Log", graph.add("Add", one, graph.add("Exp", log_others)))
    n_top = min(GEN_TOP_CLASSES, n_classes)
    log_p = graph.add("Sub", graph.columns(others, 0, n_top - 1), log_total)
    log_rest = graph.add("Log", graph.add("Sub", one, graph.add("Exp", log_p)))
    gamma = graph.constant(GEN_GAMMA)

    def power(logarithm: str) -> str:
        return graph.add("Exp", graph.add("Mul", gamma, logarithm))

    terms = graph.reduce("ReduceSum", power(graph.add("Add", log_p, log_rest)))
    twice = graph.add("Add", log_total, log_total)
    first = power(graph.add("Sub", log_others, twice))
    return graph.nan_where(infinite, graph.add("Neg", graph.add("Add", terms, first)))


def vim(graph: Graph, layer: ViMLayer, features: str, logits: str) -> str:
    """Energy less alpha times the norm of the residual."""
    assert layer.alpha is not None  # a fitted detector has it
    residual = graph.norm(graph.linear(features, layer.components, layer.shift))
    scaled = graph.add("Mul", graph.constant(layer.alpha), residual)
    return graph.add("Sub", energy(graph, logits), scaled)


def fdbd(graph: Graph, layer: FDBDLayer, features: str, logits: str) -> str:
    """Mean distance to the decision boundaries over the distance to the mean."""
    arrays = fdbd_arrays(layer.weight, layer.mean)
    # The class must not keep its axis here: it chooses rows of a table.
    predicted = graph.add("ArgMax", logits, axis=1, keepdims=0)
    if arrays.boundaries is None:
        inverse = _inverse_distances(graph, arrays, predicted)
    else:
        inverse = graph.add("Gather", graph.constant(arrays.boundaries), predicted, axis=0)
    margins = graph.add("Sub", graph.reduce("ReduceMax", logits), logits)
    boundary_distance = graph.reduce("ReduceSum", graph.add("Mul", margins, inverse))
    distance = graph.norm(graph.add("Sub", features, graph.constant(arrays.mean)))
    least = graph.constant(arrays.least_distance)
    distance = graph.add("Where", graph.add("Less", distance, least), least, distance)
    # An overflow of the distance must not look like a score of zero.
    distance = graph.nan_where(graph.is_not_finite(distance), distance)
    return graph.add("Div", boundary_distance, distance)


def _inverse_distances(graph: Graph, arrays: FDBDArrays, classes: str) -> str:
    """Return what `skdice._engines.geometric.inverse_distances` does."""
    squares = graph.constant(arrays.squares)
    centred = graph.add("Gather", graph.constant(arrays.centred), classes, axis=0)
    own = graph.add("Gather", graph.constant(arrays.squares[:, None]), classes, axis=0)
    sums = graph.add("Add", own, squares)
    products = graph.linear(centred, arrays.centred)
    squared = graph.add("Sub", sums, graph.add("Add", products, products))
    least = graph.constant(ROUNDINGS * float(np.finfo(graph.dtype).eps))
    is_apart = graph.add("Greater", squared, graph.add("Mul", least, sums))
    one, zero = graph.constant(1.0), graph.constant(0.0)
    root = graph.add("Sqrt", graph.add("Where", is_apart, squared, one))
    inverse = graph.add("Where", is_apart, graph.add("Div", one, root), zero)
    n_boundaries = graph.reduce("ReduceSum", graph.add("Where", is_apart, one, zero))
    divisor = graph.add("Where", graph.add("Greater", n_boundaries, zero), n_boundaries, one)
    return graph.add("Div", inverse, divisor)


def _score_of_logits(graph: Graph, layer: MaskedLayer, logits: str) -> str:
    match layer.score:
        case "energy":
            return energy(graph, logits)
        case "max_logit":
            return graph.reduce("ReduceMax", logits)
        case "msp":
            return msp(graph, logits)
        case "gen":
            return gen(graph, logits, len(layer.weight))
    raise ValueError(f"score_func is {layer.score!r}: only the named scores can be exported")
