"""Activation shaping: transformers applied to penultimate features when scoring.

Each class is a scikit-learn transformer that keeps the shape (n_samples, n_features), for use alone
in a Pipeline or as the `shaping` of a `skdice.DICEDetector`. float32 features stay float32, half
precision becomes float32, and everything else becomes float64. Quantiles are fractions in [0, 1].
"""

from collections.abc import Iterator, Mapping
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from skdice._compat.arrays import (
    check_same_namespace,
    keeps_namespace,
    namespace_name,
    namespace_of,
)
from skdice._compat.sklearn import Interval, validate_parameters
from skdice._engines.activations import Activation, Clip, ScaleRows, Transform, apply_shaping
from skdice._passes.quantiles import quantiles
from skdice._rows.door import as_source, feature_names_source
from skdice._rows.sources import RowSource, SlicedRows, scoring_dtype

__all__ = ["ASH", "VRA", "ReAct", "Scale"]


class Shaping(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Base of the shaping transformers: validation, and shaping block by block.

    A derived class describes itself to the engines by `_activation`.
    """

    # Library and device of the rows of `fit`, which X must have as well; None stands for NumPy.
    _fit_namespace: str | None = None

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn the parameters of the shaping from in-distribution features.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            In-distribution features.
        y : Ignored
            Present for scikit-learn's interface.

        Returns
        -------
        self
        """
        rows = self._as_source(X, reset=True)
        self._fit_namespace = namespace_name(X) if keeps_namespace(X) else None
        levels = self._checked_levels()
        if not levels and isinstance(rows, SlicedRows):
            # There is nothing to learn, but the rows are read because bad rows must be refused.
            # Rows on a cluster are not read, because that is expensive.
            for _ in rows.iterate_blocks(description="shaping"):
                pass
        self._set_learned(rows.shape[1], quantiles(rows, levels) if levels else [])
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Shape features.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples, n_features), float32 or float64
            A tensor for a tensor, a lazy Dask array for a Dask array, and arrays of another
            library while scikit-learn's ``array_api_dispatch`` is on.

        Raises
        ------
        ValueError
            A value is not finite, before or after the shaping; the message names the row.
        """
        check_is_fitted(self)
        if self._fit_namespace is not None:
            check_same_namespace(X, self._fit_namespace, f"{type(self).__name__}.transform")
        if not hasattr(self, "n_features_in_"):  # used without fit, which validates them
            validate_parameters(self)
        rows = self._as_source(X, reset=False)
        return rows.collect(
            partial(_shaped_blocks, self, self._activation(rows.shape[1])),
            scoring_dtype(rows.dtype),
            rows.shape[1],
        )

    def _activation(self, n_features: int) -> Activation:
        """Return a description of the fitted shaping that every engine understands."""
        raise NotImplementedError

    def _as_source(self, X: Any, *, reset: bool) -> RowSource:
        rows = as_source(X)
        validate_data(self, feature_names_source(X, rows), reset=reset, skip_check_array=True)
        return rows

    def _checked_levels(self) -> list[float]:
        """Return the quantiles of all entries that are learned, after a check of the parameters."""
        validate_parameters(self)
        return self._levels()

    def _levels(self) -> list[float]:
        return []

    def _set_learned(self, n_features: int, learned: list[float]) -> None:
        """Set the fitted state from the quantiles at the `_levels`."""
        self.n_features_in_ = n_features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _shaped_blocks(
    shaping: Shaping, activation: Activation, rows: SlicedRows
) -> Iterator[tuple[slice, Any]]:
    """Yield the slice of each block of rows, and the block after a shaping."""
    dtype, native = scoring_dtype(rows.dtype).name, rows.namespace is not None

    def shape_block(block: Any) -> Any:
        xp = namespace_of(block)
        return apply_shaping(activation, xp.astype(block, getattr(xp, dtype)) if native else block)

    for row_slice, shaped in rows.map_blocks(shape_block, rows.slices(), native=native):
        xp = namespace_of(shaped)
        if not bool(xp.all(xp.isfinite(shaped))):
            is_finite = xp.all(xp.isfinite(shaped), axis=1)
            row = row_slice.start + int(xp.argmin(xp.asarray(is_finite, dtype=xp.int32)))
            rows.read_block(slice(row, row + 1))  # raises if the feature itself is not finite
            raise ValueError(
                f"{shaping!r} makes row {rows.row_number(row)} infinite or NaN: it is too large "
                f"for {dtype}, or its entries sum to zero"
            )
        yield row_slice, shaped


def fit_shaping(
    shaping: Any,
    rows: RowSource,
    verbose: int | bool = 0,
    *,
    known: Mapping[float, float] | None = None,
) -> Any:
    """Return a clone of a shaping, fitted on in-distribution rows that are known to be finite.

    None stays None. The rows are not read where their quantiles are known, by level.
    """
    if shaping is None:
        return None
    shaping = clone(shaping)
    if not is_described(shaping):
        return shaping.fit(np.asarray(rows), None)
    levels = shaping._checked_levels()
    known = known or {}
    if all(level in known for level in levels):
        learned = [known[level] for level in levels]
    else:
        learned = quantiles(rows, levels, verbose=verbose)
    shaping._set_learned(rows.shape[1], learned)
    return shaping


def learned_levels(shaping: Any) -> tuple[float, ...]:
    """Return the levels of the quantiles that a shaping of this module learns; none of others."""
    return tuple(shaping._checked_levels()) if is_described(shaping) else ()


def describe(shaping: Any, n_features: int) -> Activation | None:
    """Return the description of a fitted shaping; None for None."""
    if shaping is None:
        return None
    if not is_described(shaping):
        return Transform(shaping)
    activation: Activation = shaping._activation(n_features)
    return activation


def is_described(shaping: Any) -> bool:
    """Return whether a shaping is of exactly one of the classes of this module.

    A class of the user that is derived from them may transform otherwise than it describes.
    """
    return isinstance(shaping, Shaping) and type(shaping).__module__ == __name__


class ReAct(Shaping):
    """Clip activations from above: ``min(h, c)``.

    Parameters
    ----------
    quantile : float in [0, 1], default=0.99
        The clipping threshold is this quantile of all entries of the fitted features.
        It is not used where `threshold` is given.
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

    def __init__(self, quantile: float = 0.99, *, threshold: float | None = None) -> None:
        self.quantile = quantile
        self.threshold = threshold

    def _levels(self) -> list[float]:
        return [self.quantile] if self.threshold is None else []

    def _set_learned(self, n_features: int, learned: list[float]) -> None:
        super()._set_learned(n_features, learned)
        self.threshold_ = learned[0] if self.threshold is None else float(self.threshold)

    def _activation(self, n_features: int) -> Clip:
        threshold: Any = getattr(self, "threshold_", self.threshold)
        return Clip(-np.inf, float(threshold))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.threshold is None
        return tags


class VRA(Shaping):
    """Suppress low and clip high activations (VRA-P).

    An activation h becomes 0 where ``h < alpha`` and beta where ``h > beta``.

    Parameters
    ----------
    lower_quantile : float in [0, 1], default=0.6
        alpha is this quantile of all entries of the fitted features. It is not used where
        `alpha` is given.
    upper_quantile : float in [0, 1], default=0.95
        beta is this quantile of all entries. It is not used where `beta` is given.
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

    def _levels(self) -> list[float]:
        given = ((self.lower_quantile, self.alpha), (self.upper_quantile, self.beta))
        return [level for level, fixed in given if fixed is None]

    def _set_learned(self, n_features: int, learned: list[float]) -> None:
        super()._set_learned(n_features, learned)
        values = iter(learned)
        alpha, beta = (
            next(values) if fixed is None else float(fixed) for fixed in (self.alpha, self.beta)
        )
        self._check_order(alpha, beta)
        self.alpha_, self.beta_ = alpha, beta

    def _activation(self, n_features: int) -> Clip:
        alpha: Any = getattr(self, "alpha_", self.alpha)
        beta: Any = getattr(self, "beta_", self.beta)
        self._check_order(alpha, beta)
        return Clip(float(alpha), float(beta))

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
    zero_pruned: ClassVar[bool]

    def _activation(self, n_features: int) -> ScaleRows:
        # At least one entry of each row stays.
        n_pruned = min(int(np.round(n_features * self.quantile)), n_features - 1)
        return ScaleRows(n_pruned, self.zero_pruned)

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

    zero_pruned = True

    def __init__(self, quantile: float = 0.9) -> None:
        self.quantile = quantile


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

    zero_pruned = False

    def __init__(self, quantile: float = 0.85) -> None:
        self.quantile = quantile
