"""Curves of classifiers that may refuse a row, and the point at which their threshold works."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score
from sklearn.utils import check_array, column_or_1d

from skdice.metrics import aurc, open_set_report, oscr_auc, oscr_curve, risk_coverage_curve
from skdice.plotting._style import (
    draw_legend,
    hide_open_spines,
    line_styles,
    obtain_axes,
    plain,
)

Float64Array = NDArray[np.float64]


class CurveWithPoint:
    """A curve, the area below it, and the point of a threshold on it: what both displays share.

    Parameters
    ----------
    x, y : array-like of shape (n_points,)
        The curve, as fractions.
    area : float or None
        The area below the curve.
    operating_point : tuple of 2 floats or None
        The place of the threshold.
    name : str or None
        The name of the curve.
    """

    _names: tuple[str, str]
    _area_name: str
    _axis_labels: tuple[str, str]
    _legend_place: str

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        area: float | None,
        operating_point: tuple[float, float] | None,
        name: str | None,
    ) -> None:
        self._x, self._y = map(_checked_curve, self._names, (x, y))
        if len(self._x) != len(self._y):
            first, second = self._names
            raise ValueError(
                f"{first} has {len(self._x)} values and {second} has {len(self._y)}, expected as "
                "many of both"
            )
        self._area = area
        self.operating_point = operating_point
        self.name = name

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw the curve, and the mark of the threshold.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            The axes to draw on, which may have other curves; None makes a figure.
        name : str, default=None
            The name of the curve in the legend; None takes the name of the display.
        **kwargs : dict
            Options of the curve for ``Axes.plot``.

        Returns
        -------
        display
            The display itself.
        """
        self.ax_, self.figure_ = obtain_axes(ax)
        n_curves = len(self.ax_.get_legend_handles_labels()[0])
        *_, style = (style for style, _ in zip(line_styles(), range(n_curves + 1), strict=False))
        shown_name = self.name if name is None else name
        parts = [] if shown_name is None else [plain(shown_name)]
        if self._area is not None:
            parts.append(f"({self._area_name} {self._area:.3f})")
        options = {"linewidth": 1.8, "label": " ".join(parts) or None, **style, **kwargs}
        (self.line_,) = self.ax_.plot(self._x, self._y, **options)
        self.operating_point_ = None
        if self.operating_point is not None:
            (self.operating_point_,) = self.ax_.plot(
                *self.operating_point,
                "o",
                color=self.line_.get_color(),
                markeredgecolor="white",
                markersize=8,
                zorder=3,
            )
        x_label, y_label = self._axis_labels
        self.ax_.set(xlabel=x_label, ylabel=y_label, xlim=(-0.01, 1.01))
        hide_open_spines(self.ax_)
        if self.ax_.get_legend_handles_labels()[0]:
            title = None if self.operating_point is None else "the mark is the threshold"
            draw_legend(self.ax_, title, loc=self._legend_place)
        return self


class OpenSetDisplay(CurveWithPoint):
    """Open-set classification rate curve: right known rows against accepted unknown rows.

    Use `from_estimator` or `from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    fpr, ccr : array-like of shape (n_thresholds,)
        False positive rates and correct classification rates (see `skdice.metrics.oscr_curve`).
    oscr_auc : float, default=None
        The area under the curve, which the legend shows.
    operating_point : tuple (fpr, ccr), default=None
        The rates at the threshold of the classifier, which is marked.
    name : str, default=None
        The name of the curve in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    operating_point_ : matplotlib Line2D or None
        The mark of the threshold.
    ax_ : matplotlib Axes
        The axes of the curve.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    RiskCoverageDisplay : The errors among the rows that are accepted.
    skdice.metrics.oscr_curve : The numbers of the curve.

    Notes
    -----
    With ``by="prediction"`` there is a threshold for each predicted class, so the mark may lie
    beside the curve.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import train_test_split
    >>> from skdice import OpenSetClassifier
    >>> from skdice.plotting import OpenSetDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> y[y >= 8] = -1
    >>> X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    >>> model = OpenSetClassifier(LogisticRegression(), random_state=0).fit(X_train, y_train)
    >>> display = OpenSetDisplay.from_estimator(model, X_test, y_test)
    >>> bool(display.oscr_auc > 0.8)
    True
    """

    _names = ("fpr", "ccr")
    _area_name = "OSCR area"
    _axis_labels = (
        "false-positive rate (unknown rows accepted)",
        "correct classification rate\n(known rows accepted with their class)",
    )
    _legend_place = "lower right"

    def __init__(
        self,
        *,
        fpr: ArrayLike,
        ccr: ArrayLike,
        oscr_auc: float | None = None,
        operating_point: tuple[float, float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(fpr, ccr, oscr_auc, operating_point, name)
        self.fpr, self.ccr, self.oscr_auc = self._x, self._y, oscr_auc

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of a fitted `skdice.OpenSetClassifier`, and mark its threshold.

        Parameters
        ----------
        estimator : OpenSetClassifier
            The fitted classifier.
        X : array-like of shape (n_samples, n_features), or list of str
            Rows that neither the classifier nor the detector has seen.
        y : array-like of shape (n_samples,)
            Their classes; unknown rows have the `unknown_label` of the classifier.
        name : str, default=None
            The name of the curve in the legend.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **kwargs : dict
            Options of the curve for ``Axes.plot``.

        Returns
        -------
        OpenSetDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            There are no known or no unknown rows.
        """
        label = estimator.unknown_label
        predicted, scores = estimator.predict_known(X), estimator.score_samples(X)
        fpr, ccr, _ = oscr_curve(y, predicted, scores, unknown_label=label)
        report = open_set_report(y, estimator.predict(X), unknown_label=label)
        # The unknown rows are the last line of the report.
        n_known = report.n_rows[:-1].sum()
        point = (float(1 - report.flagged[-1]), float(report.right[:-1].sum() / n_known))
        area = oscr_auc(y, predicted, scores, unknown_label=label)
        display = cls(fpr=fpr, ccr=ccr, oscr_auc=area, operating_point=point, name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        y_score: ArrayLike,
        *,
        unknown_label: float | str = -1,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of predictions.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            The classes; unknown rows have the label `unknown_label`.
        y_pred : array-like of shape (n_samples,)
            The class that the classifier gives to each row if it must give one.
        y_score : array-like of shape (n_samples,)
            The scores; a higher score means more like the known classes.
        unknown_label : int, float or str, default=-1
            The label of the unknown rows.
        name : str, default=None
            The name of the curve in the legend.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **kwargs : dict
            Options of the curve for ``Axes.plot``.

        Returns
        -------
        OpenSetDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            As `skdice.metrics.oscr_curve` raises.
        """
        fpr, ccr, _ = oscr_curve(y_true, y_pred, y_score, unknown_label=unknown_label)
        area = oscr_auc(y_true, y_pred, y_score, unknown_label=unknown_label)
        return cls(fpr=fpr, ccr=ccr, oscr_auc=area, name=name).plot(ax, **kwargs)


class RiskCoverageDisplay(CurveWithPoint):
    """Risk-coverage curve: the share of errors among the accepted rows, by how many there are.

    Use `from_estimator` or `from_predictions`. All parameters are stored as attributes.

    Parameters
    ----------
    coverage, risk : array-like of shape (n_thresholds,)
        Shares of the rows that are accepted, and the shares of wrong rows among them (see
        `skdice.metrics.risk_coverage_curve`).
    aurc : float, default=None
        The area under the curve, which the legend shows.
    operating_point : tuple (coverage, risk), default=None
        The values at the threshold of the classifier, which is marked.
    name : str, default=None
        The name of the curve in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    operating_point_ : matplotlib Line2D or None
        The mark of the threshold.
    ax_ : matplotlib Axes
        The axes of the curve.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    OpenSetDisplay : Known and unknown rows apart.
    skdice.metrics.risk_coverage_curve : The numbers of the curve.

    Notes
    -----
    With ``by="prediction"`` there is a threshold for each predicted class, so the mark may lie
    beside the curve.

    Examples
    --------
    >>> from skdice.plotting import RiskCoverageDisplay
    >>> display = RiskCoverageDisplay.from_predictions([0, 1, 1, 0], [0, 1, 0, 1], [4, 3, 2, 1])
    >>> round(display.aurc, 3)
    0.208
    """

    _names = ("coverage", "risk")
    _area_name = "AURC"
    _axis_labels = ("coverage (rows accepted)", "selective risk (errors among the accepted)")
    _legend_place = "upper left"

    def __init__(
        self,
        *,
        coverage: ArrayLike,
        risk: ArrayLike,
        aurc: float | None = None,
        operating_point: tuple[float, float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(coverage, risk, aurc, operating_point, name)
        self.coverage, self.risk, self.aurc = self._x, self._y, aurc

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of a fitted `skdice.OpenSetClassifier`, and mark its threshold.

        Parameters
        ----------
        estimator : OpenSetClassifier
            The fitted classifier.
        X : array-like of shape (n_samples, n_features), or list of str
            Rows that neither the classifier nor the detector has seen.
        y : array-like of shape (n_samples,)
            Their classes. An unknown row, whose label is not a class, is an error if it is
            accepted.
        name : str, default=None
            The name of the curve in the legend.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **kwargs : dict
            Options of the curve for ``Axes.plot``.

        Returns
        -------
        RiskCoverageDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            There are no rows.
        """
        labels = column_or_1d(y)
        predicted, scores = estimator.predict_known(X), estimator.score_samples(X)
        coverage, risk, _ = risk_coverage_curve(labels, predicted, scores)
        accepted = ~estimator.is_unknown(X)
        point = None
        if accepted.any():
            wrong = 1 - accuracy_score(labels[accepted], predicted[accepted])
            point = (float(accepted.mean()), float(wrong))
        area = aurc(labels, predicted, scores)
        display = cls(coverage=coverage, risk=risk, aurc=area, operating_point=point, name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        y_score: ArrayLike,
        *,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of predictions.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            The classes. Unknown rows, if there are some, have any label that is not a class.
        y_pred : array-like of shape (n_samples,)
            The class that the classifier gives to each row if it must give one.
        y_score : array-like of shape (n_samples,)
            The scores; a higher score means that the classifier is more sure.
        name : str, default=None
            The name of the curve in the legend.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.
        **kwargs : dict
            Options of the curve for ``Axes.plot``.

        Returns
        -------
        RiskCoverageDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            As `skdice.metrics.risk_coverage_curve` raises.
        """
        coverage, risk, _ = risk_coverage_curve(y_true, y_pred, y_score)
        area = aurc(y_true, y_pred, y_score)
        return cls(coverage=coverage, risk=risk, aurc=area, name=name).plot(ax, **kwargs)


def _checked_curve(name: str, values: ArrayLike) -> Float64Array:
    curve: Float64Array = column_or_1d(
        check_array(values, ensure_2d=False, dtype=np.float64, input_name=name)
    )
    if curve.min() < 0 or curve.max() > 1:
        raise ValueError(f"{name} holds {curve.min():g} to {curve.max():g}, expected fractions")
    return curve
