"""DICEDetector: parameters, validation and the fitted state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if

from skdice._base import BaseDICE, in_distribution
from skdice._compat.sklearn import (
    Interval,
    MatchingOptions,
    StrOptions,
)
from skdice._engines import CUDA_DEVICE, DEVICES, block_threads
from skdice._engines.scoring import fitted_shaping
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics, add_rows
from skdice._rows.sources import Rows
from skdice._scores import SCORES
from skdice._sparsify import sparsity_mask

FloatArray = NDArray[np.floating[Any]]


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


class DICEDetector(BaseDICE):
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
        itself uses the threads of NumPy's BLAS in any case; where the sparse engine takes
        its place, None is as many as those.
    verbose : int, default=0
        Above 0, progress bars on stderr.

    Attributes
    ----------
    mean_activation_ : ndarray of shape (n_features,), float64
        Mean activation of the in-distribution rows.
    mask_ : ndarray of shape (n_classes, n_features), bool
        True where a weight is kept.
    coef_ : ndarray of shape (n_classes, n_features)
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

    For single rows, as in a service, pass floating-point ndarrays in the dtype of the head,
    which spares them scikit-learn's conversions and costs 40 to 70 microseconds beyond the
    matrix product; a list, a data frame or another dtype costs several times that.

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
        self._validate_parameters(X)
        with self._unchanged_on_error():
            rows = self._validate_rows(X, reset=True)
            head = self._resolve_head(rows.shape[1])
            n_given, rows = rows.shape[0], in_distribution(rows, y)
            statistics = self._add_rows(FeatureStatistics(rows.shape[1]), rows)
            if statistics.n_samples == 0:
                number = "" if np.isnan(n_given) else f"{n_given} "
                raise ValueError(
                    f"all {number}rows are labelled -1, which marks known outliers: no "
                    "in-distribution row is left to fit on. Where folds are cut from labels in "
                    "sorted order, shuffle and stratify them: StratifiedKFold(shuffle=True)."
                    if y is not None
                    else "Found array with 0 sample(s) while a minimum of 1 is required."
                )
            shaping = fitted_shaping(self.shaping, rows, self.verbose)
            self._set_state(head, statistics, shaping)
            self.offset_ = self._threshold(rows, self.contamination)
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
        X : array-like or source of rows, of shape (n_samples, n_features), or FeatureStatistics
            Penultimate features of in-distribution inputs, or the `FeatureStatistics` of
            them that other processes gathered.
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
        self._validate_parameters(X)
        with self._unchanged_on_error():
            statistics = FeatureStatistics()
            if hasattr(self, "_statistics"):
                statistics.merge(self._statistics)
            if isinstance(X, FeatureStatistics):
                head = self._resolve_head(self._merge(statistics, X, y))
            else:
                rows = self._validate_rows(X, reset=statistics.n_features is None)
                head = self._resolve_head(rows.shape[1])
                rows = in_distribution(rows, y)
                statistics.merge(self._add_rows(FeatureStatistics(rows.shape[1]), rows))
            self._statistics = statistics
            if statistics.n_samples == 0:  # outliers alone, so far
                return self
            # What learns nothing needs one row for its number of features.
            shaping = fitted_shaping(self.shaping, statistics.mean()[None])
            self._set_state(head, statistics, shaping)
            # A threshold from before belongs to another mask.
            if hasattr(self, "offset_"):
                del self.offset_
            self._follow(X)
        return self

    def _add_rows(self, statistics: FeatureStatistics, rows: Rows) -> FeatureStatistics:
        add_rows(
            statistics,
            rows,
            batch_size=self.batch_size,
            n_threads=max(2, block_threads(self.n_jobs)),
            verbose=self.verbose,
        )
        return statistics

    def _merge(self, statistics: FeatureStatistics, X: FeatureStatistics, y: Any) -> int:
        """Merge statistics of other rows into those so far; return the number of features."""
        if y is not None:
            raise ValueError("y is given with statistics, which have no rows: leave it out")
        if X.n_features is None:
            raise ValueError("the statistics have no rows and no number of features")
        statistics.merge(X)
        if not hasattr(self, "n_features_in_"):
            self.n_features_in_ = X.n_features
        return X.n_features

    def _set_state(self, head: LinearHead, statistics: FeatureStatistics, shaping: Any) -> None:
        mean_activation = statistics.mean()
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
        self._set_fitted(head, statistics, mean_activation, mask, threshold, shaping)
