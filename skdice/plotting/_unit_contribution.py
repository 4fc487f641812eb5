"""What each unit contributes to one class, before and after pruning: the paper's figure 1."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import to_numpy
from skdice._dice import BaseDICE
from skdice._engines.activations import Activation, apply_shaping
from skdice._rows.sources import SlicedRows
from skdice.plotting._score_sets import ID_NAME, named_sets, naming
from skdice.plotting._style import LEGEND_SIZE, line_styles, obtain_axes, open_frame, plain
from skdice.shaping import describe

FloatArray = NDArray[np.floating[Any]]

# Of the two panels, in shares of the axes they lie in.
PANELS = ((0.0, 0.0, 0.475, 1.0), (0.525, 0.0, 0.475, 1.0))


class UnitContributionDisplay:
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
        Of the contributions of each unit before pruning, by the name of the set. The first set
        is in-distribution.
    kept : ndarray of shape (n_features,), bool
        True for the units whose weight to the class is not pruned.
    class_index : int
        Place of the class among the rows of the head, from 0.

    Attributes
    ----------
    order_ : ndarray of shape (n_features,), int
        The units in the order in which they are drawn.
    lines_ : list of two dicts of str to matplotlib Line2D
        The means by set, before and after pruning.
    bands_ : list of two dicts of str to matplotlib PolyCollection
        The standard deviations.
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
        class_index: int,
        *,
        id_name: str = ID_NAME,
        ax: Any = None,
    ) -> Self:
        """Measure the contributions to a class by a fitted detector and draw them.

        Rows are read in blocks; sources may be larger than memory. Where the detector shapes
        the features, so they are here, before and after pruning.

        Parameters
        ----------
        detector : DICEDetector or DICEDetectorCV
            Fitted.
        X_id : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs. As in the paper: of that class alone.
        ood : array-like, source of rows, or mapping of str to these
            Features of one out-of-distribution set, or of several by name.
        class_index : int
            Place of the class among the rows of the head, from 0.
        id_name : str, default="in-distribution"
            Name of the in-distribution rows in the legend.
        ax : matplotlib Axes, default=None
            Where to draw two panels side by side; None makes a figure.

        Returns
        -------
        UnitContributionDisplay

        Raises
        ------
        TypeError
            The detector has no head, as others than those of skdice, and pipelines.
        ValueError
            There is no such class, no set is given, widths do not match, or a value is not
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
            with naming(name), np.errstate(over="ignore", invalid="ignore"):
                rows = detector._open(X, "score_samples")
                moments = column_moments(
                    rows, describe(detector.shaping_, rows.shape[1]), detector.batch_size
                )
                factors = weight.astype(np.float64)
                mean[name], variance[name] = factors * moments[0], factors**2 * moments[1]
                if not np.isfinite([mean[name], variance[name]]).all():
                    raise ValueError("contributions, squared, exceed the range of float64")
        kept = mask[class_index]
        return cls(mean=mean, variance=variance, kept=kept, class_index=int(class_index)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the contributions.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw two panels side by side; None makes a figure.

        Returns
        -------
        UnitContributionDisplay
            Itself.
        """
        self.ax_, self.figure_ = obtain_axes(ax, figsize=(9, 4))
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
            self._draw(panel, factor[self.order_])
            panel.set(xlabel="unit, by its in-distribution mean", xlim=(0, max(1, n_units - 1)))
            open_frame(panel)
        before.set(title="before pruning", ylabel=f"contribution to class {self.class_index}")
        after.set(title=f"after: {kept.sum()} of {n_units} units kept")
        # The means rise from left to right: there is room above the first.
        before.legend(
            loc="upper left",
            fontsize=LEGEND_SIZE,
            edgecolor="none",
            title_fontsize=LEGEND_SIZE,
            title="mean ± standard deviation",
            alignment="left",
        )
        return self

    def _draw(self, panel: Any, factor: FloatArray) -> None:
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
        # The in-distribution line is the smooth one; many others' jags would hide it.
        lines[next(iter(lines))].set_zorder(2.5)
        self.lines_.append(lines)
        self.bands_.append(bands)


def column_moments(
    rows: SlicedRows, shaping: Activation | None, batch_size: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and variance of the columns after a fitted shaping, in float64.

    Of each block by two passes over it, joined as in Chan, Golub & LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances", 1979: nothing cancels.
    """
    n_rows, mean, squares = 0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for _, block in rows.iterate_blocks(batch_size=batch_size):
        values = np.asarray(apply_shaping(shaping, block), np.float64)
        n_rows += len(values)
        block_mean = values.mean(axis=0)
        step = block_mean - mean
        mean += step * (len(values) / n_rows)
        squares += np.square(values - block_mean).sum(axis=0)
        squares += step**2 * (len(values) * (n_rows - len(values)) / n_rows)
    return mean, squares / n_rows
