"""Rates of labelled scores: false positives at a true-positive rate, areas, detection error."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, make_scorer, roc_auc_score, roc_curve
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skdice._compat.arrays import to_host

FloatArray = NDArray[np.floating[Any]]


def fpr_at_tpr(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    tpr: float = 0.95,
    pos_label: int = 1,
    sample_weight: ArrayLike | None = None,
) -> float:
    """False-positive rate at the first threshold that reaches a true-positive rate.

    By the rule of `sklearn.metrics.roc_curve`: thresholds are the distinct scores, a row is
    taken for positive where its score is the threshold or beyond it, and tied rows go
    together. The false-positive rate is the share of the other class there.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.
    tpr : float in (0, 1], default=0.95
        True-positive rate to be reached.
    pos_label : {1, -1}, default=1
        The positive class. 1, in-distribution, as in the papers of DICE, ReAct and ASH; -1,
        out-of-distribution, as in OpenOOD, pytorch-ood and oodeel, which differs by tens of
        points on skewed scores.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    float
        In [0, 1]; lower is better.

    Raises
    ------
    ValueError
        A class has no rows, a score is not finite, or a parameter is out of its range.

    See Also
    --------
    fpr_at_tpr_authors : By the code of the papers, which places the threshold otherwise.

    Examples
    --------
    >>> from skdice.metrics import fpr_at_tpr
    >>> y_true, y_score = [1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1]
    >>> fpr_at_tpr(y_true, y_score), fpr_at_tpr(y_true, y_score, pos_label=-1)
    (0.5, 0.25)
    >>> fpr_at_tpr(y_true, y_score, tpr=0.75)
    0.0
    """
    labels, scores = validated(y_true, y_score)
    _check_tpr(tpr)
    if pos_label not in (1, -1):
        raise ValueError(f"pos_label is {pos_label!r}, expected 1 or -1")
    rates = roc_curve(
        labels == pos_label,
        scores * pos_label,
        sample_weight=to_host(sample_weight),
        drop_intermediate=False,
    )
    return float(rates[0][np.argmax(_reached(rates[1], tpr))])


def fpr_at_tpr_authors(y_true: ArrayLike, y_score: ArrayLike, *, tpr: float = 0.95) -> float:
    """False-positive rate at a true-positive rate, by the code of the papers.

    In-distribution is positive. Of its n scores in ascending order, the one at place
    ``round((1 - tpr) * n)``, counted from 0, is the threshold; the rate is the share of
    out-of-distribution scores above it. So do the published code of DICE, ReAct and ASH and
    the tables of their papers.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.
    tpr : float in (0, 1], default=0.95
        True-positive rate.

    Returns
    -------
    float
        In [0, 1]; lower is better.

    Raises
    ------
    ValueError
        A class has no rows, a score is not finite, or `tpr` is out of its range.

    Examples
    --------
    >>> from skdice.metrics import fpr_at_tpr_authors
    >>> fpr_at_tpr_authors([1, 1, 1, 1, -1, -1], [9, 8, 7, 3, 5, 1])
    0.5
    """
    labels, scores = validated(y_true, y_score)
    inliers, outliers = np.sort(scores[labels == 1]), scores[labels == -1]
    return float(np.mean(outliers > inliers[authors_place(len(inliers), tpr)]))


def authors_place(n: int, tpr: float) -> int:
    """Return the place of the papers' threshold among n sorted in-distribution scores."""
    _check_tpr(tpr)
    # 1 - 0.95 is a little more than 0.05, which would round 0.5 to 1.
    return min(round(round(1 - tpr, 12) * n), n - 1)


def auroc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve, by `sklearn.metrics.roc_auc_score`.

    The same whichever class is positive: the share of pairs in which the in-distribution row
    has the higher score, ties counted half.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.

    Returns
    -------
    float
        In [0, 1]; higher is better, 0.5 is chance.

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
    labels, scores = validated(y_true, y_score)
    return float(roc_auc_score(labels == 1, scores))


def aupr_in(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall curve with in-distribution as positive.

    By `sklearn.metrics.average_precision_score`. It depends on the share of each class.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.

    Returns
    -------
    float
        In [0, 1]; higher is better.

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
    labels, scores = validated(y_true, y_score)
    return float(average_precision_score(labels == 1, scores))


def aupr_out(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the precision-recall curve with out-of-distribution as positive.

    By `sklearn.metrics.average_precision_score` on the negated scores. It depends on the
    share of each class.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.

    Returns
    -------
    float
        In [0, 1]; higher is better.

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
    labels, scores = validated(y_true, y_score)
    return float(average_precision_score(labels == -1, -scores))


def detection_error(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Lowest mean of the two error rates over all thresholds (Liang et al., ICLR 2018).

    ``min (1 - TPR) / 2 + FPR / 2``: the error where both classes are equally likely.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        +1 in-distribution, -1 out-of-distribution.
    y_score : array-like of shape (n_samples,)
        Scores, higher = more in-distribution.

    Returns
    -------
    float
        In [0, 0.5]; lower is better.

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
    labels, scores = validated(y_true, y_score)
    fpr, tpr, _ = roc_curve(labels == 1, scores, drop_intermediate=False)
    return float(np.min((1 - tpr) / 2 + fpr / 2))


# For GridSearchCV(scoring=...): higher is better, so the rate is negated.
neg_fpr95_scorer = make_scorer(
    fpr_at_tpr_authors, response_method="decision_function", greater_is_better=False
)


def labelled(id_scores: FloatArray, ood_scores: FloatArray) -> tuple[NDArray[Any], FloatArray]:
    """Return labels and scores of both classes as one array each."""
    labels = np.repeat([1, -1], [len(id_scores), len(ood_scores)])
    return labels, np.concatenate([id_scores, ood_scores])


def _reached(rates: FloatArray, tpr: float) -> NDArray[np.bool_]:
    # Weights may sum to a little less than all.
    reached: NDArray[np.bool_] = rates >= min(tpr, rates[-1])
    return reached


def _check_tpr(tpr: float) -> None:
    if not isinstance(tpr, Real) or not 0 < float(tpr) <= 1:
        hint = f": did you mean {tpr / 100:g}?" if isinstance(tpr, Real) and 1 < tpr <= 100 else ""
        raise ValueError(f"tpr is {tpr!r}, expected a fraction in (0, 1]{hint}")


def validated(y_true: ArrayLike, y_score: ArrayLike) -> tuple[NDArray[Any], FloatArray]:
    """Return labels of +1 and -1, both there, and finite scores."""
    labels = column_or_1d(to_host(y_true))
    scores = check_array(
        to_host(y_score), ensure_2d=False, dtype=[np.float64, np.float32], input_name="y_score"
    )
    scores = column_or_1d(scores)
    check_consistent_length(labels, scores)
    values = np.unique(labels)
    if not np.isin(values, (1, -1)).all():
        shown = ", ".join(map(repr, values[:5].tolist()))
        raise ValueError(f"y_true has the labels {shown}; expected +1 (in-distribution) and -1")
    for label, name in ((1, "in-distribution"), (-1, "out-of-distribution")):
        if label not in values:
            raise ValueError(f"y_true has no {name} row (label {label:+d})")
    return labels, scores
