"""The contribution of each unit to one class, before and after pruning (the paper's figure 1)."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import to_numpy
from skdice._dice import BaseDICE
from skdice._engines.activations import apply_shaping
from skdice._rows.door import require_slicing
from skdice._rows.sources import FloatArray
from skdice.metrics._report import ID_NAME, error_prefix
from skdice.plotting._score_sets import named_sets
from skdice.plotting._style import (
    DisplayMixin,
    draw_legend,
    hide_open_spines,
    line_styles,
    plain,
)

# The left, lower end, width and height of the two panels, as shares of the axes around them.
PANELS = ((0.0, 0.0, 0.475, 1.0), (0.525, 0.0, 0.475, 1.0))


class UnitContributionDisplay(DisplayMixin):
    """Mean and variance of each unit's contribution to one class, before and after pruning.

    The logit of a class is the sum over the units of weight times feature, and the bias. The
    lines are the means of these products over the rows of a set; the bands are one standard
    deviation, the root of the variance, to either side. Units are sorted by the in-distribution
    mean. Where OOD rows have wide bands at units whose in-distribution mean is small or negative,
    as on the authors' CIFAR-10 network, pruning those units makes the OOD logits vary less.

    Use `from_estimator`. All parameters are stored as attributes.

    Parameters
    ----------
    mean, variance : mapping of str to ndarray of shape (n_features,)
        Mean and variance of the contributions of each unit before pruning, by the name of the
        set. The first set is in-distribution.
    kept : ndarray of shape (n_features,), bool
        True for the units whose weight to the class is not pruned.
    class_index : int
        The place of the class among the rows of the head, counted from 0.

    Attributes
    ----------
    order_ : ndarray of shape (n_features,), int
        The units in the order in which they are drawn.
    lines_ : list of two dicts of str to matplotlib Line2D
        The means by set, before and after pruning.
    bands_ : list of two dicts of str to matplotlib PolyCollection
        The bands of one standard deviation.
    axes_ : ndarray of shape (2,), of matplotlib Axes
        The two panels, which lie in `ax_`.
    ax_ : matplotlib Axes
        The axes given or made, itself invisible.
    figure_ : matplotlib Figure
        The figure of the axes.

    References
    ----------
    Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection",
    ECCV 2022, arXiv:2111.09805, figure 1.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.plotting import UnitContributionDisplay
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.7).fit(data.id_train)
    >>> trousers = data.id_test[data.id_test_labels == 1]
    >>> display = UnitContributionDisplay.from_estimator(
    ...     detector, trousers, {"mnist": data.ood["mnist"]}, class_index=1
    ... )
    >>> [panel.get_title() for panel in display.axes_]
    ['before pruning', 'after: 34 of 128 units kept']
    """

    _figsize = (9, 4)

    def __init__(
        self,
        *,
        mean: Mapping[str, FloatArray],
        variance: Mapping[str, FloatArray],
        kept: NDArray[np.bool_],
        class_index: int,
    ) -> None:
        self.mean = mean
        self.variance = variance
        self.kept = kept
        self.class_index = class_index

    @classmethod
    def from_estimator(
        cls,
        detector: Any,
        X_id: Any,
        ood: Any,
        *,
        class_index: int,
        id_name: str = ID_NAME,
        ax: Any = None,
    ) -> Self:
        """Measure the contributions to a class by a fitted detector and draw them.

        Rows are read in blocks; sources may be larger than memory. If the detector shapes the
        features, the contributions are those of the shaped features.

        Parameters
        ----------
        detector : DICEDetector or DICEDetectorCV
            A fitted detector.
        X_id : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs; in the paper, only inputs of that class.
        ood : array-like, source of rows, or mapping of str to these
            Features of one out-of-distribution set, or of several by name.
        class_index : int
            The place of the class among the rows of the head, counted from 0.
        id_name : str, default="in-distribution"
            The name of the in-distribution rows in the legend.
        ax : matplotlib Axes, default=None
            The axes in which two panels are drawn side by side; None makes a figure.

        Returns
        -------
        UnitContributionDisplay
            The display, drawn.

        Raises
        ------
        TypeError
            The detector is a pipeline or not a DICE detector, and so has no head.
        ValueError
            The class does not exist, no set is given, widths do not match, or a value is not
            finite.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        """
        if not isinstance(detector, BaseDICE):
            raise TypeError(
                f"detector is an instance of {type(detector).__name__}, expected a fitted "
                "DICEDetector or DICEDetectorCV; of a pipeline, give the last step and the rows "
                "that enter it"
            )
        check_is_fitted(detector, "coef_")
        sets = {id_name: X_id, **named_sets(ood, id_name)}
        mask = to_numpy(detector.mask_)
        if not isinstance(class_index, Integral) or not 0 <= class_index < len(mask):
            raise ValueError(
                f"class_index is {class_index!r}, expected an int from 0 to {len(mask) - 1}"
            )
        weight = detector.head_.weight[class_index]
        mean, variance = {}, {}
        for name, X in sets.items():
            with error_prefix(name), np.errstate(over="ignore", invalid="ignore"):
                rows = require_slicing(detector._open(X, "score_samples"))
                moments = StandardScaler()
                for _, block in rows.iterate_blocks(batch_size=detector.batch_size):
                    shaped = apply_shaping(detector._layer.shaping, block)
                    moments.partial_fit(np.asarray(shaped, np.float64))
                factors = weight.astype(np.float64)
                mean[name], variance[name] = factors * moments.mean_, factors**2 * moments.var_
                if not np.isfinite([mean[name], variance[name]]).all():
                    raise ValueError("contributions, squared, exceed the range of float64")
        kept = mask[class_index]
        return cls(mean=mean, variance=variance, kept=kept, class_index=int(class_index)).plot(ax)

    def _draw(self) -> None:
        self.ax_.set_axis_off()
        self.axes_ = np.array([self.ax_.inset_axes(bounds) for bounds in PANELS])
        before, after = self.axes_
        after.sharey(before)
        after.tick_params(labelleft=False)
        n_units = len(self.kept)
        self.order_ = np.argsort(next(iter(self.mean.values())), kind="stable")
        kept = np.asarray(self.kept)
        self.lines_: list[dict[str, Any]] = []
        self.bands_: list[dict[str, Any]] = []
        for panel, factor in ((before, np.ones(n_units)), (after, kept.astype(np.float64))):
            self._draw_panel(panel, factor[self.order_])
            panel.set(xlabel="unit, by its in-distribution mean", xlim=(0, max(1, n_units - 1)))
            hide_open_spines(panel)
        before.set(title="before pruning", ylabel=f"contribution to class {self.class_index}")
        after.set(title=f"after: {kept.sum()} of {n_units} units kept")
        # The legend has room in the upper left corner, because the means rise from left to right.
        draw_legend(before, "mean ± standard deviation", loc="upper left")

    def _draw_panel(self, panel: Any, factor: FloatArray) -> None:
        lines, bands = {}, {}
        units = np.arange(len(factor))
        panel.axhline(0, color="0.6", linewidth=0.8)
        for (name, means), style in zip(self.mean.items(), line_styles(), strict=False):
            mean = np.asarray(means)[self.order_] * factor
            deviation = np.sqrt(np.asarray(self.variance[name])[self.order_]) * factor
            bands[name] = panel.fill_between(
                units,
                mean - deviation,
                mean + deviation,
                color=style["color"],
                alpha=0.25,
                linewidth=0,
            )
            (lines[name],) = panel.plot(units, mean, linewidth=1.6, label=plain(name), **style)
        # Draw the in-distribution line, which is smooth, above the jagged lines of the others.
        lines[next(iter(lines))].set_zorder(2.5)
        self.lines_.append(lines)
        self.bands_.append(bands)
