"""DICEDetector, and the fitted state that it shares with its search."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if

from skdice._base import BaseDetector
from skdice._compat.sklearn import Interval, StrOptions
from skdice._engines.layer import MaskedLayer
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics, Measured, Wanted
from skdice._rows.door import as_source
from skdice._rows.sources import RowSource
from skdice._scores import SCORES
from skdice._sparsify import contribution, threshold_masks
from skdice.shaping import describe, fit_shaping, learned_levels

FloatArray = NDArray[np.floating[Any]]

# Below this share of rows with the class of the full head, DICE lost to no pruning on nearly every
# network that was measured (docs/user_guide/choosing.rst).
LEAST_AGREEMENT = 0.95
# A sample of the rows of `fit` is compared with two heads, which must not make `fit` slower. It has
# one row in 128; one in 8 if that takes less than so many multiplications with the head, about ten
# milliseconds; and never fewer or more rows than these.
SAMPLED_SHARE = 128
SMALL_SAMPLED_SHARE = 8
SAMPLED_PRODUCTS = 1 << 28
LEAST_SAMPLED = 256
MOST_SAMPLED = 4_000
# Ties may prune this share of the weights more than asked for before a warning says so.
TOLERATED_SHARE = 0.01


class BaseDICE(BaseDetector):
    """The fitted state of a detector that prunes its head.

    A derived class has the parameters `shaping` and `score_func`, and calls `_fit_rows` in `fit`.
    """

    shaping: Any
    score_func: str | Callable[[FloatArray], FloatArray]

    mean_activation_: NDArray[np.float64]
    mask_: NDArray[np.bool_]
    coef_: FloatArray
    intercept_: FloatArray
    contribution_threshold_: float
    head_agreement_: float
    shaping_: Any
    _layer: MaskedLayer
    _fitted_arrays = ("mean_activation_", "mask_", "coef_", "intercept_")

    def logits(self, X: ArrayLike) -> Any:
        """Return the logits of the masked layer.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features.

        Returns
        -------
        array of the kind of X, of shape (n_samples, n_classes), float32 or float64
        """
        rows, layer = self._open(X, "logits"), self._logits_layer()
        return rows.collect(self._block_values(layer), n_columns=len(layer.weight))

    def _detector_parameters(self) -> dict[str, Any]:
        """Return the parameters of the `DICEDetector` that is fitted to the same state."""
        parameters: dict[str, Any] = self.get_params(deep=False)
        return parameters

    def _logits_layer(self) -> MaskedLayer:
        """Return the fitted layer without its score."""
        return replace(self._layer, score=None)

    @property
    def _pruning(self) -> tuple[float, Any]:
        """The sparsity and the unfitted shaping of the fit."""
        raise NotImplementedError

    def _wanted(self, head: LinearHead, rows: RowSource) -> Wanted:
        sparsity, shaping = self._pruning
        n_sampled = 0
        if sparsity > 0:
            n_rows = 0 if np.isnan(rows.shape[0]) else int(rows.shape[0])
            cheap = min(n_rows // SMALL_SAMPLED_SHARE, SAMPLED_PRODUCTS // head.weight.size)
            n_sampled = min(max(n_rows // SAMPLED_SHARE, cheap, LEAST_SAMPLED), MOST_SAMPLED)
        levels = () if shaping is None else learned_levels(shaping)
        return Wanted(n_sampled=n_sampled, levels=levels)

    def _set_measured(self, head: LinearHead, rows: RowSource, measured: Measured) -> MaskedLayer:
        sparsity, shaping = self._pruning
        if shaping is not None:
            shaping = fit_shaping(shaping, rows, self.verbose, known=measured.quantiles)
        mean_activation = measured.statistics.mean()
        contributions = contribution(head.weight, mean_activation)
        ((mask, threshold),) = threshold_masks(contributions, [sparsity])
        empty = np.flatnonzero(~mask.any(axis=1))
        if len(empty):
            warnings.warn(
                f"{len(empty)} of {len(mask)} classes are left without any weight at "
                f"sparsity={sparsity:g} (the first is class {empty[0]}): their logit is the "
                "bias alone. A lower sparsity keeps more of them.",
                UserWarning,
                stacklevel=4,
            )
        n_pruned = mask.size - int(np.count_nonzero(mask))
        if n_pruned - sparsity * mask.size > TOLERATED_SHARE * mask.size:
            _warn_of_ties(contributions, head, threshold, n_pruned, sparsity)
        self._set_fitted(head, measured.statistics, mean_activation, mask, threshold, shaping)
        return self._layer

    def _set_values(self, rows: RowSource, values: Any, measured: Measured) -> Any:
        """Set the share of sampled rows that both heads give one class; warn if it is low."""
        sparsity, _ = self._pruning
        self.head_agreement_ = 1.0
        if sparsity == 0:
            return values
        assert measured.sample is not None
        sampled, weights = measured.sample
        dtype, n_rows = sampled.dtype, len(sampled)
        full = self.head_.weight.astype(dtype, copy=False).T
        pruned = self.coef_.astype(dtype, copy=False).T
        bias = self.head_.bias.astype(dtype, copy=False)
        is_equal = np.empty(n_rows, np.bool_)
        with np.errstate(over="ignore", invalid="ignore"):  # the scores have been checked
            for start in range(0, n_rows, LEAST_SAMPLED):
                block = sampled[start : start + LEAST_SAMPLED]
                classes = np.argmax(block @ full + bias, axis=1)
                is_equal[start : start + LEAST_SAMPLED] = (
                    np.argmax(block @ pruned + bias, axis=1) == classes
                )
        self.head_agreement_ = float(np.average(is_equal, weights=weights))
        if self.head_agreement_ < LEAST_AGREEMENT:
            warnings.warn(
                f"at sparsity={sparsity:g} the pruned head gives only "
                f"{self.head_agreement_:.1%} of {n_rows:,} rows of the fit the class that the full "
                f"head gives (head_agreement_, expected {LEAST_AGREEMENT:.0%} at least): DICE "
                "prunes evidence that this head needs, as happens with few or signed features, and "
                "then it mostly detects worse than without pruning. Lower the sparsity (0 prunes "
                "nothing), or take make_ensemble(head). In an ensemble nothing has to be done: its "
                "other members do not prune.",
                UserWarning,
                stacklevel=4,
            )
        return values

    def _set_fitted(
        self,
        head: LinearHead,
        statistics: FeatureStatistics,
        mean_activation: NDArray[np.float64],
        mask: NDArray[np.bool_],
        contribution_threshold: float,
        shaping: Any,
    ) -> None:
        self._forget_threshold()
        self._fit_namespace = None
        # It belongs to the rows and the mask of a call of `fit`.
        self.__dict__.pop("head_agreement_", None)
        self.head_ = head
        self._statistics = statistics
        self.n_samples_seen_ = statistics.n_samples
        self.mean_activation_ = mean_activation
        self.mask_, self.contribution_threshold_ = mask, contribution_threshold
        self.coef_ = np.where(mask, head.weight, head.weight.dtype.type(0))
        self.intercept_ = head.bias
        self.shaping_ = shaping
        self._set_layer(self.score_func)

    def _set_layer(self, score_func: Any) -> None:
        """Set the layer from the fitted arrays, which become read-only: engines keep copies."""
        self.coef_.setflags(write=False)
        shaping = self.shaping_
        if shaping is not None:
            shaping = describe(shaping, self.coef_.shape[1])
        self._layer = MaskedLayer(self.coef_, self.intercept_, shaping, score_func)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_layer" in state:
            # Only the score is kept of the layer, which is made anew from the fitted arrays.
            state["_layer"] = state["_layer"].score
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_layer" in state:
            self._set_layer(state["_layer"])


def _warn_of_ties(
    contributions: NDArray[np.float64],
    head: LinearHead,
    threshold: float,
    n_pruned: int,
    sparsity: float,
) -> None:
    """Warn that ties at the threshold pruned more weights than were asked for.

    Weights that are zero do not count, because pruning them changes nothing.
    """
    is_tied = (contributions == threshold) & (head.weight != 0)
    n_tied, n_weights = int(np.count_nonzero(is_tied)), head.weight.size
    if n_tied < 2 or n_tied <= TOLERATED_SHARE * n_weights:
        return
    below = np.count_nonzero(contributions < threshold) / n_weights
    n_units = int(np.count_nonzero(is_tied.all(axis=0)))
    cause = f", {n_units} units of {head.n_features} being always zero" if n_units else ""
    warnings.warn(
        f"sparsity={sparsity:g} asks for {sparsity:.0%} of the weights to be pruned, and "
        f"{n_pruned / n_weights:.0%} are: the contributions of {n_tied:,} weights tie at the "
        f"threshold {threshold:g}{cause}. Every sparsity from {below:.3f} to "
        f"{n_pruned / n_weights:.3f} gives this mask; a lower one keeps these weights.",
        UserWarning,
        stacklevel=5,
    )


def _shaping_is_ready(detector: DICEDetector) -> bool:
    """Return True if the shaping learns nothing, else raise: it would need all rows at once."""
    shaping = detector.shaping
    # Do not use check_is_fitted here: for a Pipeline it only looks at the last step.
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


class DICEDetector(BaseDICE):
    """Out-of-distribution detector by directed sparsification (DICE).

    This is novelty detection in scikit-learn's terms: the detector is fitted on penultimate
    features of in-distribution inputs, and scores other inputs. It ranks the weights of
    the classifier's last linear layer by their mean contribution, prunes the smallest,
    and scores a row by the energy of the logits that remain. Higher scores are more
    in-distribution. With ``sparsity=0`` it is exactly the energy score; the other
    scores and a shaping of the features make it MSP, MaxLogit, GEN, ReAct, VRA, ASH,
    SCALE and their combinations with DICE.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias), array of shape (n_classes, n_features) or "identity"
        The last linear layer; an array is a weight without a bias. ``"identity"`` is for
        rows that are logits already: the weight is the identity matrix. Give it
        ``sparsity=0``, because pruning sets the logits of the classes with the lowest mean
        to zero.
    sparsity : float in [0, 1), default=0.1
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
        block. ``"auto"`` uses a GPU if torch finds one. A function as `score_func` and a
        shaping of another library are computed by NumPy in any case.
    batch_size : int, default=None
        Rows per block; None chooses them so that a block stays in cache. The number changes
        results by rounding at most.
    n_jobs : int, default=None
        Threads that work on blocks of rows. None is 1 unless in a
        `joblib.parallel_config` context, -1 is all processors. The matrix product
        itself uses the threads of NumPy's BLAS in any case. Where a compiled kernel replaces
        it, None means as many threads as the BLAS would use.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Attributes
    ----------
    head_ : LinearHead
        The last linear layer, before pruning.
    mean_activation_ : ndarray of shape (n_features,), float64
        Mean activation of the in-distribution rows.
    mask_ : ndarray of shape (n_classes, n_features), bool
        True where a weight is kept.
    coef_ : ndarray of shape (n_classes, n_features)
        The masked weight, in the dtype of the head. It is read-only.
    intercept_ : ndarray of shape (n_classes,)
        The head's bias, never pruned.
    contribution_threshold_ : float
        Contributions above it are kept; minus infinity for ``sparsity=0``.
    head_agreement_ : float
        Share of in-distribution rows to which the pruned head gives the class of the full head,
        without the shaping. It is measured in `fit`, on 256 to 4,000 rows that are spread evenly
        over those given, with their weights; `partial_fit` sets none. Below 0.95 a warning
        says that pruning removes evidence that this head needs.
    shaping_ : transformer or None
        The fitted shaping.
    offset_ : float
        The threshold on the scores:
        ``decision_function(X) = score_samples(X) - offset_``, unless `calibrate` set thresholds of
        predicted classes. `fit` sets it to the smallest
        score with more than `contamination` of the rows at or below it, `calibrate` by its
        method. `partial_fit` sets none.
    contamination_ : float
        The contamination of the threshold in force, which `fit` or `calibrate` set last.
    calibration_ : Calibration
        Record of the last `calibrate`, with the attributes `method`, `contamination`,
        `confidence`, `n_samples`, `rank`, `date` and `digest`.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Sorted scores of the rows given to `calibrate` with ``method="conformal"``.
    n_samples_seen_ : int
        Rows in the mean activation.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
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

    Results do not depend on the engine, the device or the blocks beyond rounding, which is that of
    the logits: about 1e-7 of the terms that a logit sums in float32, 1e-16 in float64. That is a
    relative 1e-5 for the scores, but the relative error of ``score_func="msp"`` is the absolute
    error of the logits, and that of ``"gen"`` 0.4 times it: up to 1e-4 for float32 logits of 500.

    For single rows, as in a service, pass floating-point ndarrays in the dtype of the head,
    which spares them scikit-learn's conversions and costs 20 to 30 microseconds beyond the
    matrix product; a list, a data frame or another dtype costs several times that.

    The default sparsity was nowhere worse than the paper's 0.7 on four real networks, and up
    to 9 points of AUROC better. The authors use 0.7 on ImageNet, 0.9 on CIFAR, and 0.1
    together with ReAct on ImageNet. On small networks pruning often hurts: measure.

    Contributions that tie with the threshold are pruned with it. Where many units are
    always zero, as in small networks, several sparsities give the same mask, which prunes
    more than asked for, and a warning says so; ``mask_.mean()`` is the share that was kept. Where
    all tie, so that none would be left, the largest are kept.

    `head_agreement_` needs no outliers and finds the disasters, not the small losses. In our
    measurements DICE detected worse than no pruning wherever it was below 0.95, but for one pair
    of a network and outliers.

    References
    ----------
    Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection",
    ECCV 2022, arXiv:2111.09805. The scores are from arXiv:2010.03759 (energy),
    arXiv:1911.11132 (MaxLogit), arXiv:1610.02136 (MSP) and Liu, Lochman & Zach, CVPR 2023 (GEN).

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

    _parameter_constraints: ClassVar[dict[str, Any]] = BaseDetector._parameter_constraints | {
        "sparsity": [Interval(Real, 0, 1, closed="left")],
        "shaping": [BaseEstimator, None],
        "score_func": [StrOptions(set(SCORES)), callable],
    }

    def __init__(
        self,
        head: Any,
        *,
        sparsity: float = 0.1,
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

    @property
    def _pruning(self) -> tuple[float, Any]:
        return self.sparsity, self.shaping

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Measure the mean activation, prune the head, and set the threshold.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs, as they enter the head.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are known outliers and are left out, so that a search with
            outlier labels trains on inliers only. Rows with any other label, 0 included,
            are fitted as in-distribution.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the mean activation, in the quantiles of a shaping and in the
            threshold; a row of weight 0 is left out. A shaping of another library learns from
            all rows with a weight above 0 alike.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The widths of X and the head do not match, a value is not finite, no row is
            in-distribution, or a parameter is out of its range.
        """
        self._validate_parameters(X)
        with self._unchanged_on_error():
            self._fit_rows(X, y, sample_weight)
        return self

    @available_if(_shaping_is_ready)
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Add a block of rows to the mean activation and prune the head anew.

        Any way of splitting the rows gives the mean that `fit` gives. No threshold is
        set: call `calibrate` once, at the end. A single row that holds a mean
        activation computed elsewhere is enough. Calls from several threads wait for each other.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features), or FeatureStatistics
            Penultimate features of in-distribution inputs, or the `FeatureStatistics` of
            them that other processes gathered.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are left out, as in `fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the mean activation.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X, y or a parameter is refused, for the reasons that `fit` names. The detector is
            left as it was.
        AttributeError
            The shaping has to learn from all rows at once, as a quantile does, so a partial fit
            is not possible.
        """
        self._validate_parameters(X)
        with self._locked():
            head, statistics = self._accumulate(X, y, sample_weight)
            self._statistics = statistics
            if statistics.n_samples == 0:  # only outliers so far
                return self
            # A shaping that learns nothing is fitted on one row, for the number of features.
            self._set_measured(head, as_source(statistics.mean()[None]), Measured(statistics))
            if get_config()["array_api_dispatch"]:
                self._follow(X)
        return self
