"""A metric against the sparsity, with error bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdice import metrics
from skdice.metrics import bootstrap_interval
from skdice.plotting._curves import (
    METRIC_NAMES,
    candidate_of,
    checked_curves,
    curves_of,
    metric_name,
)
from skdice.plotting._style import LEGEND_SIZE, line_styles, obtain_axes, open_frame, plain

FloatArray = NDArray[np.floating[Any]]

MARKERS = "osD^vP"


class SparsityCurveDisplay:
    """A metric against the sparsity, with error bands, one curve per shaping or method.

    Use `from_estimator` with a fitted `skdice.DICEDetectorCV` or search, `from_predictions`
    with the scores of `skdice.sparsity_path`, or `from_scores` with metrics that are known.
    All parameters are stored as attributes.

    Parameters
    ----------
    sparsities : ndarray of shape (n_sparsities,)
        In ascending order.
    scores : mapping of str to ndarray of shape (n_sparsities,)
        The metric along each curve, by name. NaN where it was not measured.
    bands : mapping of str to ndarray of shape (2, n_sparsities), default=None
        Lower and upper end of the error bands of the curves that have one.
    score_name : str, default="score"
        Name of the metric.
    band_name : str, default=None
        What the bands are, for the legend.
    chosen : tuple (str, float), default=None
        Curve and sparsity that were chosen, which are marked.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        The curves.
    bands_ : dict of str to matplotlib PolyCollection
        The error bands.
    chosen_mark_ : matplotlib Line2D or None
        The mark of what was chosen.
    ax_ : matplotlib Axes
        Where it is drawn.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skdice.DICEDetectorCV : Chooses the sparsity.
    skdice.sparsity_path : Scores at each sparsity.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice import DICEDetectorCV
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.plotting import SparsityCurveDisplay
    >>> data = load_fashion_mnist_ood()
    >>> search = DICEDetectorCV(data.head, sparsities=[0, 0.1, 0.9])
    >>> search = search.fit(data.id_train, outliers=data.ood["mnist"])
    >>> display = SparsityCurveDisplay.from_estimator(search)
    >>> display.scores["DICE"].round(3)
    array([0.988, 0.99 , 0.95 ])
    """

    def __init__(
        self,
        *,
        sparsities: FloatArray,
        scores: Mapping[str, FloatArray],
        bands: Mapping[str, FloatArray] | None = None,
        score_name: str = "score",
        band_name: str | None = None,
        chosen: tuple[str, float] | None = None,
    ) -> None:
        self.sparsities = sparsities
        self.scores = scores
        self.bands = bands
        self.score_name = score_name
        self.band_name = band_name
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        *,
        metric: str | None = None,
        score_name: str | None = None,
        negate_score: bool = False,
        ax: Any = None,
    ) -> Self:
        """Draw the cross-validated metric of a fitted search, and mark its choice.

        The bands are one standard deviation over the folds to either side of the mean. Where
        other parameters were searched, too, such as the shaping, each has its own curve.

        Parameters
        ----------
        search : DICEDetectorCV, GridSearchCV or another search of scikit-learn
            Fitted, over ``sparsity`` or, of a pipeline, ``dicedetector__sparsity``.
        metric : str, default=None
            Of a search with several metrics, the name of one; None takes that of ``refit``.
        score_name : str, default=None
            Label of the axis; None takes the name of the metric.
        negate_score : bool, default=False
            Whether to change the sign, as of `skdice.metrics.neg_fpr95_scorer`.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        SparsityCurveDisplay

        Raises
        ------
        TypeError
            The estimator searched nothing.
        ValueError
            The sparsity was not searched, or there is no such metric.
        sklearn.exceptions.NotFittedError
            The search is not fitted.
        """
        check_is_fitted(search)
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"{search!r} has no cv_results_: expected a fitted DICEDetectorCV, or a search "
                "such as GridSearchCV"
            )
        several = getattr(search, "multimetric_", False)
        if metric is None and several and isinstance(search.refit, str):
            metric = search.refit
        results = search.cv_results_
        sparsities, scores, deviations = curves_of(results, metric)
        if score_name is None:
            score_name = metric_name(metric or search.scoring, negate_score)
        # The choice went by another metric where another is asked for.
        chosen = None
        if hasattr(search, "best_index_") and (not several or metric == search.refit):
            chosen = candidate_of(results["params"][search.best_index_])
        sign = -1 if negate_score else 1
        display = cls(
            sparsities=sparsities,
            scores={name: sign * each for name, each in scores.items()},
            bands={
                name: sign * each + np.stack([-deviations[name], deviations[name]])
                for name, each in scores.items()
            },
            score_name=score_name,
            band_name=f"mean ± standard deviation over {search.n_splits_} folds",
            chosen=chosen,
        )
        return display.plot(ax)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_scores: Any,
        sparsities: ArrayLike,
        *,
        metric: str = "auroc",
        level: float = 0.95,
        n_resamples: int = 1000,
        random_state: Any = 0,
        ax: Any = None,
    ) -> Self:
        """Draw a metric of the scores at each sparsity, with bootstrap confidence intervals.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 in-distribution, -1 out-of-distribution.
        y_scores : array-like of shape (n_sparsities, n_samples), or mapping of str to these
            What `skdice.sparsity_path` returns for the rows, or that of several shapings by
            name.
        sparsities : array-like of shape (n_sparsities,)
            Of each row of the scores.
        metric : {"auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "fpr_at_tpr_authors", \
                "detection_error"}, default="auroc"
            The function of `skdice.metrics` of that name.
        level : float in (0, 1), default=0.95
            Coverage of the intervals.
        n_resamples : int, default=1000
            Resamples of the bootstrap.
        random_state : int, RandomState or None, default=0
            Seed of the bootstrap.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        SparsityCurveDisplay

        Raises
        ------
        ValueError
            Shapes do not match, a class has no rows, a score is not finite, or a parameter is
            out of its range.
        """
        if metric not in METRIC_NAMES or not hasattr(metrics, metric):
            known = ", ".join(name for name in METRIC_NAMES if hasattr(metrics, name))
            raise ValueError(f"metric is {metric!r}, expected one of {known}")
        function = getattr(metrics, metric)
        order, values = checked_curves(sparsities, y_scores, "y_scores", one_row_each=True)
        options = {"level": level, "n_resamples": n_resamples, "random_state": random_state}
        scores, bands = {}, {}
        for name, each in values.items():
            rows = each[order]
            scores[name] = np.array([function(y_true, row) for row in rows])
            intervals = [bootstrap_interval(y_true, row, metric, **options) for row in rows]
            bands[name] = np.transpose(intervals)
        display = cls(
            sparsities=np.asarray(sparsities, np.float64)[order],
            scores=scores,
            bands=bands,
            score_name=METRIC_NAMES[metric],
            band_name=f"{100 * level:g} % bootstrap intervals",
        )
        return display.plot(ax)

    @classmethod
    def from_scores(
        cls, sparsities: ArrayLike, scores: Any, *, score_name: str = "score", ax: Any = None
    ) -> Self:
        """Draw a metric that is known, with its standard deviation over repeats.

        Parameters
        ----------
        sparsities : array-like of shape (n_sparsities,)
            Fractions of the weights pruned, in any order.
        scores : array-like of shape (n_sparsities,) or (n_sparsities, n_repeats), or mapping \
                of str to these
            The metric at each sparsity, of several curves by name. Of repeats, such as seeds or
            networks, the mean is drawn, and a band of one standard deviation to either side.
        score_name : str, default="score"
            Name of the metric.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        SparsityCurveDisplay

        Raises
        ------
        ValueError
            Shapes do not match, a sparsity is out of its range, or a score is not finite.
        """
        order, values = checked_curves(sparsities, scores, "scores")
        means, bands, n_repeats = {}, {}, set()
        for name, each in values.items():
            repeats = each[order].reshape(len(order), -1)
            means[name] = repeats.mean(axis=1)
            if repeats.shape[1] > 1:
                deviation = repeats.std(axis=1)
                bands[name] = np.stack([means[name] - deviation, means[name] + deviation])
                n_repeats.add(repeats.shape[1])
        over = " or ".join(map(str, sorted(n_repeats)))
        display = cls(
            sparsities=np.asarray(sparsities, np.float64)[order],
            scores=means,
            bands=bands,
            score_name=score_name,
            band_name=f"mean ± standard deviation over {over} repeats" if over else None,
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
        SparsityCurveDisplay
            Itself.
        """
        self.ax_, self.figure_ = obtain_axes(ax)
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.chosen_mark_ = None
        sparsities, bands = np.asarray(self.sparsities), self.bands or {}
        for n, ((name, scores), style) in enumerate(
            zip(self.scores.items(), line_styles(), strict=False)
        ):
            # A line goes on over what was not measured.
            there = np.isfinite(scores)
            (self.lines_[name],) = self.ax_.plot(
                sparsities[there],
                np.asarray(scores)[there],
                marker=MARKERS[n % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                label=plain(name),
                **style,
            )
            if name in bands:
                low, high = np.asarray(bands[name])[:, there]
                self.bands_[name] = self.ax_.fill_between(
                    sparsities[there], low, high, color=style["color"], alpha=0.2, linewidth=0
                )
        if self.chosen is not None:
            name, sparsity = self.chosen
            place = int(np.flatnonzero(sparsities == sparsity)[0])
            (self.chosen_mark_,) = self.ax_.plot(
                sparsity,
                self.scores[name][place],
                "o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor="black",
                label=f"chosen: {sparsity:g}",
            )
        self.ax_.set(xlabel="sparsity (0 prunes nothing)", ylabel=self.score_name)
        self.ax_.grid(alpha=0.3)
        open_frame(self.ax_)
        self.ax_.legend(
            fontsize=LEGEND_SIZE,
            title=self.band_name,
            title_fontsize=LEGEND_SIZE,
            alignment="left",
            edgecolor="none",
        )
        return self
