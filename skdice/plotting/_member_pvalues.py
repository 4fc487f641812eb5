"""The p-values of the members of an ensemble for a few rows."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import to_numpy
from skdice._ensemble import ConformalEnsemble
from skdice.plotting._style import COLOURS, DisplayMixin, draw_legend, plain

Float64Array = NDArray[np.float64]

MARKERS = "osDvP"
# More rows would hide one another.
MAX_ROWS = len(MARKERS)
# The exponential tail of a member reaches p-values such as 1e-80. An axis down to there would move
# all moderate p-values to one place, so smaller p-values are drawn at the end of the axis.
SMALLEST_SHOWN = 1e-8
COMBINED = "combined"


class MemberPvaluesDisplay(DisplayMixin):
    """P-values of the members of an ensemble: which member objects to a row, and how much.

    The display answers why an input was refused. There is a line for each member, and one for the
    combined p-value if the ensemble is calibrated with ``method="conformal"``. The axis is
    logarithmic, so the length of a bar is the evidence that the member adds to Fisher's
    combination. P-values below 1e-8 are drawn as an arrow at the end of the axis.

    Use `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    member_pvalues : array-like of shape (n_rows, n_members)
        The p-value of each row by each member. There are at most 5 rows.
    member_names : sequence of str
        The names of the members.
    combined_pvalues : array-like of shape (n_rows,), default=None
        The p-value of each row by the whole ensemble; None leaves that line out.
    level : float in (0, 1), default=None
        The level at which a row is flagged; None draws no level.
    row_names : sequence of str, default=None
        The names of the rows in the legend; None numbers the rows from 0.

    Attributes
    ----------
    points_ : list of matplotlib Line2D
        The p-values of each row.
    bars_ : list of matplotlib LineCollection
        The bars from 1 to the p-values of each row.
    level_line_ : matplotlib Line2D or None
        The line at the level.
    ax_ : matplotlib Axes
        The axes of the p-values.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skdice.ConformalEnsemble.member_pvalues : The numbers of the display.
    UnitContributionDisplay : The contributions of the units to one class.

    Notes
    -----
    The level applies to the combined p-value, which comes from the calibration rows and has the
    guarantee. The p-values of the members come from the rows of `fit` and explain the verdict.

    Examples
    --------
    >>> from skdice import make_ensemble
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.plotting import MemberPvaluesDisplay
    >>> data = load_fashion_mnist_ood()
    >>> ensemble = make_ensemble(data.head).fit(data.id_train)
    >>> ensemble = ensemble.calibrate(data.id_test, method="conformal")
    >>> display = MemberPvaluesDisplay.from_estimator(ensemble, data.ood["mnist"][:1])
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['energy', 'dice', 'fdbd', 'vim', 'combined']
    """

    def __init__(
        self,
        *,
        member_pvalues: ArrayLike,
        member_names: Sequence[str],
        combined_pvalues: ArrayLike | None = None,
        level: float | None = None,
        row_names: Sequence[str] | None = None,
    ) -> None:
        self.member_pvalues = _checked_pvalues("member_pvalues", member_pvalues, 2)
        n_rows, n_members = self.member_pvalues.shape
        if not 1 <= n_rows <= MAX_ROWS:
            raise ValueError(f"there are {n_rows} rows, expected 1 to {MAX_ROWS}")
        self.member_names: list[str] = list(member_names)
        self.combined_pvalues: Float64Array | None = None
        if combined_pvalues is not None:
            self.combined_pvalues = _checked_pvalues("combined_pvalues", combined_pvalues, 1)
        if level is not None and not (isinstance(level, Real) and 0 < level < 1):
            raise ValueError(f"level is {level!r}, expected a number between 0 and 1, or None")
        self.level = level
        names = [f"row {n}" for n in range(n_rows)] if row_names is None else row_names
        self.row_names: list[str] = list(names)
        for name, values, n, part in (
            ("member_names", self.member_names, n_members, "column of member_pvalues"),
            ("combined_pvalues", self.combined_pvalues, n_rows, "row"),
            ("row_names", self.row_names, n_rows, "row"),
        ):
            if values is not None and len(values) != n:
                raise ValueError(
                    f"there are {len(values)} {name}, expected {n}, one for each {part}"
                )

    @classmethod
    def from_estimator(cls, ensemble: Any, X: Any, *, ax: Any = None) -> Self:
        """Draw the p-values of a few rows by the members of a fitted ensemble.

        Parameters
        ----------
        ensemble : ConformalEnsemble
            A fitted ensemble. If it is calibrated with ``method="conformal"``, the combined
            p-value is drawn too.
        X : array-like or source of rows, of shape (n_rows, n_features)
            Penultimate features of 1 to 5 inputs.
        ax : matplotlib Axes, default=None
            The axes to draw on; None makes a figure.

        Returns
        -------
        MemberPvaluesDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            The estimator is not a ConformalEnsemble.
        ValueError
            X has more than 5 rows, or a value is not finite.
        sklearn.exceptions.NotFittedError
            The ensemble is not fitted.
        """
        if not isinstance(ensemble, ConformalEnsemble):
            raise TypeError(
                f"ensemble is an instance of {type(ensemble).__name__}, expected a fitted "
                "ConformalEnsemble"
            )
        check_is_fitted(ensemble)
        combined = None
        if hasattr(ensemble, "calibration_scores_"):
            combined = to_numpy(ensemble.pvalues(X))
        display = cls(
            member_pvalues=to_numpy(ensemble.member_pvalues(X)),
            member_names=list(ensemble.named_estimators_),
            combined_pvalues=combined,
            level=ensemble.contamination_,
        )
        return display.plot(ax)

    def _draw(self) -> None:
        labels, pvalues = list(self.member_names), self.member_pvalues
        if self.combined_pvalues is not None:
            labels.append(COMBINED)
            pvalues = np.column_stack([pvalues, self.combined_pvalues])
        n_rows, n_lines = pvalues.shape
        shown = np.maximum(pvalues, SMALLEST_SHOWN)
        self.points_: list[Any] = []
        self.bars_: list[Any] = []
        for n, name in enumerate(self.row_names):
            colour = COLOURS[n % len(COLOURS)]
            # The rows lie below one another within the line of a member.
            heights = np.arange(n_lines) + (n - (n_rows - 1) / 2) * 0.7 / n_rows
            self.bars_.append(self.ax_.hlines(heights, shown[n], 1, color=colour, linewidth=2))
            (points,) = self.ax_.plot(
                shown[n], heights, MARKERS[n], color=colour, label=plain(name), clip_on=False
            )
            self.points_.append(points)
            beyond = pvalues[n] < SMALLEST_SHOWN
            # Matplotlib lays out an unclipped line without points at the corner of the figure.
            if beyond.any():
                arrows = shown[n, beyond], heights[beyond], "<"
                self.ax_.plot(*arrows, color=colour, markersize=11, clip_on=False)
            if n_rows == 1:
                for height, place, pvalue in zip(heights, shown[n], pvalues[n], strict=True):
                    self.ax_.annotate(
                        f"{pvalue:.2g}",
                        (place, height),
                        (0, 7),
                        textcoords="offset points",
                        ha="left",
                        fontsize="small",
                    )
        self.level_line_ = None
        if self.level is not None:
            self.level_line_ = self.ax_.axvline(
                self.level, color="black", linewidth=1, label=f"level {self.level:.4g}"
            )
        if self.combined_pvalues is not None:
            self.ax_.axhline(n_lines - 1.5, color="0.7", linewidth=0.8)
        lowest = min(shown.min(), 1 if self.level is None else self.level)
        self.ax_.set(
            xscale="log",
            xlim=(lowest / 1.5 if lowest > SMALLEST_SHOWN else lowest, 1),
            ylim=(n_lines - 0.4, -0.6),
            yticks=range(n_lines),
            yticklabels=[plain(label) for label in labels],
            xlabel="p-value (smaller = stronger objection)",
        )
        draw_legend(
            self.ax_, None, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, frameon=False
        )


def _checked_pvalues(name: str, pvalues: ArrayLike, ndim: int) -> Float64Array:
    """Return p-values as float64, after a check of their dimensions and range."""
    array = np.asarray(pvalues, np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} has {array.ndim} dimensions, expected {ndim}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} has values outside of 0 to 1, expected p-values")
    return array
