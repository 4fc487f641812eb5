"""Activation shaping: transformers applied to penultimate features when scoring.

Each is a scikit-learn transformer of (n_samples, n_features) to the same shape, usable
alone in a Pipeline or as the `shaping` of a `skdice.DICEDetector`. float32 stays
float32, half precision becomes float32, everything else float64. Quantiles are
fractions in [0, 1].
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from skdice._compat.sklearn import Interval, validate_parameters
from skdice._passes.quantiles import quantiles
from skdice._rows.dask import DaskRows
from skdice._rows.sources import Rows, check_rows, iterate_blocks, named, scoring_dtype

__all__ = ["ASH", "VRA", "ReAct", "Scale"]

FloatArray = NDArray[np.floating[Any]]


class Shaping(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What the shaping transformers share: validation, and shaping block by block."""

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn what the shaping needs from in-distribution features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            In-distribution features.
        y : Ignored
            Present for scikit-learn's interface.

        Returns
        -------
        self
        """
        return self.fit_rows(X)

    def fit_rows(self, X: Any, *, verbose: int | bool = 0) -> Self:
        """Learn as in `fit`, with a progress bar per pass where `verbose` is above 0."""
        validate_parameters(self)
        self._fit(self._validate(X, reset=True), verbose)
        return self

    def transform(self, X: ArrayLike) -> FloatArray:
        """Shape features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32 or float64
        """
        check_is_fitted(self)
        if not hasattr(self, "n_features_in_"):  # used without a fit, which would have looked
            validate_parameters(self)
        rows = self._validate(X, reset=False)
        if isinstance(rows, DaskRows):
            raise TypeError(
                "transform takes rows in memory; those of a Dask collection are shaped by "
                f"DICEDetector(shaping={self!r}), or by X.map_blocks(shaping.transform)"
            )
        out = np.empty(rows.shape, scoring_dtype(rows.dtype))
        for where, block in iterate_blocks(rows):
            out[where] = self.shape_block(block)
            bad = np.argwhere(~np.isfinite(out[where]))
            if len(bad):
                raise ValueError(
                    f"{self!r} makes row {where.start + bad[0][0]} {out[where][tuple(bad[0])]}: "
                    f"too large for {out.dtype}, or its entries sum to zero"
                )
        return out

    def shape_block(self, block: FloatArray) -> FloatArray:
        """Shape validated features, float32 or float64, (n, n_features).

        An overflow, possible in ASH and Scale, gives infinity or NaN.
        """
        raise NotImplementedError

    def _validate(self, X: Any, *, reset: bool) -> Rows:
        rows = check_rows(X)
        validate_data(self, named(X, rows), reset=reset, skip_check_array=True)
        return rows

    def _fit(self, X: Rows, verbose: int | bool) -> None:
        if isinstance(X, DaskRows):
            return  # a pass over a cluster for nothing: bad rows are refused where they are used
        # Nothing to learn, but bad rows are refused here as everywhere.
        for _ in iterate_blocks(X, description="shaping", verbose=verbose):
            pass

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class ReAct(Shaping):
    """Clip activations from above: ``min(h, c)``.

    Parameters
    ----------
    quantile : float in [0, 1], default=0.9
        The clipping threshold is this quantile of all entries of the fitted features.
        Not used where `threshold` is given.
    threshold : float, default=None
        A fixed clipping threshold, such as the 1.0 of DICE + ReAct on ImageNet;
        infinity changes nothing. With it, the transformer needs no fit.

    Attributes
    ----------
    threshold_ : float
        The clipping threshold c.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them.

    References
    ----------
    Sun, Guo & Li, "ReAct: Out-of-distribution Detection With Rectified Activations",
    NeurIPS 2021, arXiv:2111.12797.

    Examples
    --------
    >>> from skdice.shaping import ReAct
    >>> ReAct(threshold=1.0).fit_transform([[0.5, 3.0]])
    array([[0.5, 1. ]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "quantile": [Interval(Real, 0, 1, closed="both")],
        "threshold": [Interval(Real, None, None, closed="both"), None],
    }

    def __init__(self, quantile: float = 0.9, *, threshold: float | None = None) -> None:
        self.quantile = quantile
        self.threshold = threshold

    def _fit(self, X: Rows, verbose: int | bool) -> None:
        if self.threshold is None:
            (self.threshold_,) = quantiles(X, [self.quantile], verbose=verbose)
        else:
            super()._fit(X, verbose)
            self.threshold_ = float(self.threshold)

    def shape_block(self, block: FloatArray) -> FloatArray:
        """Clip a block from above."""
        threshold = getattr(self, "threshold_", self.threshold)
        return np.minimum(block, block.dtype.type(threshold))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.threshold is None
        return tags


class VRA(Shaping):
    """Suppress low and clip high activations (VRA-P).

    0 where ``h < alpha``, h between, beta where ``h > beta``.

    Parameters
    ----------
    lower_quantile : float in [0, 1], default=0.6
        alpha is this quantile of all entries of the fitted features. Not used where
        `alpha` is given.
    upper_quantile : float in [0, 1], default=0.95
        Likewise for beta.
    alpha, beta : float, default=None
        Fixed values. With both, the transformer needs no fit.

    Attributes
    ----------
    alpha_, beta_ : float
        The values in use.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them.

    References
    ----------
    Xu, Lian, Liu & Tao, "VRA: Variational Rectified Activation for Out-of-distribution
    Detection", NeurIPS 2023, arXiv:2302.11716.

    Examples
    --------
    >>> from skdice.shaping import VRA
    >>> VRA(alpha=0.5, beta=1.0).fit_transform([[0.2, 0.7, 3.0]])
    array([[0. , 0.7, 1. ]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "lower_quantile": [Interval(Real, 0, 1, closed="both")],
        "upper_quantile": [Interval(Real, 0, 1, closed="both")],
        "alpha": [Interval(Real, None, None, closed="both"), None],
        "beta": [Interval(Real, None, None, closed="both"), None],
    }

    def __init__(
        self,
        lower_quantile: float = 0.6,
        upper_quantile: float = 0.95,
        *,
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        self.lower_quantile = lower_quantile
        self.upper_quantile = upper_quantile
        self.alpha = alpha
        self.beta = beta

    def _fit(self, X: Rows, verbose: int | bool) -> None:
        fixed = (self.alpha, self.beta)
        wanted = (self.lower_quantile, self.upper_quantile)
        sought = [q for q, value in zip(wanted, fixed, strict=True) if value is None]
        if sought:
            learned = iter(quantiles(X, sought, verbose=verbose))
        else:
            super()._fit(X, verbose)
            learned = iter(())
        alpha, beta = (next(learned) if value is None else float(value) for value in fixed)
        self._check_order(alpha, beta)
        self.alpha_, self.beta_ = alpha, beta

    def shape_block(self, block: FloatArray) -> FloatArray:
        """Suppress and clip a block."""
        alpha: Any = getattr(self, "alpha_", self.alpha)
        beta: Any = getattr(self, "beta_", self.beta)
        self._check_order(alpha, beta)
        number = block.dtype.type
        return np.where(block < number(alpha), number(0), np.minimum(block, number(beta)))

    @staticmethod
    def _check_order(alpha: float, beta: float) -> None:
        if alpha > beta:
            raise ValueError(f"alpha is {alpha:g} and beta is {beta:g}; expected alpha <= beta")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.alpha is None or self.beta is None
        return tags


class _RowShaping(Shaping):
    """Shaping of each row by its own sums before and after pruning its smallest entries."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "quantile": [Interval(Real, 0, 1, closed="left")],
    }

    quantile: float

    def n_pruned(self, n_features: int) -> int:
        """Return how many of a row's `n_features` entries are left out; at least one stays."""
        return min(int(np.round(n_features * self.quantile)), n_features - 1)

    def _kept(self, block: FloatArray) -> FloatArray:
        """Return the block with zeros but for each row's largest entries.

        As many are kept as the quantile leaves; of those that tie for the last places, the
        ones in the first columns, so that nothing depends on how an engine sorts.
        """
        n_pruned = self.n_pruned(block.shape[1])
        n_kept = block.shape[1] - n_pruned
        least = np.partition(block, n_pruned, axis=1)[:, n_pruned, None]
        is_kept = block >= least
        tied = np.flatnonzero(is_kept.sum(axis=1) > n_kept)
        if len(tied):
            rows, last = block[tied], least[tied]
            above, equal = rows > last, rows == last
            places = n_kept - above.sum(axis=1, keepdims=True)
            is_kept[tied] = above | (equal & (equal.cumsum(axis=1) <= places))
        return np.where(is_kept, block, block.dtype.type(0))

    @staticmethod
    def _factor(before: FloatArray, after: FloatArray) -> FloatArray:
        """Return ``exp(before / after)`` (n_samples, 1); e for a row whose sums are both 0.

        Infinity where that overflows, and NaN where the sum after pruning is 0 alone.
        """
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            ratio = np.where((before == 0) & (after == 0), before.dtype.type(1), before / after)
            factor: FloatArray = np.exp(ratio)
            # Possible with negative entries alone, and without a meaning.
            factor[~np.isfinite(ratio)] = np.nan
        return factor[:, None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


class ASH(_RowShaping):
    """Keep a row's largest activations, zero the rest, and scale what is kept (ASH-S).

    The kept activations are multiplied by ``exp(s1 / s2)``, where s1 is the sum of the
    row before and s2 after pruning. Each row is shaped by itself: no fit is needed.

    Parameters
    ----------
    quantile : float in [0, 1), default=0.9
        Fraction of each row's activations set to zero; at least one is kept.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them.

    References
    ----------
    Djurisic, Bozanic, Ashok & Liu, "Extremely Simple Activation Shaping for
    Out-of-Distribution Detection", ICLR 2023, arXiv:2209.09858.

    Examples
    --------
    >>> from skdice.shaping import ASH
    >>> ASH(quantile=0.5).fit_transform([[1.0, 3.0]]).round(3)
    array([[ 0.   , 11.381]])
    """

    def __init__(self, quantile: float = 0.9) -> None:
        self.quantile = quantile

    def shape_block(self, block: FloatArray) -> FloatArray:
        """Prune and scale the rows of a block."""
        kept = self._kept(block)
        factor = self._factor(block.sum(axis=1), kept.sum(axis=1))
        # Zeros stay zeros where the factor overflows.
        return np.multiply(kept, factor, out=kept, where=(kept != 0) | np.isnan(factor))


class Scale(_RowShaping):
    """Multiply each row by ``exp(s1 / s2)``, and set nothing to zero (SCALE).

    s1 is the sum of the row, s2 the sum of its largest activations. Each row is shaped
    by itself: no fit is needed.

    Parameters
    ----------
    quantile : float in [0, 1), default=0.85
        Fraction of each row's activations left out of s2; at least one is in it.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them.

    References
    ----------
    Xu, Chen, Franchi & Yao, "Scaling for Training Time and Post-hoc Out-of-distribution
    Detection Enhancement", ICLR 2024, arXiv:2310.00227.

    Examples
    --------
    >>> from skdice.shaping import Scale
    >>> Scale(quantile=0.5).fit_transform([[1.0, 3.0]]).round(3)
    array([[ 3.794, 11.381]])
    """

    def __init__(self, quantile: float = 0.85) -> None:
        self.quantile = quantile

    def shape_block(self, block: FloatArray) -> FloatArray:
        """Scale the rows of a block."""
        return block * self._factor(block.sum(axis=1), self._kept(block).sum(axis=1))
