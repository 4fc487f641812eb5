"""Curves of a metric against the sparsity: from the results of a search, or as given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skdice._search import check_sparsities
from skdice.metrics import neg_fpr95_scorer

FloatArray = NDArray[np.floating[Any]]

# A lone curve, which has no name of its own.
ONLY = "DICE"
METRIC_NAMES = {
    "auroc": "AUROC",
    "roc_auc": "AUROC",
    "aupr_in": "AUPR, in-distribution positive",
    "average_precision": "AUPR, in-distribution positive",
    "aupr_out": "AUPR, out-of-distribution positive",
    "fpr_at_tpr": "FPR at 95 % TPR",
    "fpr_at_tpr_authors": "FPR at 95 % TPR, authors' rule",
    "detection_error": "detection error",
}


def candidate_of(params: Mapping[str, Any]) -> tuple[str, float]:
    """Return the curve that a candidate of a search belongs to, and its sparsity."""
    names = [name for name in params if name.rpartition("__")[2] == "sparsity"]
    if len(names) != 1:
        found = ", ".join(params) or "nothing"
        raise ValueError(f"the search was over {found}; expected sparsity among the parameters")
    others = {name: each for name, each in params.items() if name != names[0]}
    if len(others) == 1 and next(iter(others)).rpartition("__")[2] == "shaping":
        (shaping,) = others.values()
        curve = "no shaping" if shaping is None else repr(shaping)
    else:
        curve = ", ".join(f"{name}={each!r}" for name, each in others.items()) or ONLY
    return curve, float(params[names[0]])


def curves_of(
    results: Mapping[str, Any], metric: str | None
) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray]]:
    """Return the sparsities of `cv_results_`, and means and deviations of each curve there."""
    column = metric or "score"
    if f"mean_test_{column}" not in results:
        known = [name.removeprefix("mean_test_") for name in results if "mean_test_" in name]
        raise ValueError(f"metric is {metric!r}, but the search has {', '.join(known)}")
    candidates = [candidate_of(each) for each in results["params"]]
    twice = [each for n, each in enumerate(candidates) if each in candidates[:n]]
    if twice:
        raise ValueError(
            f"the search measured {twice[0][0]} at sparsity {twice[0][1]:g} more than once, as a "
            "halving search does, or one over shapings that print alike: no single curve shows that"
        )
    sparsities = np.unique([sparsity for _, sparsity in candidates])
    columns = []
    for statistic in ("mean", "std"):
        values = {name: np.full(len(sparsities), np.nan) for name, _ in candidates}
        for (name, sparsity), value in zip(
            candidates, results[f"{statistic}_test_{column}"], strict=True
        ):
            values[name][np.searchsorted(sparsities, sparsity)] = value
        columns.append(values)
    return sparsities, columns[0], columns[1]


def metric_name(scoring: Any, negated: bool) -> str:
    """Return the name of the metric of a search as the label of an axis."""
    if scoring is neg_fpr95_scorer:
        scoring = "neg_fpr_at_tpr_authors"
    if not isinstance(scoring, str):
        return "negated score" if negated else "score"
    name = scoring.removeprefix("neg_")
    shown = METRIC_NAMES.get(name, name.replace("_", " "))
    return shown if negated == (name != scoring) else f"negated {shown}"


def checked_curves(
    sparsities: ArrayLike, values: Any, what: str, *, one_row_each: bool = False
) -> tuple[NDArray[np.intp], dict[str, FloatArray]]:
    """Return the order of the sparsities, and finite values at each, by the name of a curve."""
    order = np.argsort(check_sparsities(sparsities), kind="stable")
    curves = dict(values) if isinstance(values, Mapping) else {ONLY: values}
    if not curves:
        raise ValueError(f"{what} is an empty mapping, expected at least one curve")
    for name, each in curves.items():
        curves[name] = array = np.asarray(each)
        axes = (2,) if one_row_each else (1, 2)
        if array.ndim not in axes or len(array) != len(order) or not array.size:
            expected = f"({len(order)}, n_samples)" if one_row_each else f"({len(order)},) or "
            expected += "" if one_row_each else f"({len(order)}, n_repeats)"
            raise ValueError(
                f"{what} of {name} has shape {array.shape}, expected {expected}, as there are "
                f"{len(order)} sparsities"
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ValueError(f"{what} of {name} holds values that are not finite numbers")
    return order, curves
