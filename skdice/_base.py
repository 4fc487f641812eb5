"""The base of all detectors, which scores, decides, calibrates and gives p-values."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata
from numbers import Integral, Real
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, validate_data

from skdice._calibration.by_prediction import ClassScores, decision_blocks
from skdice._calibration.mixin import CalibrationMixin
from skdice._calibration.verdicts import Verdicts, judged_blocks
from skdice._compat.arrays import (
    Namespace,
    check_same_namespace,
    default_integer,
    device_of,
    from_numpy,
    is_dask,
    keeps_namespace,
    namespace_name,
    namespace_of,
    to_host,
    to_numpy,
)
from skdice._compat.extras import import_extra
from skdice._compat.sklearn import Interval, MatchingOptions, validate_parameters
from skdice._engines.devices import CUDA_DEVICE, DEVICES, torch_device
from skdice._engines.layer import Layer
from skdice._engines.run import Options, run
from skdice._export.mixin import OnnxMixin
from skdice._head import LinearHead, as_linear_head
from skdice._passes.mean import (
    FeatureStatistics,
    Measured,
    Wanted,
    check_weights,
    gather_statistics,
    measure,
)
from skdice._rows.door import as_source, feature_names_source
from skdice._rows.sources import BlockValues, RowSource, scoring_dtype

FloatArray = NDArray[np.floating[Any]]

# One lock for each detector that was given rows by `partial_fit`. The detectors do not hold their
# locks, because a lock cannot be pickled.
_LOCKS: WeakKeyDictionary[BaseDetector, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


class BaseDetector(CalibrationMixin, OnnxMixin, OutlierMixin, BaseEstimator):
    """Base of the detectors.

    A derived class has the parameters `head`, `contamination`, `device`, `batch_size`, `n_jobs`
    and `verbose`, and sets the fitted attributes, `_layer` among them, in `fit`. It names in
    `_fitted_arrays` those that are arrays of the library of X, where `array_api_dispatch` is on.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "head": "no_validation",
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "device": [None, MatchingOptions(DEVICES, CUDA_DEVICE)],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }
    _fitted_arrays: ClassVar[tuple[str, ...]] = ()

    head: Any
    contamination: float
    device: str | None
    batch_size: int | None
    n_jobs: int | None
    verbose: int

    # The fitted state in the form that `run` computes.
    _layer: Layer
    # The sums of the rows of all calls of `fit` and `partial_fit`.
    _statistics: FeatureStatistics
    # Library and device of the fitted arrays, which X must have as well; None stands for NumPy.
    _fit_namespace: str | None = None
    head_: LinearHead
    n_samples_seen_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]

    def score_samples(self, X: ArrayLike) -> Any:
        """Return the score of each row: higher = more in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples,), float32 or float64
            float32 for float32 and half-precision features, float64 otherwise.

        Raises
        ------
        ValueError
            A feature or a score is not finite; the message names the row.
        """
        return self._open(X, "score_samples").collect(self._block_values())

    def decision_function(self, X: ArrayLike) -> Any:
        """Return the score minus the threshold: negative = out-of-distribution.

        After ``calibrate(..., by="prediction")`` it is the threshold of the predicted class.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples,), float32 or float64

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or it was fitted by `partial_fit` alone and not
            calibrated.
        """
        if self._fit_namespace is not None:
            check_same_namespace(X, self._fit_namespace, f"{type(self).__name__}.decision_function")
        if not hasattr(self, "offset_"):
            check_is_fitted(self)
            raise NotFittedError(
                f"This {type(self).__name__} has no threshold, as partial_fit sets none: call "
                "calibrate with held-out in-distribution rows first."
            )
        if hasattr(self, "class_offsets_"):
            function = partial(
                decision_blocks, self._block_values(), self.head_, self.class_offsets_
            )
            return self._open(X, "decision_function").collect(function)
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> Any:
        """Predict for each row whether it is in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples,), int
            +1 in-distribution, -1 out-of-distribution.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not fitted, or it has no threshold.
        """
        if self._fit_namespace is not None:
            check_same_namespace(X, self._fit_namespace, f"{type(self).__name__}.predict")
        decision = self.decision_function(X)
        if isinstance(decision, np.ndarray):
            return np.where(decision >= 0, 1, -1)
        xp = namespace_of(decision)
        return xp.astype(decision >= 0, default_integer(xp)) * 2 - 1

    def fit_predict(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Any:
        """Fit on X and predict for each of its rows whether it is in-distribution.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are left out of the fit.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the fit.

        Returns
        -------
        array of the kind of X, of shape (n_samples,), int
            +1 in-distribution, -1 out-of-distribution.
        """
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self.fit(X, y, **weights).predict(X)

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit on in-distribution rows."""
        raise NotImplementedError

    def to_torch(self) -> Any:
        """Return a torch module that scores features as this detector does.

        Its ``forward(features)`` returns the scores (n,). ``is_ood(features)`` is true for the
        rows that are out-of-distribution; a row that is not finite counts as out-of-distribution,
        because the module cannot refuse it. ``pvalue(features)`` returns the p-values after a
        conformal calibration, and NaN without one. ``decide(features)`` returns the three from one
        computation. ``threshold`` is a buffer, which is NaN if the
        detector has no threshold; after ``calibrate(..., by="prediction")`` the buffer
        ``class_thresholds`` decides. The module can be scripted and exported to ONNX. Rows in
        double precision are scored in double precision, all others in single precision.

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
        check_is_fitted(self)
        import_extra("torch", "torch")
        from skdice._engines.module import detector_module

        module = detector_module(self._layer, getattr(self, "offset_", np.nan))
        return self._with_calibration(module).eval()

    def _with_calibration(self, module: Any) -> Any:
        """Give a torch module the conformal calibration, if there is one, and return it."""
        from skdice._engines.threshold_module import ClassModuleState

        if not hasattr(self, "calibration_scores_"):
            return module
        by_class = None
        if hasattr(self, "class_offsets_"):
            by_class = ClassModuleState(
                self.class_offsets_,
                self.head_.weight,
                self.head_.bias,
                self.calibration_classes_,
                self.fallback_classes_,
            )
        module.set_calibration(self.calibration_scores_, by_class)
        return module

    def _fit_rows(self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None) -> None:
        """Fit in two passes: what `_wanted` names, and the values that the threshold comes from."""
        rows = self._open(X, reset=True)
        head = as_linear_head(self.head, rows.shape[1])
        weights = None if sample_weight is None else check_weights(sample_weight, rows)
        inliers = rows if y is None and weights is None else rows.inliers(y, weights)
        measured = measure(
            inliers,
            self._wanted(head, inliers),
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        if measured.statistics.n_samples == 0:
            raise self._no_rows(rows.shape[0], labelled=y is not None, weighted=weights is not None)
        layer = self._set_measured(head, inliers, measured)
        values = inliers.collect(self._block_values(layer), n_columns=layer.n_columns)
        self._set_threshold(inliers, self._set_values(inliers, values, measured))
        if get_config()["array_api_dispatch"]:
            self._follow(X)

    # A detector that is fitted by `_fit_rows`, or together with others, has these three methods.

    def _wanted(self, head: LinearHead, rows: RowSource) -> Wanted:
        """Return what the first pass over the in-distribution rows has to find out."""
        raise NotImplementedError

    def _set_measured(self, head: LinearHead, rows: RowSource, measured: Measured) -> Any:
        """Set what the first pass tells; return the layer whose values the second pass computes."""
        raise NotImplementedError

    def _set_values(self, rows: RowSource, values: Any, measured: Measured) -> Any:
        """Set what the values of the second pass tell; return the scores of the rows."""
        raise NotImplementedError

    def _accumulate(
        self,
        X: Any,
        y: ArrayLike | None,
        sample_weight: ArrayLike | None,
        *,
        second_moments: bool = False,
    ) -> tuple[LinearHead, FeatureStatistics]:
        """Return the head, and the statistics of the rows so far and those of `partial_fit`."""
        statistics = FeatureStatistics(second_moments=second_moments)
        if hasattr(self, "_statistics"):
            statistics.merge(self._statistics)
        if isinstance(X, FeatureStatistics):
            n_features = self._merge(statistics, X, y, sample_weight)
        else:
            rows = self._open(X, reset=statistics.n_features is None)
            n_features = rows.shape[1]
            weights = None if sample_weight is None else check_weights(sample_weight, rows)
            inliers = rows.inliers(y, weights)
            gathered = gather_statistics(
                inliers,
                second_moments=second_moments,
                batch_size=self.batch_size,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
            )
            statistics.merge(gathered)
        return as_linear_head(self.head, n_features), statistics

    def _merge(
        self, statistics: FeatureStatistics, X: FeatureStatistics, y: Any, sample_weight: Any
    ) -> int:
        """Merge statistics of other rows into those so far; return the number of features."""
        for name, given in (("y", y), ("sample_weight", sample_weight)):
            if given is not None:
                raise ValueError(
                    f"{name} is given with statistics, which have no rows: leave it out"
                )
        if X.n_features is None:
            raise ValueError("the statistics have no rows and no number of features")
        statistics.merge(X)
        if not hasattr(self, "n_features_in_"):
            self.n_features_in_ = X.n_features
        return X.n_features

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one thread at a time add rows; take back all that it set if the block fails."""
        with _LOCKS_GUARD:
            lock = _LOCKS.setdefault(self, threading.RLock())
        with lock, self._unchanged_on_error():
            yield

    def _follow(self, X: Any) -> None:
        """Turn the fitted arrays into X's library, as scikit-learn asks of array API support."""
        if not keeps_namespace(X):
            return
        namespace = Namespace(namespace_of(X), device_of(X))
        for name in self._fitted_arrays:
            setattr(self, name, from_numpy(getattr(self, name), namespace))
        self._fit_namespace = namespace_name(X)

    def __getstate__(self) -> dict[str, Any]:
        # Pickle NumPy arrays, because the pickle may be loaded on a machine without the device.
        state: dict[str, Any] = dict(super().__getstate__())
        arrays: dict[str, Any] = {
            name: to_numpy(state[name]) for name in self._fitted_arrays if name in state
        }
        if "head" in state:  # an ensemble has none
            head = state["head"]
            arrays["head"] = tuple(map(to_host, head)) if isinstance(head, tuple) else to_host(head)
        state.pop("_fit_namespace", None)
        return state | arrays

    def _block_values(self, layer: Any = None) -> BlockValues:
        """Return the function from rows to the slice and the scores of each block; it pickles.

        Given another layer than the fitted one, the function returns the values of that layer.
        """
        options = Options(self.device, self.batch_size, self.n_jobs, self.verbose)
        return partial(run, self._layer if layer is None else layer, options=options)

    def _iterate_scores(self, X: Any) -> tuple[np.dtype[Any], Iterator[FloatArray]]:
        """Return the dtype of the scores of X, and the scores block by block as NumPy arrays."""
        rows = self._open(X, "score_samples")
        blocks = rows.iterate_values(self._block_values())
        return scoring_dtype(rows.dtype), (scores for _, scores in blocks)

    def _iterate_verdicts(
        self, X: Any
    ) -> tuple[dict[str, np.dtype[Any]], Iterator[dict[str, NDArray[Any]]]]:
        """Return the dtypes of the columns of verdicts, and the verdicts block by block.

        The columns are those that this detector can give: ``score``, ``pvalue`` after a conformal
        calibration, ``is_ood`` with a threshold, and ``member`` of an ensemble.
        """
        rows = self._open(X, "score_samples")
        head, offset = None, getattr(self, "offset_", None)
        references: Any = getattr(self, "calibration_scores_", None)
        if hasattr(self, "class_offsets_"):
            head, offset = self.head_, self.class_offsets_
            by_class = ClassScores(references, self.calibration_classes_, head.n_classes)
            references = by_class.references(self.fallback_classes_)
        function, members = self._judgements()
        verdicts = Verdicts(scoring_dtype(rows.dtype), offset, references, members)
        n_columns = 1 + bool(members) + (head is not None)
        blocks = rows.iterate_values(partial(judged_blocks, function, head), np.float64, n_columns)
        return verdicts.dtypes, (verdicts.of(values) for _, values in blocks)

    def _judgements(self) -> tuple[BlockValues, tuple[str, ...]]:
        """Return the function from rows to the scores of each block, and no names of members.

        An ensemble returns its names, and the place of the member that objects beside each score.
        """
        return self._block_values(), ()

    def _validate_parameters(self, X: Any) -> None:
        validate_parameters(self)
        if self.device is not None and not is_dask(X):
            torch_device(self.device)  # Raise before any work if the device is missing.

    def _open(self, X: Any, method: str = "", *, reset: bool = False) -> RowSource:
        """Return X as a source of rows, which has the fitted features unless `reset` is True.

        Parameters
        ----------
        X : array-like or source of rows
            The input of the user.
        method : str
            Name of the method that uses the fitted state; empty for one that sets it.
        reset : bool
            True if the number and the names of the features are taken from X.
        """
        if method:
            if not hasattr(self, "_layer"):
                check_is_fitted(self)
            if self._fit_namespace is not None:
                check_same_namespace(X, self._fit_namespace, f"{type(self).__name__}.{method}")
        rows = as_source(X)
        # An array has no names that scikit-learn could take or compare.
        unnamed = type(X) is np.ndarray and not hasattr(self, "feature_names_in_")
        if unnamed and reset:
            self.n_features_in_ = rows.shape[1]
        elif not unnamed or rows.shape[1] != self.n_features_in_:
            # Skip check_array, because it would pull a lazy source into memory.
            names = feature_names_source(X, rows)
            validate_data(self, names, reset=reset, skip_check_array=True)
        return rows

    @staticmethod
    def _no_rows(n_given: float, *, labelled: bool, weighted: bool = False) -> ValueError:
        """Return the error for a fit without in-distribution rows."""
        if weighted:
            return ValueError("the sample_weight of all in-distribution rows is zero")
        number = "" if np.isnan(n_given) else f"{int(n_given)} "
        return ValueError(
            f"all {number}rows are labelled -1, which marks known outliers: no "
            "in-distribution row is left to fit on. Where folds are cut from labels in "
            "sorted order, shuffle and stratify them: StratifiedKFold(shuffle=True)."
            if labelled
            else "Found array with 0 sample(s) while a minimum of 1 is required."
        )

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Undo all changes of the estimator if the block fails."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_layer")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags

    _doc_link_module = "skdice"

    @property
    def _doc_link_template(self) -> str:
        """Address of the class's page, for scikit-learn's HTML view; empty if it is not known."""
        return f"{_documentation_address()}/api/skdice.{{estimator_name}}.html"

    def _get_doc_link(self) -> str:
        link: str = super()._get_doc_link() if _documentation_address() else ""
        return link


def _documentation_address() -> str:
    """Return the address of the documentation as the installed package states it."""
    try:
        addresses = metadata("skdice").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    for labelled_address in addresses:
        label, _, address = labelled_address.partition(", ")
        if label == "Documentation":
            return str(address).rstrip("/")
    return ""
