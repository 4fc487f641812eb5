"""A metric against the sparsity, with error bands."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdice._search import check_sparsities
from skdice.metrics import confidence_interval
from skdice.metrics._counts import metric_on_counts
from skdice.metrics._rates import count_scores
from skdice.plotting._curves import (
    LONE_CURVE,
    candidate_of,
    fold_scores,
    metric_name,
)
from skdice.plotting._style import DisplayMixin, draw_legend, line_styles, plain

MARKERS = "osD^vP"


class SparsityCurveDisplay(DisplayMixin):
    """A metric against the sparsity, with error bands, one curve per shaping or method.

    Use `from_estimator` with a fitted `skdice.DICEDetectorCV` or search, or `from_predictions`
    with the scores of `skdice.sparsity_path`. A metric that is known already, such as that of
    several networks or seeds, is given to the constructor. All parameters are stored as
    attributes, in ascending order of the sparsities.

    Parameters
    ----------
    sparsities : array-like of shape (n_sparsities,)
        The sparsities, in any order.
    scores : array-like of shape (n_sparsities,) or (n_sparsities, n_repeats), or mapping of \
            str to these
        The metric along the curve, or along several curves by name; NaN where it was not
        measured. The mean of repeats is drawn, and a band of one standard deviation to either
        side.
    bands : mapping of str to array-like of shape (2, n_sparsities), default=None
        Lower and upper end of the error bands, by the name of the curve, instead of those of
        repeats.
    score_name : str, default="score"
        The name of the metric.
    band_name : str, default=None
        The name of the bands in the legend; None describes the repeats.
    chosen : tuple (str, float), default=None
        The curve and the sparsity that were chosen, which are marked.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        The curves.
    bands_ : dict of str to matplotlib PolyCollection
        The error bands.
    chosen_mark_ : matplotlib Line2D or None
        The mark of the chosen sparsity.
    ax_ : matplotlib Axes
        The axes of the curves.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skdice.DICEDetectorCV : A detector that chooses its sparsity.
    skdice.sparsity_path : The scores at each sparsity.

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
    >>> display.scores["DICE"].mean(axis=1).round(3)
    array([0.988, 0.99 , 0.95 ])
    """

    def __init__(
        self,
        *,
        sparsities: ArrayLike,
        scores: Any,
        bands: Mapping[str, ArrayLike] | None = None,
        score_name: str = "score",
        band_name: str | None = None,
        chosen: tuple[str, float] | None = None,
    ) -> None:
        values = np.asarray(check_sparsities(sparsities), np.float64)
        order = np.argsort(values, kind="stable")
        curves = _named_curves(scores, "scores")
        self.scores = {
            name: _checked_scores(name, curve, len(order))[order] for name, curve in curves.items()
        }
        self.sparsities = values[order]
        self.bands = {name: np.asarray(band)[:, order] for name, band in (bands or {}).items()}
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

        The bands are one standard deviation over the folds to either side of the mean. If
        other parameters such as the shaping were searched too, each of their values has its
        own curve.

        Parameters
        ----------
        search : DICEDetectorCV, GridSearchCV or another search of scikit-learn
            A fitted search over ``sparsity`` or, with a pipeline, ``dicedetector__sparsity``.
        metric : str, default=None
            The name of one metric of a search with several; None takes that of ``refit``.
        score_name : str, default=None
            The label of the axis; None takes the name of the metric.
        negate_score : bool, default=False
            Whether to change the sign, as is useful for `skdice.metrics.neg_fpr95_scorer`.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.

        Returns
        -------
        SparsityCurveDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            The estimator has no ``cv_results_``.
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
        sparsities, scores = fold_scores(results, metric, search.n_splits_)
        # If the picture is of another metric than that of the choice, there is no mark.
        chosen = None
        if hasattr(search, "best_index_") and (not several or metric == search.refit):
            chosen = candidate_of(results["params"][search.best_index_])
        display = cls(
            sparsities=sparsities,
            scores={name: -curve if negate_score else curve for name, curve in scores.items()},
            score_name=score_name or metric_name(metric or search.scoring, negated=negate_score),
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
        tpr: float = 0.95,
        rule: str = "paper",
        level: float | None = 0.95,
        n_resamples: int = 1000,
        random_state: Any = 0,
        ax: Any = None,
    ) -> Self:
        """Draw a metric of the scores at each sparsity, with confidence intervals.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            The labels: +1 for in-distribution rows, -1 for out-of-distribution rows.
        y_scores : array-like of shape (n_sparsities, n_samples), or mapping of str to these
            The scores that `skdice.sparsity_path` returns for the rows, or those of several
            shapings by name.
        sparsities : array-like of shape (n_sparsities,)
            The sparsity of each row of `y_scores`.
        metric : {"auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "detection_error"}, \
                default="auroc"
            The function of `skdice.metrics` of that name.
        tpr : float in (0, 1], default=0.95
            The true-positive rate of "fpr_at_tpr".
        rule : {"paper", "roc_curve"}, default="paper"
            The rule of "fpr_at_tpr".
        level : float in (0, 1), default=0.95
            The level of the intervals (see `skdice.metrics.confidence_interval`); None draws no
            intervals, as is needed for "aupr_in" and "aupr_out".
        n_resamples : int, default=1000
            The number of resamples for the intervals that need them.
        random_state : int, RandomState or None, default=0
            The seed of the resamples.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.

        Returns
        -------
        SparsityCurveDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            Shapes do not match, a class has too few rows, a score is not finite, or a parameter
            is out of its range.
        """
        compute = metric_on_counts(metric, tpr=tpr, rule=rule)
        n_sparsities = len(check_sparsities(sparsities))
        scores, bands = {}, {}
        for name, curve in _named_curves(y_scores, "y_scores").items():
            rows = np.asarray(curve)
            if rows.ndim != 2 or len(rows) != n_sparsities:
                raise ValueError(
                    f"y_scores of {name} has shape {rows.shape}, expected ({n_sparsities}, "
                    f"n_samples), as there are {n_sparsities} sparsities"
                )
            scores[name] = [float(compute(*count_scores(y_true, row))) for row in rows]
            if level is not None:
                intervals = [
                    confidence_interval(
                        y_true,
                        row,
                        metric=metric,
                        level=level,
                        tpr=tpr,
                        rule=rule,
                        n_resamples=n_resamples,
                        random_state=random_state,
                    )
                    for row in rows
                ]
                bands[name] = np.transpose(intervals)
        display = cls(
            sparsities=sparsities,
            scores=scores,
            bands=bands,
            score_name=metric_name(metric, tpr=tpr, rule=rule),
            band_name=None if level is None else f"{100 * level:g} % confidence intervals",
        )
        return display.plot(ax)

    def _draw(self) -> None:
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.chosen_mark_ = None
        n_repeats = set()
        for n, ((name, scores), style) in enumerate(
            zip(self.scores.items(), line_styles(), strict=False)
        ):
            repeats = scores.reshape(len(scores), -1)
            mean, band = repeats.mean(axis=1), self.bands.get(name)
            if band is None and repeats.shape[1] > 1:
                deviation = repeats.std(axis=1)
                band = np.stack([mean - deviation, mean + deviation])
                n_repeats.add(repeats.shape[1])
            # The line goes on over sparsities that were not measured.
            measured = np.isfinite(mean)
            sparsities = self.sparsities[measured]
            (self.lines_[name],) = self.ax_.plot(
                sparsities,
                mean[measured],
                marker=MARKERS[n % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                label=plain(name),
                **style,
            )
            if band is not None:
                self.bands_[name] = self.ax_.fill_between(
                    sparsities, *band[:, measured], color=style["color"], alpha=0.2, linewidth=0
                )
        if self.chosen is not None:
            name, sparsity = self.chosen
            place = int(np.flatnonzero(self.sparsities == sparsity)[0])
            (self.chosen_mark_,) = self.ax_.plot(
                sparsity,
                np.mean(self.scores[name][place]),
                "o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor="black",
                label=f"chosen: {sparsity:g}",
            )
        self.ax_.set(xlabel="sparsity (0 prunes nothing)", ylabel=self.score_name)
        self.ax_.grid(alpha=0.3)
        numbers = " or ".join(map(str, sorted(n_repeats)))
        repeats_name = f"mean ± standard deviation over {numbers} repeats" if numbers else None
        draw_legend(self.ax_, self.band_name or repeats_name)


def _named_curves(curves: Any, parameter: str) -> dict[str, Any]:
    """Return curves by name; a curve without a name gets that of a lone curve."""
    named = dict(curves) if isinstance(curves, Mapping) else {LONE_CURVE: curves}
    if not named:
        raise ValueError(f"{parameter} is an empty mapping, expected at least one curve")
    return named


def _checked_scores(name: str, scores: ArrayLike, n_sparsities: int) -> NDArray[np.float64]:
    """Return the scores of a curve as numbers at each sparsity, NaN where not measured."""
    array = np.asarray(scores)
    if array.ndim not in (1, 2) or len(array) != n_sparsities or not array.size:
        raise ValueError(
            f"scores of {name} has shape {array.shape}, expected ({n_sparsities},) or "
            f"({n_sparsities}, n_repeats), as there are {n_sparsities} sparsities"
        )
    if array.dtype.kind not in "fiub" or np.isinf(array).any():
        raise ValueError(f"scores of {name} holds values that are not finite numbers")
    return array.astype(np.float64)
