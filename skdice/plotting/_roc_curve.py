"""ROC curves of outlier detectors, one per OOD set."""

from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from skdice._rows.sources import FloatArray
from skdice.metrics._rates import labelled
from skdice.plotting._score_sets import ScoreSetsMixin
from skdice.plotting._style import draw_legend, line_styles


class OODRocCurveDisplay(ScoreSetsMixin):
    """ROC curves of a detector, one per OOD set; in-distribution is the positive class.

    Use `from_estimator` or `from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    id_scores : array-like of shape (n_samples,)
        Scores of in-distribution rows; a higher score means more in-distribution.
    ood_scores : array-like of shape (n,), or mapping of str to these
        Scores of one out-of-distribution set, or of several by name.
    tpr : float in (0, 1], default=0.95
        The true-positive rate at which the false-positive rate is marked.
    rule : {"paper", "roc_curve"}, default="paper"
        The rule of the false-positive rate (see `skdice.metrics.fpr_at_tpr`).
    id_name : str, default="in-distribution"
        The name of the in-distribution rows in messages.

    Attributes
    ----------
    fpr_at_tpr, auroc : dict of str to float
        The false-positive rate at `tpr` and the AUROC of each set, as fractions.
    lines_ : dict of str to matplotlib Line2D
        The curves by the name of the set.
    marks_ : dict of str to matplotlib Line2D
        The marks of the false-positive rates.
    level_line_ : matplotlib Line2D
        The line at `tpr`.
    chance_level_ : matplotlib Line2D
        The diagonal.
    ax_ : matplotlib Axes
        The axes of the curves.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    ScoreHistogramDisplay : The scores themselves.
    sklearn.metrics.RocCurveDisplay : ROC curves of classifiers.

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

    def _draw(self) -> None:
        grey = {"color": "0.45", "linewidth": 0.9}
        (self.chance_level_,) = self.ax_.plot([0, 1], [0, 1], linestyle=(0, (1, 3)), **grey)
        self.level_line_ = self.ax_.axhline(self.tpr, **grey)
        self.lines_: dict[str, Any] = {}
        self.marks_: dict[str, Any] = {}
        for (name, scores), style in zip(self.ood_scores.items(), line_styles(), strict=False):
            fpr, tpr, _ = roc_curve(*labelled(self.id_scores, scores), pos_label=1)
            label = self._legend_label(name)
            (self.lines_[name],) = self.ax_.plot(fpr, tpr, linewidth=1.8, label=label, **style)
            (self.marks_[name],) = self.ax_.plot(
                self.fpr_at_tpr[name],
                _height_on_curve(fpr, tpr, self.fpr_at_tpr[name], self.tpr),
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
        draw_legend(self.ax_, self._legend_title, loc="lower right")


def _height_on_curve(fpr: FloatArray, tpr: FloatArray, rate: float, level: float) -> float:
    """Return the height nearest to a level at which the curve has a false-positive rate."""
    heights = tpr[fpr == rate]
    if not len(heights):
        # roc_curve drops the points on a straight line between two others.
        return float(np.interp(rate, fpr, tpr))
    return float(np.clip(level, heights.min(), heights.max()))
