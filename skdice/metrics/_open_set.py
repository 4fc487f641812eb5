"""Metrics of classifiers that may refuse a row: OSCR, risk and coverage, and a table by class."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from skdice._compat.arrays import to_host

Float64Array = NDArray[np.float64]


def oscr_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    y_score: ArrayLike,
    *,
    unknown_label: float | str = -1,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Open-set classification rate: right rows of known classes against accepted unknown rows.

    At each threshold a row is accepted if its score is at the threshold or above it. The false
    positive rate is the share of the unknown rows that is accepted. The correct classification
    rate is the share of the rows of known classes that is accepted and has the right class. The
    curve ends at the accuracy of the classifier.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The classes; unknown rows have the label `unknown_label`.
    y_pred : array-like of shape (n_samples,)
        The class that the classifier gives to each row if it must give one, such as
        ``OpenSetClassifier.predict_known(X)``.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more like the known classes.
    unknown_label : int, float or str, default=-1
        The label of the unknown rows.

    Returns
    -------
    fpr, ccr : ndarray of shape (n_thresholds,), float64
        False positive rates in ascending order, and the correct classification rates.
    thresholds : ndarray of shape (n_thresholds,), float64
        Infinity, and each distinct score in descending order. Rows of equal scores are accepted
        together.

    Raises
    ------
    ValueError
        There are no known or no unknown rows, `y_pred` has `unknown_label`, or a score is not
        finite.

    See Also
    --------
    oscr_auc : The area under the curve.

    References
    ----------
    Dhamija, Günther & Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv:1811.04110.

    Examples
    --------
    >>> from skdice.metrics import oscr_curve
    >>> fpr, ccr, _ = oscr_curve(["a", "b", "b", "?"], ["a", "a", "b", "a"], [4, 3, 2, 1],
    ...                          unknown_label="?")
    >>> fpr, ccr.round(2)
    (array([0., 0., 0., 0., 1.]), array([0.  , 0.33, 0.33, 0.67, 0.67]))
    """
    labels, predicted, scores = _validated(y_true, y_pred, y_score)
    is_unknown = _equals(labels, unknown_label)
    if is_unknown.all() or not is_unknown.any():
        kind = "known" if is_unknown.all() else "unknown"
        raise ValueError(
            f"y_true has no {kind} row, expected some with the unknown_label {unknown_label!r} and "
            "some with other labels"
        )
    refused = np.flatnonzero(_equals(predicted, unknown_label))
    if len(refused):
        raise ValueError(
            f"y_pred[{refused[0]}] is the unknown_label {unknown_label!r}, expected the class that "
            "the classifier gives if it must give one, such as predict_known of OpenSetClassifier"
        )
    thresholds, (n_unknown, n_right) = _counts_down(
        scores, is_unknown, ~is_unknown & (labels == predicted)
    )
    fpr = np.concatenate([[0], n_unknown / is_unknown.sum()])
    ccr = np.concatenate([[0], n_right / (~is_unknown).sum()])
    return fpr, ccr, np.concatenate([[np.inf], thresholds])


def oscr_auc(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    y_score: ArrayLike,
    *,
    unknown_label: float | str = -1,
) -> float:
    """Area under the open-set classification rate curve.

    The area is the share of pairs of a known and an unknown row in which the known row has the
    right class and the higher score; a tie of the scores counts half. It is at most the accuracy
    and at most the AUROC.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The classes; unknown rows have the label `unknown_label`.
    y_pred : array-like of shape (n_samples,)
        The class that the classifier gives to each row if it must give one, such as
        ``OpenSetClassifier.predict_known(X)``.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means more like the known classes.
    unknown_label : int, float or str, default=-1
        The label of the unknown rows.

    Returns
    -------
    float
        The area in [0, 1]; higher is better.

    Raises
    ------
    ValueError
        There are no known or no unknown rows, `y_pred` has `unknown_label`, or a score is not
        finite.

    See Also
    --------
    oscr_curve : The curve.
    oscr_auc_scorer : The area as a scorer for `GridSearchCV`.

    Examples
    --------
    >>> from skdice.metrics import oscr_auc
    >>> oscr_auc([0, 0, 1, 1, -1, -1], [0, 1, 1, 1, 0, 1], [6, 5, 4, 2, 3, 1])
    0.625
    """
    fpr, ccr, _ = oscr_curve(y_true, y_pred, y_score, unknown_label=unknown_label)
    return float(auc(fpr, ccr))


def oscr_auc_scorer(estimator: Any, X: Any, y: ArrayLike) -> float:
    """Return the area under the OSCR curve of a fitted `OpenSetClassifier`; higher is better.

    A scorer for `GridSearchCV`, `cross_val_score` and the like. It depends on the order of the
    scores and not on the threshold, so the contamination does not matter.

    Parameters
    ----------
    estimator : OpenSetClassifier
        The fitted classifier.
    X : array-like of shape (n_samples, n_features), or list of str
        The rows.
    y : array-like of shape (n_samples,)
        The classes; unknown rows have the `unknown_label` of the classifier.

    Returns
    -------
    float
        The area in [0, 1].

    Raises
    ------
    ValueError
        There are no known or no unknown rows.

    Examples
    --------
    ``GridSearchCV(model, {"estimator__C": [0.1, 1]}, scoring=oscr_auc_scorer)``
    """
    return oscr_auc(
        y,
        estimator.predict_known(X),
        estimator.score_samples(X),
        unknown_label=estimator.unknown_label,
    )


def risk_coverage_curve(
    y_true: ArrayLike, y_pred: ArrayLike, y_score: ArrayLike
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Share of wrong rows among those accepted, against the share of rows accepted.

    At each threshold a row is accepted if its score is at the threshold or above it. The coverage
    is the share of all rows that is accepted. The selective risk is the share of the accepted rows
    whose predicted class is wrong. An unknown row that is accepted is wrong, because no class is
    its label.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The classes. Unknown rows, if there are some, have any label that is not a class.
    y_pred : array-like of shape (n_samples,)
        The class that the classifier gives to each row if it must give one, such as
        ``OpenSetClassifier.predict_known(X)``.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means that the classifier is more sure.

    Returns
    -------
    coverage, risk : ndarray of shape (n_distinct_scores,), float64
        The coverages in ascending order, the last of which is 1, and the selective risks.
    thresholds : ndarray of shape (n_distinct_scores,), float64
        Each distinct score in descending order. Rows of equal scores are accepted together.

    Raises
    ------
    ValueError
        There are no rows, the lengths differ, or a score is not finite.

    See Also
    --------
    aurc : The area under the curve.

    References
    ----------
    Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017,
    arXiv:1705.08500.

    Examples
    --------
    >>> from skdice.metrics import risk_coverage_curve
    >>> coverage, risk, _ = risk_coverage_curve([0, 1, 1, 0], [0, 1, 0, 1], [4, 3, 2, 1])
    >>> coverage, risk.round(2)
    (array([0.25, 0.5 , 0.75, 1.  ]), array([0.  , 0.  , 0.33, 0.5 ]))
    """
    labels, predicted, scores = _validated(y_true, y_pred, y_score)
    thresholds, (n_accepted, n_wrong) = _counts_down(
        scores, np.ones(len(scores), np.bool_), labels != predicted
    )
    return n_accepted / len(scores), n_wrong / n_accepted, thresholds


def aurc(y_true: ArrayLike, y_pred: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the risk-coverage curve.

    The area is the mean of the selective risks when the k rows with the highest scores are
    accepted, for k from 1 to the number of rows. Rows of equal scores are taken in random order:
    the area is the mean over all their orders, so it does not depend on the order of the rows.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The classes. Unknown rows, if there are some, have any label that is not a class.
    y_pred : array-like of shape (n_samples,)
        The class that the classifier gives to each row if it must give one, such as
        ``OpenSetClassifier.predict_known(X)``.
    y_score : array-like of shape (n_samples,)
        The scores; a higher score means that the classifier is more sure.

    Returns
    -------
    float
        The area in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        There are no rows, the lengths differ, or a score is not finite.

    See Also
    --------
    risk_coverage_curve : The curve.

    References
    ----------
    Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ICLR 2019, arXiv:1805.08206.

    Examples
    --------
    >>> from skdice.metrics import aurc
    >>> aurc([0, 1, 1, 0], [0, 1, 0, 1], [4, 3, 2, 1])  # (0 + 0 + 1/3 + 1/2) / 4
    0.20833333333333331
    """
    labels, predicted, scores = _validated(y_true, y_pred, y_score)
    _, (n_accepted, n_wrong) = _counts_down(
        scores, np.ones(len(scores), np.bool_), labels != predicted
    )
    # Among the rows of one score, the expected number of wrong rows grows evenly.
    ranks = np.arange(1, len(scores) + 1)
    expected_wrong = np.interp(ranks, np.append(0, n_accepted), np.append(0, n_wrong))
    return float(np.mean(expected_wrong / ranks))


@dataclass(frozen=True, repr=False)
class OpenSetReport:
    """What a classifier that may say "unknown" did with the rows of each class.

    `open_set_report` returns it.

    Parameters
    ----------
    labels : list
        The classes in sorted order, and at the end the label of unknown rows, where y_true has
        it.
    right, wrong, unknown : ndarray of shape (n_labels,), int
        The numbers of rows of each label that got this class, another class, and that were called
        unknown. An unknown row gets no right class: it is called unknown or is wrong.

    Examples
    --------
    See `open_set_report`.
    """

    labels: list[Any]
    right: NDArray[np.int_]
    wrong: NDArray[np.int_]
    unknown: NDArray[np.int_]

    @property
    def n_rows(self) -> NDArray[np.int_]:
        """The number of rows of each label."""
        return self.right + self.wrong + self.unknown

    @property
    def flagged(self) -> Float64Array:
        """The share of the rows of each label that was called unknown."""
        return self.unknown / self.n_rows

    def to_dict(self) -> dict[Any, dict[str, float]]:
        """Return plain dicts and numbers.

        Returns
        -------
        dict of label to dict
            By label: ``rows``, ``right``, ``wrong``, ``unknown`` and ``flagged``.
        """
        columns = {
            "rows": self.n_rows,
            "right": self.right,
            "wrong": self.wrong,
            "unknown": self.unknown,
            "flagged": self.flagged,
        }
        return {
            label: {name: column[n].item() for name, column in columns.items()}
            for n, label in enumerate(self.labels)
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One row per label; the columns are the fields of `to_dict`.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise ImportError("pandas is not installed: run pip install pandas.") from error
        return pandas.DataFrame.from_dict(self.to_dict(), orient="index")

    def __repr__(self) -> str:
        table = [["", "rows", "right", "wrong", "unknown", "flagged"]]
        for label, row in self.to_dict().items():
            counts = [str(row[name]) for name in table[0][1:-1]]
            table.append([str(label), *counts, f"{100 * row['flagged']:.1f} %"])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in table
        )


def open_set_report(
    y_true: ArrayLike, y_pred: ArrayLike, *, unknown_label: float | str = -1
) -> OpenSetReport:
    """Count for each class the rows that are right, wrong, and called unknown.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The classes; unknown rows, if there are some, have the label `unknown_label`.
    y_pred : array-like of shape (n_samples,)
        The predictions, with `unknown_label` where a row is called unknown, such as
        ``OpenSetClassifier.predict(X)``.
    unknown_label : int, float or str, default=-1
        The label of unknown rows.

    Returns
    -------
    OpenSetReport
        It is shown as a table.

    Raises
    ------
    ValueError
        There are no rows, or the lengths differ.

    Examples
    --------
    >>> from skdice.metrics import open_set_report
    >>> open_set_report([0, 0, 0, 1, 1, -1, -1], [0, 0, -1, 1, 0, -1, 1])
        rows  right  wrong  unknown  flagged
     0     3      2      0        1   33.3 %
     1     2      1      1        0    0.0 %
    -1     2      0      1        1   50.0 %
    """
    labels, predicted = _checked_labels("y_true", y_true), _checked_labels("y_pred", y_pred)
    check_consistent_length(labels, predicted)
    names, place = np.unique(labels, return_inverse=True)
    called_unknown = _equals(predicted, unknown_label)
    right = (labels == predicted) & ~called_unknown
    outcomes = (right, ~right & ~called_unknown, called_unknown)
    # The unknown rows come last.
    order = np.argsort(_equals(names, unknown_label), kind="stable")
    counts = [np.bincount(place[outcome], minlength=len(names))[order] for outcome in outcomes]
    return OpenSetReport(names[order].tolist(), *counts)


def _checked_labels(name: str, values: ArrayLike) -> NDArray[Any]:
    labels: NDArray[Any] = column_or_1d(to_host(values))
    if len(labels) == 0:
        raise ValueError(f"{name} has 0 rows, expected at least 1")
    return labels


def _validated(
    y_true: ArrayLike, y_pred: ArrayLike, y_score: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], Float64Array]:
    """Return labels, predicted classes and scores as checked arrays of one length."""
    labels, predicted = _checked_labels("y_true", y_true), _checked_labels("y_pred", y_pred)
    scores = column_or_1d(
        check_array(to_host(y_score), ensure_2d=False, dtype=np.float64, input_name="y_score")
    )
    check_consistent_length(labels, predicted, scores)
    return labels, predicted, scores


def _equals(labels: NDArray[Any], label: Any) -> NDArray[np.bool_]:
    """Return which labels are equal to one label, which may be of another type."""
    return np.asarray(labels.astype(object) == label, np.bool_)


def _counts_down(
    scores: Float64Array, *masks: NDArray[np.bool_]
) -> tuple[Float64Array, list[NDArray[np.int_]]]:
    """Return the distinct scores in descending order, and how many rows reach each of them.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        The scores.
    *masks : ndarray of shape (n_samples,)
        The rows to count; there is an array of numbers for each mask.
    """
    distinct, place = np.unique(-scores, return_inverse=True)
    counts = [np.cumsum(np.bincount(place[mask], minlength=len(distinct))) for mask in masks]
    return -distinct, counts
