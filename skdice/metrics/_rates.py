"""Metrics of labelled scores: false-positive rate, areas under curves, detection error."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import make_scorer
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skdice._compat.arrays import to_host
from skdice._rows.sources import FloatArray
from skdice.metrics._counts import Counts, metric_on_counts


def fpr_at_tpr(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    tpr: float = 0.95,
    rule: str = "paper",
    pos_label: int = 1,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of the negative class that passes where a share of the positive class passes.

    The literature places the threshold by two rules, and each has its name here. Without tied
    scores they place it at most two positive rows apart.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.
    tpr : float in (0, 1], default=0.95
        The true-positive rate.
    rule : {"paper", "roc_curve"}, default="paper"
        "paper" is the rule in the code of DICE, ReAct and ASH: of the n positive scores in
        ascending order, the one at place ``round((1 - tpr) * n)``, counted from 0, is the
        threshold, and a negative row passes if its score is above it. "roc_curve" is the
        rule of `sklearn.metrics.roc_curve`: the threshold is the highest score that a share
        of at least `tpr` of the positive rows reaches, and a negative row passes if its score
        is at the threshold or above it.
    pos_label : {1, -1}, default=1
        The positive class. The papers of DICE, ReAct and ASH take in-distribution (1) as
        positive. OpenOOD, pytorch-ood and oodeel take out-of-distribution (-1) as positive,
        with negated scores and ``rule="roc_curve"``, and the number differs by tens of points
        if the scores are skewed.
    sample_weight : array-like of shape (n_samples,), default=None
        The weight of each row. A row of weight 2 counts as two rows. The paper's rule counts
        rows and needs whole numbers; the other rule takes any weight.

    Returns
    -------
    float
        The rate in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        A class has no rows, a score is not finite, or a parameter is out of its range.

    Examples
    --------
    >>> from skdice.metrics import fpr_at_tpr
    >>> y_true, y_score = [1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1]
    >>> fpr_at_tpr(y_true, y_score), fpr_at_tpr(y_true, y_score, tpr=0.75)
    (0.5, 0.0)
    >>> fpr_at_tpr(y_true, y_score, rule="roc_curve", pos_label=-1)
    0.25
    """
    compute = metric_on_counts("fpr_at_tpr", tpr=tpr, rule=rule)
    if pos_label not in (1, -1):
        raise ValueError(f"pos_label is {pos_label!r}, expected 1 or -1")
    inliers, outliers = count_scores(y_true, y_score, sample_weight)
    if rule == "paper" and not all((each == np.rint(each)).all() for each in (inliers, outliers)):
        raise ValueError(
            "sample_weight is not of whole numbers, but rule='paper' counts rows; "
            "expected whole numbers, or rule='roc_curve'"
        )
    if pos_label == -1:
        # With negated scores the order turns round, and the classes change their roles.
        inliers, outliers = outliers[::-1], inliers[::-1]
    return float(compute(inliers, outliers))


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve.

    The area is the share of pairs of one row of each class in which the in-distribution row
    has the higher score; a tie counts half. It is the same whichever class is positive, and
    equal to `sklearn.metrics.roc_auc_score`.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.

    Returns
    -------
    float
        The area in [0, 1]; higher is better, 0.5 is chance.

    Raises
    ------
    ValueError
        A class has no rows, or a score is not finite.

    Examples
    --------
    >>> from skdice.metrics import auroc
    >>> auroc([1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1])
    0.875
    """
    return _metric("auroc", y_true, y_score)


def aupr_in(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall curve with in-distribution as positive.

    The area is the average precision, as in `sklearn.metrics.average_precision_score`. It
    depends on the share of each class.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.

    Returns
    -------
    float
        The area in [0, 1]; higher is better.

    Raises
    ------
    ValueError
        A class has no rows, or a score is not finite.

    Examples
    --------
    >>> from skdice.metrics import aupr_in
    >>> aupr_in([1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1])
    0.95
    """
    return _metric("aupr_in", y_true, y_score)


def aupr_out(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall curve with out-of-distribution as positive.

    The area is the average precision of the negated scores, as in
    `sklearn.metrics.average_precision_score`. It depends on the share of each class.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.

    Returns
    -------
    float
        The area in [0, 1]; higher is better.

    Raises
    ------
    ValueError
        A class has no rows, or a score is not finite.

    Examples
    --------
    >>> from skdice.metrics import aupr_out
    >>> round(aupr_out([1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1]), 4)
    0.8333
    """
    return _metric("aupr_out", y_true, y_score)


def detection_error(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Lowest mean of the two error rates over all thresholds (Liang et al., ICLR 2018).

    The formula is ``min (1 - TPR) / 2 + FPR / 2``: the share of wrong decisions at the best
    threshold if both classes are equally likely. Because the threshold is chosen on the same
    rows, the value is too low on average: by 0.03 with 50 rows of each class, by 0.005 with
    1,000, if the true error is 0.31. `confidence_interval` corrects for that.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more in-distribution.

    Returns
    -------
    float
        The error in [0, 0.5]; lower is better.

    Raises
    ------
    ValueError
        A class has no rows, or a score is not finite.

    References
    ----------
    Liang, Li & Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection in
    Neural Networks", ICLR 2018, arXiv:1706.02690.

    Examples
    --------
    >>> from skdice.metrics import detection_error
    >>> detection_error([1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1])
    0.125
    """
    return _metric("detection_error", y_true, y_score)


# A higher value of a scorer is better, so the rate is negated. It is the rate by the paper's rule.
neg_fpr95_scorer = make_scorer(
    fpr_at_tpr, response_method="decision_function", greater_is_better=False
)


def labelled(id_scores: FloatArray, ood_scores: FloatArray) -> tuple[NDArray[Any], FloatArray]:
    """Return labels and scores of both classes as one array each."""
    labels = np.repeat([1, -1], [len(id_scores), len(ood_scores)])
    return labels, np.concatenate([id_scores, ood_scores])


def finite_scores(scores: ArrayLike, name: str) -> FloatArray:
    """Return scores as an array of at least one finite value."""
    dtypes = [np.float64, np.float32]
    array = check_array(to_host(scores), ensure_2d=False, dtype=dtypes, input_name=name)
    values: FloatArray = column_or_1d(array)
    return values


def validated(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[Any], FloatArray]:
    """Return the labels +1 and -1, of which both must occur, and the finite scores."""
    labels = column_or_1d(to_host(y_true))
    scores = finite_scores(y_score, "y_score")
    check_consistent_length(labels, scores)
    values = np.unique(labels)
    if not np.isin(values, (1, -1)).all():
        shown = ", ".join(map(repr, values[:5].tolist()))
        raise ValueError(f"y_true has the labels {shown}; expected +1 (in-distribution) and -1")
    for label, name in ((1, "in-distribution"), (-1, "out-of-distribution")):
        if label not in values:
            raise ValueError(f"y_true has no {name} row (label {label:+d})")
    return labels, scores


def count_scores(
    y_true: ArrayLike, y_score: ArrayLike, sample_weight: ArrayLike | None = None
) -> tuple[Counts, Counts]:
    """Return how many rows of each class have each distinct score, in ascending order.

    With weights, the sums of the weights are returned.
    """
    labels, scores = validated(y_true, y_score)
    distinct, place = np.unique(scores, return_inverse=True)
    weight = np.ones(len(labels))
    if sample_weight is not None:
        weight = column_or_1d(check_array(to_host(sample_weight), ensure_2d=False, dtype=float))
        check_consistent_length(labels, weight)
        if weight.min() < 0:
            raise ValueError(f"sample_weight holds {weight.min():g}, expected no negative weight")
    inliers, outliers = (
        np.bincount(place, weights=weight * (labels == label), minlength=len(distinct))
        for label in (1, -1)
    )
    if not (inliers.any() and outliers.any()):
        raise ValueError("sample_weight is 0 on all rows of a class, expected a positive weight")
    return inliers, outliers


def _metric(name: str, y_true: ArrayLike, y_score: ArrayLike) -> float:
    return float(metric_on_counts(name)(*count_scores(y_true, y_score)))
