"""Histograms of scores, with the threshold and the metrics."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skdice._rows.sources import FloatArray
from skdice.metrics._report import ID_NAME, final_step
from skdice.plotting._score_sets import ScoreSetsMixin
from skdice.plotting._style import legend_above, line_styles, plain


class ScoreHistogramDisplay(ScoreSetsMixin):
    """Histograms of in-distribution scores and those of OOD sets, and the threshold.

    Use `from_estimator` or `from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    id_scores : array-like of shape (n_samples,)
        Scores of in-distribution rows; a higher score means more in-distribution.
    ood_scores : array-like of shape (n,), or mapping of str to these
        Scores of one out-of-distribution set, or of several by name.
    threshold : float, default=None
        The score below which the detector flags a row. `from_estimator` takes the detector's.
    bins : int, default=40
        The number of bins, which are the same for all sets.
    tpr : float in (0, 1], default=0.95
        The true-positive rate of the false-positive rate in the legend.
    rule : {"paper", "roc_curve"}, default="paper"
        The rule of the false-positive rate (see `skdice.metrics.fpr_at_tpr`).
    id_name : str, default="in-distribution"
        The name of the in-distribution rows in the legend.

    Attributes
    ----------
    fpr_at_tpr, auroc : dict of str to float
        The false-positive rate at `tpr` and the AUROC of each set, as fractions.
    histograms_ : dict of str to matplotlib StepPatch
        The histograms by the name of the set. The first is that of the in-distribution rows,
        which is filled.
    threshold_line_ : matplotlib Line2D or None
        The line at the threshold.
    ax_ : matplotlib Axes
        The axes of the histograms.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    OODRocCurveDisplay : The rates at all thresholds.
    skdice.metrics.evaluate : More metrics, as a table.

    Notes
    -----
    The false-positive rate does not depend on the detector's threshold. It has a threshold of
    its own, which keeps a share `tpr` of the in-distribution rows.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.plotting import ScoreHistogramDisplay
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> display = ScoreHistogramDisplay.from_estimator(detector, data.id_test, data.ood)
    >>> [label.get_text() for label in display.ax_.get_legend().get_texts()][1]
    'mnist: 9.3 / 98.3'
    """

    def __init__(
        self,
        *,
        id_scores: ArrayLike,
        ood_scores: Any,
        threshold: float | None = None,
        bins: int = 40,
        tpr: float = 0.95,
        rule: str = "paper",
        id_name: str = ID_NAME,
    ) -> None:
        super().__init__(
            id_scores=id_scores, ood_scores=ood_scores, tpr=tpr, rule=rule, id_name=id_name
        )
        if threshold is not None and not (isinstance(threshold, Real) and np.isfinite(threshold)):
            raise ValueError(f"threshold is {threshold!r}, expected a finite number or None")
        if not isinstance(bins, Integral) or bins < 1:
            raise ValueError(f"bins is {bins!r}, expected an int above 0")
        self.threshold: float | None = threshold
        self.bins: int = bins

    def _draw(self) -> None:
        edges = _bin_edges([self.id_scores, *self.ood_scores.values()], int(self.bins))
        self.histograms_: dict[str, Any] = {}
        peak = 0.0
        sets = {self.id_name: self.id_scores, **self.ood_scores}
        for (name, scores), style in zip(sets.items(), line_styles(), strict=False):
            density = np.histogram(scores.astype(np.float64), edges, density=True)[0]
            peak = max(peak, float(density.max()))
            if name == self.id_name:
                patch = self.ax_.stairs(density, edges, fill=True, label=plain(name), **style)
                patch.set(facecolor=(style["color"], 0.3), edgecolor=style["color"], linewidth=1)
            else:
                label = self._legend_label(name)
                patch = self.ax_.stairs(density, edges, label=label, linewidth=1.8, **style)
            self.histograms_[name] = patch
        self.threshold_line_ = None
        if self.threshold is not None:
            self.threshold_line_ = self.ax_.axvline(
                self.threshold, color="black", linewidth=1, label=f"threshold {self.threshold:.4g}"
            )
        self.ax_.set(xlabel="score (higher = more in-distribution)", ylabel="density")
        share = legend_above(self.ax_, peak, self._legend_title)
        if self.threshold_line_ is not None:
            # The line must not cross the legend.
            self.threshold_line_.set_ydata([0, share])

    @classmethod
    def _options_from_detector(cls, detector: Any) -> dict[str, Any]:
        threshold = final_step(detector).__dict__.get("offset_")
        # One line cannot show the thresholds of several predicted classes.
        if threshold is None or hasattr(final_step(detector), "class_offsets_"):
            return {}
        # The offset_ of scikit-learn's OneClassSVM is an array of one value.
        return {"threshold": float(np.asarray(threshold).item())}


def _bin_edges(sets: list[FloatArray], bins: int) -> NDArray[np.float64]:
    """Return the edges of bins of equal width over all scores, even if all are the same."""
    low = min(float(np.min(scores)) for scores in sets)
    high = max(float(np.max(scores)) for scores in sets)
    # Two edges of narrower bins would be the same number in float64.
    narrowest = 1e-9 * max(abs(low), abs(high), 1e-9)
    if high - low < narrowest:
        low, high = low - narrowest, high + narrowest
    return np.linspace(low, high, bins + 1)
