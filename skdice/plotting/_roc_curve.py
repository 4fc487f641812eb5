"""ROC curves of outlier detectors, one per OOD set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from skdice.metrics import auroc, fpr_at_tpr
from skdice.metrics._rates import labelled
from skdice.plotting._score_sets import (
    ID_NAME,
    OOD_NAME,
    by_set,
    checked_scores,
    estimator_scores,
    labelled_scores,
)
from skdice.plotting._style import (
    LEGEND_SIZE,
    line_styles,
    obtain_axes,
    open_frame,
    rates_label,
)

FloatArray = NDArray[np.floating[Any]]


class OODRocCurveDisplay:
    """ROC curves of a detector, one per OOD set; in-distribution is the positive class.

    Use `from_estimator`, `from_predictions` or `from_scores`, which compute the curves. All
    parameters are stored as attributes.

    Parameters
    ----------
    fpr, tpr : mapping of str to ndarray
        False- and true-positive rates along the curve of each OOD set, by name.
    fpr_at_tpr, auroc : mapping of str to float
        FPR at `tpr_level`, which is marked, and AUROC of each set, as fractions.
    tpr_level : float in (0, 1], default=0.95
        The true-positive rate at which the false-positive rate is marked.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        The curves by the name of the set.
    marks_ : dict of str to matplotlib Line2D
        The marks of the false-positive rate.
    level_line_ : matplotlib Line2D
        At `tpr_level`.
    chance_level_ : matplotlib Line2D
        The diagonal.
    ax_ : matplotlib Axes
        Where it is drawn.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    ScoreHistogramDisplay : The scores themselves.
    sklearn.metrics.RocCurveDisplay : For classifiers.

    Notes
    -----
    The curve is that of `sklearn.metrics.roc_curve`, and the mark is
    `skdice.metrics.fpr_at_tpr`, which goes by the same thresholds. The papers' rule, as in the
    table of `skdice.metrics.evaluate`, may place its threshold one row further.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.plotting import OODRocCurveDisplay
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> display = OODRocCurveDisplay.from_estimator(detector, data.id_test, data.ood)
    >>> {name: round(rate, 3) for name, rate in display.fpr_at_tpr.items()}
    {'mnist': 0.093, 'digits': 0.063, 'textures': 0.34}
    """

    def __init__(
        self,
        *,
        fpr: Mapping[str, FloatArray],
        tpr: Mapping[str, FloatArray],
        fpr_at_tpr: Mapping[str, float],
        auroc: Mapping[str, float],
        tpr_level: float = 0.95,
    ) -> None:
        self.fpr = fpr
        self.tpr = tpr
        self.fpr_at_tpr = fpr_at_tpr
        self.auroc = auroc
        self.tpr_level = tpr_level

    @classmethod
    def from_estimator(
        cls, detector: Any, X_id: Any, ood: Any, *, tpr_level: float = 0.95, ax: Any = None
    ) -> Self:
        """Score rows by a fitted detector and draw the curves.

        Parameters
        ----------
        detector : outlier detector
            Fitted: a detector of skdice, a Pipeline that ends in one, or any other with
            ``score_samples``.
        X_id : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that neither the network nor the detector has
            seen.
        ood : array-like, source of rows, or mapping of str to these
            Features of one out-of-distribution set, or of several by name.
        tpr_level : float in (0, 1], default=0.95
            The true-positive rate at which the false-positive rate is marked.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODRocCurveDisplay

        Raises
        ------
        ValueError
            No set is given, widths do not match, a value is not finite, or `tpr_level` is out
            of its range.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        """
        id_scores, ood_scores = estimator_scores(detector, X_id, ood, ID_NAME)
        return cls.from_scores(id_scores, ood_scores, tpr_level=tpr_level, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        ood_name: str = OOD_NAME,
        tpr_level: float = 0.95,
        ax: Any = None,
    ) -> Self:
        """Draw the curve of labelled scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 in-distribution, -1 out-of-distribution.
        y_score : array-like of shape (n_samples,)
            Scores, higher = more in-distribution.
        ood_name : str, default="out-of-distribution"
            Name of the curve in the legend.
        tpr_level : float in (0, 1], default=0.95
            The true-positive rate at which the false-positive rate is marked.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODRocCurveDisplay

        Raises
        ------
        ValueError
            A class has no rows, a score is not finite, or `tpr_level` is out of its range.
        """
        id_scores, ood_scores = labelled_scores(y_true, y_score)
        return cls.from_scores(id_scores, {ood_name: ood_scores}, tpr_level=tpr_level, ax=ax)

    @classmethod
    def from_scores(
        cls, id_scores: ArrayLike, ood_scores: Any, *, tpr_level: float = 0.95, ax: Any = None
    ) -> Self:
        """Draw the curves of scores that are known, of several OOD sets by name.

        Parameters
        ----------
        id_scores : array-like of shape (n_samples,)
            Scores of in-distribution rows, higher = more in-distribution.
        ood_scores : array-like of shape (n,), or mapping of str to these
            Scores of one out-of-distribution set, or of several by name.
        tpr_level : float in (0, 1], default=0.95
            The true-positive rate at which the false-positive rate is marked.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODRocCurveDisplay

        Raises
        ------
        ValueError
            No set is given, a set is empty, a score is not finite, or `tpr_level` is out of
            its range.
        """
        inliers, outliers = checked_scores(id_scores, ood_scores, ID_NAME)
        curves = {
            name: roc_curve(*labelled(inliers, each), pos_label=1)
            for name, each in outliers.items()
        }
        display = cls(
            fpr={name: each[0] for name, each in curves.items()},
            tpr={name: each[1] for name, each in curves.items()},
            fpr_at_tpr={
                name: fpr_at_tpr(*labelled(inliers, each), tpr=tpr_level)
                for name, each in outliers.items()
            },
            auroc=by_set(auroc, inliers, outliers),
            tpr_level=tpr_level,
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        OODRocCurveDisplay
            Itself.
        """
        self.ax_, self.figure_ = obtain_axes(ax)
        grey = {"color": "0.45", "linewidth": 0.9}
        (self.chance_level_,) = self.ax_.plot([0, 1], [0, 1], linestyle=(0, (1, 3)), **grey)
        self.level_line_ = self.ax_.axhline(self.tpr_level, **grey)
        self.lines_: dict[str, Any] = {}
        self.marks_: dict[str, Any] = {}
        for name, style in zip(self.fpr, line_styles(), strict=False):
            rate = self.fpr_at_tpr[name]
            (self.lines_[name],) = self.ax_.plot(
                self.fpr[name],
                self.tpr[name],
                linewidth=1.8,
                label=rates_label(name, rate, self.auroc[name]),
                **style,
            )
            (self.marks_[name],) = self.ax_.plot(
                rate,
                mark_height(self.fpr[name], self.tpr[name], rate, self.tpr_level),
                "o",
                color=style["color"],
                markeredgecolor="white",
                markersize=8,
            )
        self.ax_.set(
            xlabel="false-positive rate (OOD taken for in-distribution)",
            ylabel="true-positive rate (in-distribution kept)",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
        )
        open_frame(self.ax_)
        self.ax_.legend(
            loc="lower right",
            title=f"FPR{100 * self.tpr_level:g} / AUROC, %",
            fontsize=LEGEND_SIZE,
            title_fontsize=LEGEND_SIZE,
            edgecolor="none",
            alignment="left",
        )
        return self


def mark_height(fpr: ArrayLike, tpr: ArrayLike, rate: float, level: float) -> float:
    """Return where on the curve the false-positive rate at a true-positive rate is marked.

    On a vertical part, where no OOD row has the scores, that is the level itself. A slope is
    one of tied rows: the curve is at its upper end when the level is first reached.
    """
    fpr, tpr = np.asarray(fpr), np.asarray(tpr)
    here = tpr[fpr == rate]
    # Where the point itself was dropped, as it lies on the line through its neighbours.
    lowest = here.min() if len(here) else np.interp(rate, fpr, tpr)
    return max(level, float(lowest))
