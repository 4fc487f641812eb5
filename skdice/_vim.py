"""ViMDetector: the energy, less the part of the features that the classifier does not use."""

import warnings
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError

from skdice._base import BaseDetector
from skdice._compat.arrays import is_dask, to_numpy
from skdice._compat.sklearn import Interval
from skdice._engines.layer import ViMLayer
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import Measured, Wanted, gather_statistics, weights_of
from skdice._rows.door import as_source
from skdice._rows.sources import RowSource

# A mean residual below this share of the root mean square of the features about the origin is
# taken to be rounding.
LEAST_RESIDUAL = 1e-6


class ViMDetector(BaseDetector):
    """Out-of-distribution detector by virtual-logit matching (ViM).

    The score of a row is its energy less `alpha_` times the norm of its residual, which is the
    part of its features outside of the principal subspace of the in-distribution rows. Higher
    scores are more in-distribution.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias), array of shape (n_classes, n_features) or "identity"
        The last linear layer; an array is a weight without a bias. ``"identity"`` is for rows
        that are logits already.
    n_components : int, default=None
        Dimension of the principal subspace, less than the number of features m. None is the
        rule of the paper: 1000 where m is at least 2048, 512 where m is at least 768, else m / 2.
    contamination : float in (0, 0.5], default=0.05
        Share of the in-distribution rows given to `fit` or `calibrate` that falls below the
        threshold.
    device : {None, "auto", "cpu", "cuda", "cuda:1", "mps"}, default=None
        Where rows are scored. None follows the input: a torch tensor is scored on its device,
        everything else by NumPy. ``"auto"`` takes a GPU if torch finds one.
    batch_size : int, default=None
        Rows per block; None chooses them so that a block stays in cache.
    n_jobs : int, default=None
        Threads that work on blocks of rows. None is 1 unless in a `joblib.parallel_config`
        context, -1 is all processors. Matrix products use the threads of NumPy's BLAS in any case.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Attributes
    ----------
    head_ : LinearHead
        The last linear layer.
    n_components_ : int
        Dimension of the principal subspace.
    origin_ : ndarray of shape (n_features,), float64
        The point nearest to zero at which the logits are nearest to zero, ``-pinv(W) b``.
    residual_components_ : ndarray of shape (n_residual, n_features), float64
        Orthonormal directions in which in-distribution rows are nearest to the origin. Their
        number is that of the features less `n_components_`.
    alpha_ : float
        Mean largest logit over the mean norm of the residual, of the rows of `fit`.
    offset_ : float
        The threshold on the scores: ``decision_function(X) = score_samples(X) - offset_``, unless
        `calibrate` set thresholds of predicted classes.
        Not set by `partial_fit`.
    contamination_ : float
        The contamination in force: that of `calibrate` after a call of it.
    calibration_ : Calibration
        Record of the last `calibrate`.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Sorted scores of the rows given to `calibrate` with ``method="conformal"``.
    n_samples_seen_ : int
        Rows in the second moments.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them, all strings.

    See Also
    --------
    DICEDetector : Prunes the head and scores by the logits.
    FDBDDetector : Measures the distance to the decision boundaries.
    FeatureStatistics : Gathers the second moments on several machines.

    Notes
    -----
    With the origin ``u = -pinv(W) b`` and R the eigenvectors of the mean of
    ``(h - u) (h - u)^T`` over the in-distribution features h beyond the first `n_components_`,
    the score is ``logsumexp(W h + b) - alpha |R^T (h - u)|``. The pseudoinverse drops singular
    values below the rounding of the head's dtype.

    `fit` reads the rows twice: once for the second moments, which are float64 and do not depend
    on the blocks, and once for `alpha_` and the threshold. The memory is 8 bytes for each pair of
    features, a few times, and a block of rows.

    Fewer rows than features span a subspace only, so that the residual of these rows is smaller
    than that of any other row; then `fit` warns.

    References
    ----------
    Wang, Li, Feng & Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022,
    arXiv:2203.10807.

    Examples
    --------
    >>> from skdice import ViMDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = ViMDetector(data.head).fit(data.id_train).calibrate(data.id_test[:2000])
    >>> f"{(detector.predict(data.id_test[2000:]) == -1).mean():.0%}"
    '5%'
    >>> bool((detector.predict(data.ood["mnist"]) == -1).mean() > 0.5)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = BaseDetector._parameter_constraints | {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
    }

    n_components_: int
    origin_: NDArray[np.float64]
    residual_components_: NDArray[np.float64]
    alpha_: float
    _layer: ViMLayer
    _fitted_arrays = ("origin_", "residual_components_")

    def __init__(
        self,
        head: Any,
        *,
        n_components: int | None = None,
        contamination: float = 0.05,
        device: str | None = None,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.n_components = n_components
        self.contamination = contamination
        self.device = device
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Find the principal subspace, and set `alpha_` and the threshold.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs, as they enter the head.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are known outliers and are left out.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the second moments, in `alpha_` and in the threshold; a row of
            weight 0 is left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The widths of X and the head do not match, `n_components` is not below the number of
            features, a value is not finite, no row is in-distribution, or a parameter is out of
            its range.

        Warns
        -----
        UserWarning
            There are fewer rows than features, the rows have no residual, or `alpha_` is negative.
        """
        self._validate_parameters(X)
        with self._unchanged_on_error():
            self._fit_rows(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Add a block of rows to the second moments.

        Any way of splitting the rows gives the moments that `fit` gives. `alpha_` needs the
        residuals of rows under the subspace of all rows, so the detector scores only after
        `calibrate` with ``method="quantile"`` was given in-distribution rows: its first call
        finds the subspace, and takes `alpha_` and the threshold from these rows. With all rows of
        the blocks it gives exactly what `fit` gives; some of them are enough. Later calls of
        `calibrate` do not change `alpha_`. A first call with ``method="conformal"`` is refused,
        because scores that depend on the calibration rows have no guarantee.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features), or FeatureStatistics
            Penultimate features of in-distribution inputs, or the `FeatureStatistics` of
            them, with ``second_moments=True``, that other processes gathered.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are left out, as in `fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the second moments.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X, y or a parameter is refused, for the reasons that `fit` names. The detector is
            left as it was.
        """
        self._validate_parameters(X)
        if hasattr(self, "_layer") and not hasattr(self, "_statistics"):
            raise ValueError(
                "this ViMDetector was loaded from a file, which has no second moments that rows "
                "could be added to: use fit, or a pickle"
            )
        with self._locked():
            head, statistics = self._accumulate(X, y, sample_weight, second_moments=True)
            self._n_principal(head.n_features)  # raises if it is out of range
            self._forget_fit()
            self._statistics = statistics
            if statistics.n_samples:  # else there were only outliers so far
                self.n_samples_seen_ = statistics.n_samples
        return self

    def calibrate(
        self,
        X: ArrayLike,
        contamination: float | None = None,
        *,
        method: Literal["quantile", "conformal"] = "quantile",
        confidence: float | None = None,
        by: Literal["prediction"] | None = None,
    ) -> Self:
        """Set the threshold from held-out in-distribution rows.

        Nothing is refitted, but the first call after `partial_fit` sets `alpha_`, as that method
        says.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that `fit` has not seen.
        contamination : float in (0, 0.5], default=None
            Share of these rows that falls below the threshold; None takes the
            parameter of the detector.
        method : {"quantile", "conformal"}, default="quantile"
            The rule of the threshold, as for `DICEDetector.calibrate`.
        confidence : float in (0, 1), default=None
            The confidence in the share of future rows, as for `DICEDetector.calibrate`.
        by : {None, "prediction"}, default=None
            What has a threshold of its own, as for `DICEDetector.calibrate`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As for `DICEDetector.calibrate`.
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or ``"conformal"`` is asked for where `alpha_` is not set.
        """
        with self._unchanged_on_error():
            if not hasattr(self, "_layer") and hasattr(self, "n_samples_seen_"):
                if method == "conformal":
                    raise NotFittedError(
                        "This ViMDetector has no alpha_, as partial_fit sets none: call calibrate "
                        "with method='quantile' and rows of the fit first. Scores that depend on "
                        "the conformal calibration rows would have no guarantee."
                    )
                rows = self._open(X)
                layer = self._subspace_layer(as_linear_head(self.head, rows.shape[1]))
                values = rows.collect(self._block_values(layer), n_columns=layer.n_columns)
                self._set_scale(rows, values)
            super().calibrate(X, contamination, method=method, confidence=confidence, by=by)
        return self

    def _wanted(self, head: LinearHead, rows: RowSource) -> Wanted:
        return Wanted(second_moments=True)

    def _set_measured(self, head: LinearHead, rows: RowSource, measured: Measured) -> ViMLayer:
        self._forget_fit()
        self._statistics = measured.statistics
        self.n_samples_seen_ = measured.statistics.n_samples
        return self._subspace_layer(head)

    def _set_values(self, rows: RowSource, values: Any, measured: Measured) -> Any:
        return self._set_scale(rows, values)

    def _forget_fit(self) -> None:
        """Remove everything that depends on the moments."""
        self._forget_threshold()
        self._fit_namespace = None
        names = ("_layer", "alpha_", "origin_", "residual_components_", "n_components_", "head_")
        for name in names:
            self.__dict__.pop(name, None)

    def _n_principal(self, n_features: int) -> int:
        """Return the dimension of the principal subspace."""
        if self.n_components is None:
            return 1000 if n_features >= 2048 else 512 if n_features >= 768 else n_features // 2
        if self.n_components >= n_features:
            raise ValueError(
                f"n_components is {self.n_components}, expected less than "
                f"n_features = {n_features}: no residual would be left"
            )
        return int(self.n_components)

    def _subspace_layer(self, head: LinearHead) -> ViMLayer:
        """Set the subspace from the moments; return the layer of what alpha is estimated from."""
        statistics, n_features = self._statistics, head.n_features
        statistics.mean()
        n_principal = self._n_principal(n_features)
        if statistics.n_samples < n_features:
            warnings.warn(
                f"the {statistics.n_samples} rows are fewer than the {n_features} features, so "
                "that the residual of the training rows is smaller than that of other "
                f"in-distribution rows. Give at least {n_features} rows, better ten times as "
                "many, and calibrate on rows that were not fitted.",
                UserWarning,
                stacklevel=4,
            )
        weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
        # Smaller singular values are the rounding of the weight, and would move the origin far.
        cutoff = max(weight.shape) * float(np.finfo(head.weight.dtype).eps)
        origin = np.asarray(np.linalg.lstsq(weight, -bias, rcond=cutoff)[0], np.float64)
        moments = statistics.second_moments_about(origin)
        overflow = np.flatnonzero(~np.isfinite(moments).all(axis=0))
        if len(overflow):
            raise ValueError(
                f"the second moment of feature {overflow[0]} exceeds the range of float64"
            )
        _, vectors = np.linalg.eigh(moments)  # in ascending order of the eigenvalues
        components = np.ascontiguousarray(vectors[:, : n_features - n_principal].T)
        return self._set_subspace(head, origin, components)

    def _set_subspace(
        self, head: LinearHead, origin: NDArray[np.float64], components: NDArray[np.float64]
    ) -> ViMLayer:
        """Set the subspace; return its layer without alpha."""
        self.head_, self.n_components_ = head, head.n_features - len(components)
        self.origin_, self.residual_components_ = origin, components
        return ViMLayer(head.weight, head.bias, components, -components @ origin)

    def _set_alpha(self, alpha: float) -> None:
        self.alpha_ = alpha
        components = self.residual_components_
        shift = -components @ self.origin_
        self._layer = ViMLayer(self.head_.weight, self.head_.bias, components, shift, alpha)

    def _set_scale(self, rows: RowSource, values: Any) -> Any:
        """Set alpha from the values of rows, and with it the layer; return their scores."""
        weights = None
        if rows.weights is not None:
            values = values.compute() if is_dask(values) else to_numpy(values)
            weights = weights_of(rows)
        elif is_dask(values):
            values = values.persist()  # the rows must not be read again
        means = gather_statistics(as_source(values).inliers(None, weights)).mean()
        largest, _, residual = map(float, means)
        moments = self._statistics.second_moments_about(self.origin_)
        alpha = 0.0
        if residual > LEAST_RESIDUAL * np.sqrt(np.trace(moments)):
            alpha = largest / residual
        else:
            warnings.warn(
                f"the mean norm of the residual of the rows is {residual:g}, nothing but rounding: "
                "alpha_ is 0, and the score is the energy alone. Give more rows, or a smaller "
                "n_components.",
                UserWarning,
                stacklevel=3,
            )
        if alpha < 0:
            warnings.warn(
                f"alpha_ is {alpha:g}, as the mean of the largest logits is {largest:g}: rows with "
                "a large residual would count as in-distribution. ViM needs logits whose largest "
                "is above zero.",
                UserWarning,
                stacklevel=3,
            )
        self._set_alpha(alpha)
        return values[:, 1] - alpha * values[:, 2]
