"""What a fitted DICE detector does: score, decide, calibrate, save and deploy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data

from skdice._compat.arrays import (
    check_same_namespace,
    device_of,
    from_numpy,
    is_dask,
    is_followed,
    on_host,
    to_numpy,
)
from skdice._compat.sklearn import (
    Interval,
    InvalidParameterError,
    validate_parameters,
)
from skdice._engines import torch_device
from skdice._engines.computation import Computation
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics
from skdice._passes.threshold import (
    conformal_pvalues,
    conformal_threshold,
    distributed_threshold,
    score_threshold,
)
from skdice._rows.dask import DaskRows, map_scores
from skdice._rows.sources import (
    Rows,
    SelectedRows,
    array_source,
    check_rows,
    is_plain,
    named,
    scoring_dtype,
)

FloatArray = NDArray[np.floating[Any]]


# Arrays of the library of X, where `array_api_dispatch` is on.
FITTED_ARRAYS = ("mean_activation_", "mask_", "coef_", "intercept_")


class BaseDICE(OutlierMixin, BaseEstimator):
    """The fitted state of a detector and all that follows from it.

    Derived classes have the parameters `head`, `shaping`, `score_func`, `contamination`,
    `device`, `batch_size`, `n_jobs` and `verbose`, and set the state in `fit`.
    """

    head: Any
    shaping: Any
    score_func: str | Callable[[FloatArray], FloatArray]
    contamination: float
    device: str | None
    batch_size: int | None
    n_jobs: int | None
    verbose: int

    # Set by fit and partial_fit.
    mean_activation_: NDArray[np.float64]
    mask_: NDArray[np.bool_]
    coef_: FloatArray
    intercept_: FloatArray
    contribution_threshold_: float
    shaping_: Any
    offset_: float
    calibration_scores_: FloatArray
    n_samples_seen_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    _statistics: FeatureStatistics

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit on in-distribution rows."""
        raise NotImplementedError

    def calibrate(
        self,
        X: ArrayLike,
        contamination: float | None = None,
        *,
        method: Literal["quantile", "conformal"] = "quantile",
    ) -> Self:
        """Set the threshold from held-out in-distribution rows. Nothing is refitted.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that `fit` has not seen.
        contamination : float in (0, 0.5], default=None
            Share of these rows that falls below the threshold; None takes the
            parameter of the detector.
        method : {"quantile", "conformal"}, default="quantile"
            ``"quantile"`` takes the share of the rows given. ``"conformal"`` guarantees that
            of future in-distribution rows, exchangeable with these, the expected share below
            the threshold is at most the contamination, for any number of rows; it keeps
            their scores, for `pvalues`. The two differ by one row at most.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            `contamination` is out of its range, or ``"conformal"`` has fewer than
            ``1 / contamination - 1`` rows, too few for any guarantee.

        References
        ----------
        Bates, Candes, Lei, Romano & Sesia, "Testing for outliers with conformal p-values",
        Annals of Statistics 2023, arXiv:2104.08279.
        """
        rows = self._validate_fitted(X, "calibrate")
        if method not in ("quantile", "conformal"):
            raise ValueError(f"method is {method!r}, expected 'quantile' or 'conformal'")
        share = self.contamination if contamination is None else contamination
        if not Interval(Real, 0, 0.5, closed="right").is_satisfied_by(share):
            raise ValueError(f"contamination is {share!r}, expected a float in (0, 0.5]")
        if method == "conformal":
            scores = self._score(rows)
            # Kept with the detector, whichever workers computed them.
            scores = scores.compute() if is_dask(scores) else to_numpy(scores)
            self.offset_ = conformal_threshold(scores, share)
            self.calibration_scores_ = np.sort(scores)
        else:
            self.offset_ = self._threshold(rows, share)
            self.__dict__.pop("calibration_scores_", None)
        return self

    def pvalues(self, X: ArrayLike) -> Any:
        """Return the conformal p-value of each row: small = out-of-distribution.

        The share of the calibration rows, and the row itself, whose score is as low as the
        row's or lower. For an in-distribution row exchangeable with those, the probability
        that it is at most a is at most a, for every a.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of shape (n_samples,), float64
            In (0, 1]; in the library of X, as the scores are.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or not calibrated with ``method="conformal"``.
        """
        rows = self._validate_fitted(X, "pvalues")
        if not hasattr(self, "calibration_scores_"):
            raise NotFittedError(
                f"This {type(self).__name__} has no scores to compare with: call calibrate with "
                "held-out in-distribution rows and method='conformal' first."
            )
        scores, source = self._score(rows), array_source(rows)
        if isinstance(rows, DaskRows):
            return map_scores(conformal_pvalues, scores, self.calibration_scores_)
        values = conformal_pvalues(self.calibration_scores_, to_numpy(scores))
        return values if source is None else from_numpy(values, source.xp, source.device)

    def logits(self, X: ArrayLike) -> Any:
        """Return the logits of the masked layer.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32 or float64
        """
        rows = self._validate_fitted(X, "logits")
        return self._computation(None).collect(rows)

    def score_samples(self, X: ArrayLike) -> Any:
        """Return the score of each row: higher = more in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        ndarray of shape (n_samples,), float32 or float64
            float32 for float32 and half-precision features, float64 otherwise.
        """
        return self._score(self._validate_fitted(X, "score_samples"))

    def decision_function(self, X: ArrayLike) -> Any:
        """Return the score minus the threshold: negative = out-of-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        ndarray of shape (n_samples,), float32 or float64

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or was fitted by `partial_fit` alone and not
            calibrated.
        """
        return self._decide(X, "decision_function")

    def predict(self, X: ArrayLike) -> Any:
        """Tell for each row whether it is in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        ndarray of shape (n_samples,), int
            +1 in-distribution, -1 out-of-distribution.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            As in `decision_function`.
        """
        decision = self._decide(X, "predict")
        xp = array_namespace(decision)
        return xp.astype(decision >= 0, xp.int64) * 2 - 1

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> Any:
        """Fit on X and tell for each of its rows whether it is in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are left out of the fit, as in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), int
            +1 in-distribution, -1 out-of-distribution.
        """
        return self.fit(X, y).predict(X)

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to a file that runs no code when it is loaded.

        The file is in the .safetensors format, with JSON metadata. `skdice.load` reads it
        back, bit for bit, on any machine. An interrupted save leaves the old file or none.

        Parameters
        ----------
        path : str or Path
            The file; ``detector.safetensors``, say.

        Raises
        ------
        ValueError
            `score_func` is a function, or `shaping` is not one of `skdice.shaping`: these
            cannot be saved without saving code.
        sklearn.exceptions.NotFittedError
            The detector is not fitted.
        """
        from skdice._persistence import save

        save(self, path)

    def to_torch(self) -> Any:
        """Return a torch module that scores features as this detector does.

        Its ``forward(features)`` returns the scores (n,); ``is_ood(features)`` tells which
        rows are out-of-distribution, as are those that are not finite, which it cannot
        refuse; ``threshold`` is a buffer, NaN where there is none. It can be scripted, and
        exported to ONNX. Rows in double precision are scored in it, all others in single
        precision.

        Returns
        -------
        torch.nn.Module
            In evaluation mode, on the CPU.

        Raises
        ------
        ValueError
            `score_func` is a function, or `shaping` is not one of `skdice.shaping`.
        ImportError
            torch is not installed.
        """
        from skdice._engines.deployment import detector_module

        check_is_fitted(self, "coef_")
        threshold = getattr(self, "offset_", None)
        return detector_module(
            to_numpy(self.coef_),
            to_numpy(self.intercept_),
            threshold,
            self.score_func,
            self.shaping_,
        )

    def _validate_parameters(self, X: Any) -> None:
        if not isinstance(self.head, LinearHead | tuple) and not (
            isinstance(self.head, str) and self.head == "identity"
        ):
            given = "None" if self.head is None else f"an instance of {type(self.head).__name__}"
            given = repr(self.head) if isinstance(self.head, str) else given
            raise InvalidParameterError(
                f"The 'head' parameter of {type(self).__name__} must be the classifier's last "
                f"linear layer. Got {given} instead. Pass head=LinearHead(weight, bias), "
                "LinearHead.from_torch(model.fc), LinearHead.from_estimator(classifier), "
                "LinearHead.from_file(path), LinearHead.from_class_means(X, y), a tuple "
                "(weight, bias), or head='identity' if the rows are logits already."
            )
        validate_parameters(self)
        if self.device is not None and not is_dask(X):
            torch_device(self.device)  # one that is not here is told before any work

    def _decide(self, X: Any, method: str) -> Any:
        """Return the decision function for the public method of that name."""
        rows = self._validate_fitted(X, method)
        if not hasattr(self, "offset_"):
            raise NotFittedError(
                f"This {type(self).__name__} has no threshold, as partial_fit sets none: call "
                "calibrate with held-out in-distribution rows first."
            )
        return self._score(rows) - self.offset_

    def _validate_fitted(self, X: Any, method: str) -> Rows:
        check_is_fitted(self, "coef_")
        check_same_namespace(X, self.coef_, f"{type(self).__name__}.{method}")
        return self._validate_rows(X, reset=False)

    def _validate_rows(self, X: Any, *, reset: bool) -> Rows:
        rows = check_rows(X)
        names_and_width_known = not reset and not hasattr(self, "feature_names_in_")
        if names_and_width_known and is_plain(X) and X.shape[1] == self.n_features_in_:
            return rows
        # Names and number of the features; check_array would pull a lazy source into memory.
        validate_data(self, named(X, rows), reset=reset, skip_check_array=True)
        return rows

    def _resolve_head(self, n_features: int) -> LinearHead:
        if isinstance(self.head, str):
            return LinearHead(np.eye(n_features, dtype=np.float32))
        head: LinearHead = self.head
        if isinstance(self.head, tuple):
            if len(self.head) != 2:
                raise ValueError(f"head is a tuple of {len(self.head)}, expected (weight, bias)")
            head = LinearHead(*self.head)
        if head.n_features != n_features:
            raise ValueError(
                f"X has {n_features} features, but the head expects {head.n_features}: its weight "
                f"has shape {head.weight.shape}"
            )
        return head

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Take back whatever was set on the estimator if the block fails."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _set_fitted(
        self,
        head: LinearHead,
        statistics: FeatureStatistics,
        mean_activation: NDArray[np.float64],
        mask: NDArray[np.bool_],
        contribution_threshold: float,
        shaping: Any,
    ) -> None:
        # Of another threshold.
        self.__dict__.pop("calibration_scores_", None)
        self._statistics = statistics
        self.n_samples_seen_ = statistics.n_samples
        self.mean_activation_ = mean_activation
        self.mask_, self.contribution_threshold_ = mask, contribution_threshold
        self.coef_ = np.where(mask, head.weight, head.weight.dtype.type(0))
        self.intercept_ = head.bias
        self.shaping_ = shaping

    def _follow(self, X: Any) -> None:
        """Turn the fitted arrays into X's library, as scikit-learn asks of array API support."""
        if not (is_followed(X) and get_config()["array_api_dispatch"]):
            return
        xp, device = array_namespace(X), device_of(X)
        for name in FITTED_ARRAYS:
            setattr(self, name, from_numpy(getattr(self, name), xp, device))

    def __getstate__(self) -> dict[str, Any]:
        # Pickled without a device, so that it can be loaded on a machine without that.
        state: dict[str, Any] = super().__getstate__()
        arrays: dict[str, Any] = {
            name: to_numpy(state[name]) for name in FITTED_ARRAYS if name in state
        }
        if isinstance(state["head"], tuple):
            arrays["head"] = tuple(map(on_host, state["head"]))
        return state | arrays

    def _score(self, rows: Rows) -> Any:
        """Return the scores of validated rows."""
        return self._computation(self.score_func).collect(rows)

    def _threshold(self, rows: Rows, contamination: float) -> float:
        """Return the threshold below which the share of validated rows falls."""
        scores = self._score(rows)
        if isinstance(rows, DaskRows):
            return distributed_threshold(scores, contamination)
        return score_threshold(to_numpy(scores), contamination)

    def _score_blocks(self, X: Any) -> tuple[Rows, np.dtype[Any], Iterator[FloatArray]]:
        """Return validated rows, the dtype of their scores, and those scores block by block."""
        check_is_fitted(self, "coef_")
        rows = self._validate_rows(X, reset=False)
        blocks = self._computation(self.score_func).numpy_blocks(rows)
        return rows, scoring_dtype(rows.dtype), (each for _, each in blocks)

    def _computation(self, score_func: Any) -> Computation:
        return Computation(
            to_numpy(self.coef_),
            to_numpy(self.intercept_),
            self.shaping_,
            score_func,
            self.device,
            self.batch_size,
            self.n_jobs,
            self.verbose,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags


def in_distribution(rows: Rows, y: ArrayLike | None) -> Rows:
    """Return the rows that are not labelled -1."""
    if isinstance(rows, DaskRows):
        return rows if y is None else rows.without_outliers(y)
    inliers = inlier_rows(rows, y)
    return rows if inliers is None else SelectedRows(rows, inliers)


def inlier_rows(rows: Rows, y: ArrayLike | None) -> NDArray[np.bool_] | None:
    """Return which rows are not labelled -1; None where all are kept."""
    if y is None:
        return None
    labels = column_or_1d(on_host(y))
    if len(labels) != rows.shape[0]:
        raise ValueError(f"y has {len(labels)} labels, but X has {rows.shape[0]} rows")
    # Strings mark no outliers; objects may be numbers.
    if labels.dtype.kind not in "iufbO":
        return None
    inliers: NDArray[np.bool_] = np.asarray(labels != -1, dtype=np.bool_)
    return None if inliers.all() else inliers
