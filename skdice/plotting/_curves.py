"""What a fitted search measured at each sparsity, and the names of metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from skdice._rows.sources import FloatArray
from skdice.metrics import neg_fpr95_scorer
from skdice.metrics._counts import fpr_name

# The name of a curve that is alone and has no name of its own.
LONE_CURVE = "DICE"
METRIC_NAMES = {
    "auroc": "AUROC",
    "roc_auc": "AUROC",
    "aupr_in": "AUPR, in-distribution positive",
    "average_precision": "AUPR, in-distribution positive",
    "aupr_out": "AUPR, out-of-distribution positive",
    "detection_error": "detection error",
}


def candidate_of(params: Mapping[str, Any]) -> tuple[str, float]:
    """Return the curve that a candidate of a search belongs to, and its sparsity."""
    sparsity_names = [name for name in params if name.rpartition("__")[2] == "sparsity"]
    if len(sparsity_names) != 1:
        searched = ", ".join(params) or "nothing"
        raise ValueError(f"the search was over {searched}; expected sparsity among the parameters")
    others = {name: value for name, value in params.items() if name != sparsity_names[0]}
    if len(others) == 1 and next(iter(others)).rpartition("__")[2] == "shaping":
        (shaping,) = others.values()
        curve = "no shaping" if shaping is None else repr(shaping)
    else:
        curve = ", ".join(f"{name}={value!r}" for name, value in others.items()) or LONE_CURVE
    return curve, float(params[sparsity_names[0]])


def fold_scores(
    results: Mapping[str, Any], metric: str | None, n_folds: int
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return the sparsities in `cv_results_`, and the scores of each fold along each curve.

    The sparsities ascend. The scores are of shape (n_sparsities, n_folds) by the name of the curve,
    and NaN where the search has no candidate.
    """
    column = metric or "score"
    if f"mean_test_{column}" not in results:
        known = [name.removeprefix("mean_test_") for name in results if "mean_test_" in name]
        raise ValueError(f"metric is {metric!r}, but the search has {', '.join(known)}")
    candidates = [candidate_of(params) for params in results["params"]]
    repeated = [pair for n, pair in enumerate(candidates) if pair in candidates[:n]]
    if repeated:
        raise ValueError(
            f"the search measured {repeated[0][0]} at sparsity {repeated[0][1]:g} more than once, "
            "as a halving search does, or a search over shapings that print alike: a single curve "
            "cannot show that"
        )
    sparsities = np.unique([sparsity for _, sparsity in candidates])
    folds = np.stack([results[f"split{n}_test_{column}"] for n in range(n_folds)], axis=1)
    scores = {name: np.full((len(sparsities), n_folds), np.nan) for name, _ in candidates}
    for (name, sparsity), values in zip(candidates, folds, strict=True):
        scores[name][np.searchsorted(sparsities, sparsity)] = values
    return sparsities, scores


def metric_name(
    scoring: Any, *, negated: bool = False, tpr: float = 0.95, rule: str = "paper"
) -> str:
    """Return the name of a metric or of a scorer as the label of an axis."""
    if scoring is neg_fpr95_scorer:
        scoring = "neg_fpr_at_tpr"
    if not isinstance(scoring, str):
        return "negated score" if negated else "score"
    name = scoring.removeprefix("neg_")
    if name == "fpr_at_tpr":
        shown = fpr_name(tpr, rule)
    else:
        shown = METRIC_NAMES.get(name, name.replace("_", " "))
    return shown if negated == (name != scoring) else f"negated {shown}"
