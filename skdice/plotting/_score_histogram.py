"""Histograms of scores, with the threshold and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skdice.metrics import auroc, fpr_at_tpr_authors
from skdice.metrics._report import final_step
from skdice.plotting._score_sets import (
    ID_NAME,
    OOD_NAME,
    by_set,
    checked_scores,
    estimator_scores,
    labelled_scores,
)
from skdice.plotting._style import (
    RATES,
    legend_above,
    line_styles,
    obtain_axes,
    open_frame,
    plain,
    rates_label,
)

FloatArray = NDArray[np.floating[Any]]


class ScoreHistogramDisplay:
    """Histograms of in-distribution scores and those of OOD sets, and the threshold.

    Use `from_estimator`, `from_predictions` or `from_scores`, which also compute the metrics.
    All parameters are stored as attributes.

    Parameters
    ----------
    id_scores : ndarray of shape (n_samples,)
        Scores of in-distribution rows, higher = more in-distribution.
    ood_scores : mapping of str to ndarray of shape (n,)
        Scores of each OOD set, by name.
    threshold : float, default=None
        The detector's, on the scores.
    fpr95, auroc : mapping of str to float, default=None
        FPR at 95 % TPR and AUROC of each set, as fractions, for the legend.
    id_name : str, default="in-distribution"
        Name of the in-distribution rows in the legend.

    Attributes
    ----------
    histograms_ : dict of str to matplotlib StepPatch
        By the name of the set; that of the in-distribution rows, which is filled, first.
    threshold_line_ : matplotlib Line2D or None
        The threshold.
    ax_ : matplotlib Axes
        Where it is drawn.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    OODRocCurveDisplay : All thresholds at once.
    skdice.metrics.evaluate : More metrics, as a table.

    Notes
    -----
    FPR95 is `skdice.metrics.fpr_at_tpr_authors`, the papers' rule, as in the table of
    `skdice.metrics.evaluate`: the share of OOD rows above the score that 5 % of the
    in-distribution rows fall below. The detector's own threshold is another one.

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

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        id_scores: FloatArray,
        ood_scores: Mapping[str, FloatArray],
        threshold: float | None = None,
        fpr95: Mapping[str, float] | None = None,
        auroc: Mapping[str, float] | None = None,
        id_name: str = ID_NAME,
    ) -> None:
        self.id_scores = id_scores
        self.ood_scores = ood_scores
        self.threshold = threshold
        self.fpr95 = fpr95
        self.auroc = auroc
        self.id_name = id_name

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X_id: Any,
        ood: Any,
        *,
        id_name: str = ID_NAME,
        bins: int = 40,
        ax: Any = None,
    ) -> Self:
        """Score rows by a fitted detector and draw the histograms.

        Parameters
        ----------
        detector : outlier detector
            Fitted: a detector of skdice, a Pipeline that ends in one, or any other with
            ``score_samples``. Its ``offset_`` is the threshold.
        X_id : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that neither the network nor the detector has
            seen.
        ood : array-like, source of rows, or mapping of str to these
            Features of one out-of-distribution set, or of several by name.
        id_name : str, default="in-distribution"
            Name of the in-distribution rows in the legend.
        bins : int, default=40
            Number of bins, the same for all sets.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        ScoreHistogramDisplay

        Raises
        ------
        ValueError
            No set is given, widths do not match, or a value is not finite.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        """
        id_scores, ood_scores = estimator_scores(detector, X_id, ood, id_name)
        threshold = final_step(detector).__dict__.get("offset_")
        if threshold is not None:  # scikit-learn's may be an array of one
            threshold = float(np.asarray(threshold).item())
        return cls.from_scores(
            id_scores, ood_scores, threshold=threshold, id_name=id_name, bins=bins, ax=ax
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_score: ArrayLike,
        *,
        threshold: float | None = None,
        id_name: str = ID_NAME,
        ood_name: str = OOD_NAME,
        bins: int = 40,
        ax: Any = None,
    ) -> Self:
        """Draw the histograms of labelled scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 in-distribution, -1 out-of-distribution.
        y_score : array-like of shape (n_samples,)
            Scores, higher = more in-distribution.
        threshold : float, default=None
            The detector's, on the scores.
        id_name, ood_name : str
            Names of the two classes in the legend.
        bins : int, default=40
            Number of bins.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        ScoreHistogramDisplay

        Raises
        ------
        ValueError
            A class has no rows, or a score is not finite.
        """
        id_scores, ood_scores = labelled_scores(y_true, y_score)
        return cls.from_scores(
            id_scores,
            {ood_name: ood_scores},
            threshold=threshold,
            id_name=id_name,
            bins=bins,
            ax=ax,
        )

    @classmethod
    def from_scores(
        cls,
        id_scores: ArrayLike,
        ood_scores: Any,
        *,
        threshold: float | None = None,
        id_name: str = ID_NAME,
        bins: int = 40,
        ax: Any = None,
    ) -> Self:
        """Draw the histograms of scores that are known, of several OOD sets by name.

        Parameters
        ----------
        id_scores : array-like of shape (n_samples,)
            Scores of in-distribution rows, higher = more in-distribution.
        ood_scores : array-like of shape (n,), or mapping of str to these
            Scores of one out-of-distribution set, or of several by name.
        threshold : float, default=None
            The detector's, on the scores.
        id_name : str, default="in-distribution"
            Name of the in-distribution rows in the legend.
        bins : int, default=40
            Number of bins.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        ScoreHistogramDisplay

        Raises
        ------
        ValueError
            No set is given, a set is empty, or a score is not finite.
        """
        inliers, outliers = checked_scores(id_scores, ood_scores, id_name)
        if threshold is not None and not (isinstance(threshold, Real) and np.isfinite(threshold)):
            raise ValueError(f"threshold is {threshold!r}, expected a finite number or None")
        display = cls(
            id_scores=inliers,
            ood_scores=outliers,
            threshold=threshold,
            fpr95=by_set(fpr_at_tpr_authors, inliers, outliers),
            auroc=by_set(auroc, inliers, outliers),
            id_name=id_name,
        )
        return display.plot(ax, bins=bins)

    def plot(self, ax: Any = None, *, bins: int = 40) -> Self:
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        bins : int, default=40
            Number of bins, the same for all sets.

        Returns
        -------
        ScoreHistogramDisplay
            Itself.
        """
        if not isinstance(bins, Integral) or bins < 1:
            raise ValueError(f"bins is {bins!r}, expected an int above 0")
        edges = bin_edges([self.id_scores, *self.ood_scores.values()], int(bins))
        self.ax_, self.figure_ = obtain_axes(ax)
        self.histograms_: dict[str, Any] = {}
        peak = 0.0
        named = {self.id_name: self.id_scores, **self.ood_scores}
        for (name, scores), style in zip(named.items(), line_styles(), strict=False):
            density = np.histogram(np.asarray(scores, np.float64), edges, density=True)[0]
            peak = max(peak, float(density.max()))
            self.histograms_[name] = self._draw(name, density, edges, style)
        self.threshold_line_ = None
        if self.threshold is not None:
            self.threshold_line_ = self.ax_.axvline(
                self.threshold, color="black", linewidth=1, label=f"threshold {self.threshold:.4g}"
            )
        self.ax_.set(xlabel="score (higher = more in-distribution)", ylabel="density")
        open_frame(self.ax_)
        share = legend_above(self.ax_, peak, RATES if self._has_rates() else None)
        if self.threshold_line_ is not None:
            # Not through the legend.
            self.threshold_line_.set_ydata([0, share])
        return self

    def _draw(self, name: str, density: FloatArray, edges: FloatArray, style: Any) -> Any:
        if name == self.id_name:
            fill = self.ax_.stairs(density, edges, fill=True, label=plain(name), **style)
            fill.set(facecolor=(style["color"], 0.3), edgecolor=style["color"], linewidth=1)
            return fill
        label = plain(name)
        if self._has_rates():
            assert self.fpr95 is not None
            assert self.auroc is not None
            label = rates_label(name, self.fpr95[name], self.auroc[name])
        return self.ax_.stairs(density, edges, label=label, linewidth=1.8, **style)

    def _has_rates(self) -> bool:
        return self.fpr95 is not None and self.auroc is not None


def bin_edges(sets: list[FloatArray], bins: int) -> NDArray[np.float64]:
    """Return the edges of bins of equal width over all scores, even where all are the same."""
    low = min(float(np.min(each)) for each in sets)
    high = max(float(np.max(each)) for each in sets)
    # Narrower bins would have the same edges in float64.
    narrowest = 1e-9 * max(abs(low), abs(high), 1e-9)
    if high - low < narrowest:
        low, high = low - narrowest, high + narrowest
    return np.linspace(low, high, bins + 1)
