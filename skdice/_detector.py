"""DICEDetector: parameters, validation and the fitted state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import column_or_1d, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from skdice._computation import Computation
from skdice._head import LinearHead
from skdice._reductions import RunningMean, add_rows
from skdice._rows import Rows, SelectedRows, check_rows, scoring_dtype
from skdice._scores import SCORES
from skdice._scoring import fitted_shaping
from skdice._sklearn import (
    Interval,
    InvalidParameterError,
    MatchingOptions,
    StrOptions,
    validate_parameters,
)
from skdice._sparsify import sparsity_mask
from skdice._threshold import score_threshold
from skdice._xp import check_same_namespace, device_of, from_numpy, is_followed, to_numpy
from skdice.engines import CUDA_DEVICE, DEVICES, torch_device

FloatArray = NDArray[np.floating[Any]]


# Arrays of the library of X, where `array_api_dispatch` is on.
FITTED_ARRAYS = ("mean_activation_", "mask_", "coef_", "intercept_")


def _shaping_is_ready(detector: DICEDetector) -> bool:
    """Tell whether the shaping learns nothing, so that blocks of rows are enough for it."""
    shaping = detector.shaping
    # Of a pipeline, scikit-learn knows no more than whether its last step is fitted.
    if (
        shaping is None
        or isinstance(shaping, FrozenEstimator)
        or not get_tags(shaping).requires_fit
    ):
        return True
    raise AttributeError(
        f"partial_fit cannot fit {shaping!r}, which learns from all rows at once: give it fixed "
        "values (such as ReAct(threshold=1.0)), wrap a fitted one in "
        "sklearn.frozen.FrozenEstimator, or use fit"
    )


class DICEDetector(OutlierMixin, BaseEstimator):
    """Out-of-distribution detector by directed sparsification (DICE).

    Fitted on penultimate features of in-distribution inputs, it ranks the weights of
    the classifier's last linear layer by their mean contribution, prunes the smallest,
    and scores a row by the energy of the logits that remain. Higher scores are more
    in-distribution. With ``sparsity=0`` it is exactly the energy score; the other
    scores and a shaping of the features make it MSP, MaxLogit, GEN, ReAct, VRA, ASH,
    SCALE and their combinations with DICE.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias) or "identity"
        The last linear layer. ``"identity"`` is for rows that are logits already: the
        weight is the identity matrix; give it ``sparsity=0``, as pruning sets the
        logits of the classes with the lowest mean to zero. None, the default, raises
        at fit.
    sparsity : float in [0, 1), default=0.7
        Fraction (not percent) of the head's weights that is pruned. 0 prunes nothing.
        Measure it on features of your own, with 0 among the candidates: DICE helps on
        some networks and hurts on others.
    shaping : transformer, default=None
        A transformer of `skdice.shaping`, or any other that keeps the shape, applied
        to the features when scoring. The contribution is always measured on the
        features as given. Parameters are nested: ``shaping__quantile``.
    score_func : {"energy", "max_logit", "msp", "gen"} or callable, default="energy"
        Score of a row from its logits: their log-sum-exp, their maximum, the maximum
        softmax probability, or the generalised entropy (with g = 0.1 over the 100 most
        likely classes). A callable takes logits (n, n_classes) and
        returns finite scores (n,), higher = more in-distribution.
    contamination : float in (0, 0.5], default=0.05
        Share of the in-distribution rows given to `fit` or `calibrate` that falls
        below the threshold. 0.05 is the 95 % true-positive rate of the field.
    device : {None, "auto", "cpu", "cuda", "cuda:1", "mps"}, default=None
        Where rows are scored. None follows the input: a torch tensor is scored on its
        device, everything else by NumPy. A GPU is fed with rows of any source block by
        block. ``"auto"`` takes one if torch finds one. A function as `score_func` and a
        shaping of another library are computed by NumPy in any case.
    batch_size : int, default=None
        Rows per block; None chooses them so that a block stays in cache. Changes
        results by rounding at most.
    n_jobs : int, default=None
        Threads that work on blocks of rows. None is 1 unless in a
        `joblib.parallel_config` context, -1 is all processors. The matrix product
        itself uses the threads of NumPy's BLAS in any case.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Attributes
    ----------
    mean_activation_ : ndarray of shape (n_features_in_,), float64
        Mean activation of the in-distribution rows.
    mask_ : ndarray of shape (n_classes, n_features_in_), bool
        True where a weight is kept.
    coef_ : ndarray of shape (n_classes, n_features_in_)
        The masked weight, in the dtype of the head.
    intercept_ : ndarray of shape (n_classes,)
        The head's bias, never pruned.
    contribution_threshold_ : float
        Contributions above it are kept; minus infinity for ``sparsity=0``.
    shaping_ : transformer or None
        The fitted shaping.
    offset_ : float
        The threshold on the scores:
        ``decision_function(X) = score_samples(X) - offset_``. The smallest score with
        more than `contamination` of the rows at or below it. Not set by `partial_fit`.
    n_samples_seen_ : int
        Rows in the mean activation.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where X had them, all strings.

    See Also
    --------
    LinearHead : The last linear layer, from torch, scikit-learn or a file.
    skdice.shaping.ReAct : Clipping of the activations, often combined with DICE.
    sklearn.ensemble.IsolationForest : A detector on the features alone.

    Notes
    -----
    The contribution matrix is ``V = mean_activation * weight``; the mask is
    ``V > np.percentile(V, 100 * sparsity)``, one threshold for the whole head; the
    score is ``logsumexp((mask * weight) @ h + bias)``. The mean and the contribution
    are float64; scoring runs in the dtype of X (half precision in float32, integers in
    float64), in blocks of rows.

    The default sparsity is the paper's setting for ImageNet; the authors use 0.9 on CIFAR,
    and 0.1 together with ReAct on ImageNet. On small networks it often hurts: measure.

    Contributions that tie with the threshold are pruned with it. Where many units are
    always zero, as in small networks, several sparsities give the same mask, which prunes
    more than asked for; ``mask_.mean()`` is the share that was kept. Where all tie, so
    that none would be left, the largest are kept.

    References
    ----------
    Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection",
    ECCV 2022, arXiv:2111.09805. Of the scores: energy arXiv:2010.03759, MaxLogit
    arXiv:1911.11132, MSP arXiv:1610.02136, GEN Liu, Lochman & Zach, CVPR 2023.

    Examples
    --------
    >>> from skdice import DICEDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
    >>> detector = detector.calibrate(data.id_test[:2000])
    >>> def flagged(features):
    ...     return f"{(detector.predict(features) == -1).mean():.0%}"
    >>> flagged(data.id_test[2000:]), flagged(data.ood["mnist"])
    ('5%', '91%')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "head": [LinearHead, tuple, StrOptions({"identity"}), None],
        "sparsity": [Interval(Real, 0, 1, closed="left")],
        "shaping": [BaseEstimator, None],
        "score_func": [StrOptions(set(SCORES)), callable],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "device": [MatchingOptions(DEVICES, CUDA_DEVICE), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    # Set by fit and partial_fit.
    mean_activation_: NDArray[np.float64]
    mask_: NDArray[np.bool_]
    coef_: FloatArray
    intercept_: FloatArray
    contribution_threshold_: float
    shaping_: Any
    offset_: float
    n_samples_seen_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    _running_mean: RunningMean

    def __init__(
        self,
        head: Any = None,
        *,
        sparsity: float = 0.7,
        shaping: Any = None,
        score_func: str | Callable[[FloatArray], FloatArray] = "energy",
        contamination: float = 0.05,
        device: str | None = None,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.sparsity = sparsity
        self.shaping = shaping
        self.score_func = score_func
        self.contamination = contamination
        self.device = device
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Measure the mean activation, prune the head, and set the threshold.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs, as they enter the head.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are known outliers and are left out, so that a search with
            outlier labels trains on inliers only. Rows with any other label, 0 included,
            are fitted as in-distribution.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            No head is given, widths do not match, a value is not finite, no row is
            in-distribution, or a parameter is out of its range.
        """
        self._validate_parameters()
        with self._unchanged_on_error():
            rows = self._validate_rows(X, reset=True)
            head = self._resolve_head(rows.shape[1])
            inliers = _inliers(rows, y)
            if inliers is not None:
                if not inliers.any():
                    raise ValueError(
                        f"all {len(inliers)} rows are labelled -1, which marks known outliers: no "
                        "in-distribution row is left to fit on. Where folds are cut from labels in "
                        "sorted order, shuffle and stratify them: StratifiedKFold(shuffle=True)."
                    )
                rows = SelectedRows(rows, inliers)
            mean = self._add_rows(RunningMean(rows.shape[1]), rows)
            shaping = fitted_shaping(self.shaping, rows, self.verbose)
            self._set_state(head, mean, shaping)
            self.offset_ = score_threshold(to_numpy(self._score(rows)), self.contamination)
            self._follow(X)
        return self

    @available_if(_shaping_is_ready)
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Add a block of rows to the mean activation and prune the head anew.

        Any way of splitting the rows gives the mean that `fit` gives. No threshold is
        set: `calibrate` does that, once, at the end. A single row that holds a mean
        activation computed elsewhere is enough.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are left out, as in `fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in `fit`. The detector is left as it was.
        AttributeError
            The shaping has to learn from all rows at once, as a quantile does, so there
            is no partial fit.
        """
        self._validate_parameters()
        with self._unchanged_on_error():
            first = not hasattr(self, "_running_mean")
            rows = self._validate_rows(X, reset=first)
            head = self._resolve_head(rows.shape[1])
            inliers = _inliers(rows, y)
            if inliers is not None:
                rows = SelectedRows(rows, inliers)
            mean = RunningMean(rows.shape[1]) if first else self._running_mean.copy()
            self._running_mean = self._add_rows(mean, rows)
            if mean.n_rows == 0:  # outliers alone, so far
                return self
            # What learns nothing needs one row for its number of features.
            shaping = fitted_shaping(self.shaping, mean.mean()[None])
            self._set_state(head, mean, shaping)
            # A threshold from before belongs to another mask.
            if hasattr(self, "offset_"):
                del self.offset_
            self._follow(X)
        return self

    def calibrate(self, X: ArrayLike, contamination: float | None = None) -> Self:
        """Set the threshold from held-out in-distribution rows. Nothing is refitted.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features of in-distribution inputs that `fit` has not seen.
        contamination : float in (0, 0.5], default=None
            Share of these rows that falls below the threshold; None takes the
            parameter of the detector.

        Returns
        -------
        self
        """
        rows = self._validate_fitted(X, "calibrate")
        share = self.contamination if contamination is None else contamination
        if not Interval(Real, 0, 0.5, closed="right").is_satisfied_by(share):
            raise ValueError(f"contamination is {share!r}, expected a float in (0, 0.5]")
        self.offset_ = score_threshold(to_numpy(self._score(rows)), share)
        return self

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
        rows are out-of-distribution; ``threshold`` is a buffer, NaN where there is none. It
        can be scripted, and exported to ONNX. Rows in double precision are scored in it,
        all others in single precision.

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
        from skdice._deployment import detector_module

        check_is_fitted(self, "coef_")
        threshold = getattr(self, "offset_", None)
        return detector_module(
            to_numpy(self.coef_),
            to_numpy(self.intercept_),
            threshold,
            self.score_func,
            self.shaping_,
        )

    def _validate_parameters(self) -> None:
        if not isinstance(self.head, LinearHead | tuple) and not (
            isinstance(self.head, str) and self.head == "identity"
        ):
            given = "None" if self.head is None else f"an instance of {type(self.head).__name__}"
            given = repr(self.head) if isinstance(self.head, str) else given
            raise InvalidParameterError(
                "The 'head' parameter of DICEDetector must be the classifier's last linear layer. "
                f"Got {given} instead. Pass head=LinearHead(weight, bias), "
                "LinearHead.from_torch(model.fc), LinearHead.from_estimator(classifier), "
                "LinearHead.from_file(path), LinearHead.from_class_means(X, y), a tuple "
                "(weight, bias), or head='identity' if the rows are logits already."
            )
        validate_parameters(self)
        if self.device is not None:
            torch_device(self.device)  # one that is not here is told before any work

    def _decide(self, X: Any, method: str) -> Any:
        """Return the decision function for the public method of that name."""
        rows = self._validate_fitted(X, method)
        if not hasattr(self, "offset_"):
            raise NotFittedError(
                "This DICEDetector has no threshold, as partial_fit sets none: call "
                "calibrate with held-out in-distribution rows first."
            )
        return self._score(rows) - self.offset_

    def _validate_fitted(self, X: Any, method: str) -> Rows:
        check_is_fitted(self, "coef_")
        check_same_namespace(X, self.coef_, f"{type(self).__name__}.{method}")
        return self._validate_rows(X, reset=False)

    def _validate_rows(self, X: Any, *, reset: bool) -> Rows:
        rows = check_rows(X)
        # Names and number of the features; check_array would pull a lazy source into memory.
        validate_data(self, X if hasattr(X, "shape") else rows, reset=reset, skip_check_array=True)
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

    def _add_rows(self, mean: RunningMean, rows: Rows) -> RunningMean:
        add_rows(mean, rows, batch_size=self.batch_size, n_jobs=self.n_jobs, verbose=self.verbose)
        return mean

    def _set_state(self, head: LinearHead, mean: RunningMean, shaping: Any) -> None:
        mean_activation = mean.mean()
        overflow = np.flatnonzero(~np.isfinite(mean_activation))
        if len(overflow):
            raise ValueError(
                f"the mean activation of feature {overflow[0]} is {mean_activation[overflow[0]]}: "
                "the sum of its values exceeds the range of float64"
            )
        mask, threshold = sparsity_mask(head.weight, mean_activation, self.sparsity)
        empty = np.flatnonzero(~mask.any(axis=1))
        if len(empty):
            warnings.warn(
                f"{len(empty)} of {len(mask)} classes are left without any weight at "
                f"sparsity={self.sparsity:g} (the first is class {empty[0]}): their logit is the "
                "bias alone. A lower sparsity keeps more of them.",
                UserWarning,
                stacklevel=3,
            )
        self._set_fitted(head, mean, mean_activation, mask, threshold, shaping)

    def _set_fitted(
        self,
        head: LinearHead,
        mean: RunningMean,
        mean_activation: NDArray[np.float64],
        mask: NDArray[np.bool_],
        contribution_threshold: float,
        shaping: Any,
    ) -> None:
        self._running_mean = mean
        self.n_samples_seen_ = mean.n_rows
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
        arrays = {name: to_numpy(state[name]) for name in FITTED_ARRAYS if name in state}
        return state | arrays

    def _score(self, rows: Rows) -> Any:
        """Return the scores of validated rows."""
        return self._computation(self.score_func).collect(rows)

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


def _inliers(rows: Rows, y: ArrayLike | None) -> NDArray[np.bool_] | None:
    """Return which rows are not labelled -1; None where all are kept."""
    if y is None:
        return None
    labels = column_or_1d(to_numpy(y) if is_followed(y) else y)
    if len(labels) != rows.shape[0]:
        raise ValueError(f"y has {len(labels)} labels, but X has {rows.shape[0]} rows")
    # Strings mark no outliers; objects may be numbers.
    if labels.dtype.kind not in "iufbO":
        return None
    inliers: NDArray[np.bool_] = np.asarray(labels != -1, dtype=np.bool_)
    return None if inliers.all() else inliers
