"""FDBDDetector: the distance to the decision boundaries of the classifier."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config

from skdice._base import BaseDetector
from skdice._engines.layer import FDBDLayer
from skdice._head import LinearHead
from skdice._passes.mean import FeatureStatistics, Measured, Wanted
from skdice._rows.sources import RowSource


class FDBDDetector(BaseDetector):
    """Out-of-distribution detector by the distance to the decision boundaries (fDBD).

    The score of a row is its mean distance to the boundaries between its predicted class and
    the other classes, divided by its distance to the mean of the in-distribution rows. Higher
    scores are more in-distribution. There is nothing to choose.

    Parameters
    ----------
    head : LinearHead, tuple (weight, bias), array of shape (n_classes, n_features) or "identity"
        The last linear layer, of at least two classes with different weights; an array is a
        weight without a bias. ``"identity"`` is for rows that are logits already.
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
    mean_activation_ : ndarray of shape (n_features,), float64
        Mean activation of the in-distribution rows.
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
        Rows in the mean activation.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, where X had them, all strings.

    See Also
    --------
    DICEDetector : Prunes the head and scores by the logits.
    ViMDetector : Looks at the part of the features that the head does not use.

    Notes
    -----
    With the logits ``f = W h + b`` of features h, the predicted class y and the mean activation
    mu, the score is the mean of ``(f_y - f_c) / |w_y - w_c|`` over the classes c other than y,
    divided by ``|h - mu|``.

    Two classes with equal weights have no boundary between them and are left out of the mean. A
    row nearer to the mean than 1e-7 of the norm of the mean counts as that far away, so that its
    score is finite. Heads of up to 4,096 classes keep a table of the distances of all pairs of
    weights; for larger heads each block computes the distances of its predicted classes, which
    takes a second matrix product.

    References
    ----------
    Liu & Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024,
    arXiv:2312.11536.

    Examples
    --------
    >>> from skdice import FDBDDetector
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> data = load_fashion_mnist_ood()
    >>> detector = FDBDDetector(data.head).fit(data.id_train).calibrate(data.id_test[:2000])
    >>> f"{(detector.predict(data.id_test[2000:]) == -1).mean():.0%}"
    '5%'
    >>> bool((detector.predict(data.ood["mnist"]) == -1).mean() > 0.5)
    True
    """

    mean_activation_: NDArray[np.float64]
    _layer: FDBDLayer
    _fitted_arrays = ("mean_activation_",)

    def __init__(
        self,
        head: Any,
        *,
        contamination: float = 0.05,
        device: str | None = None,
        batch_size: int | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.contamination = contamination
        self.device = device
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Measure the mean activation and set the threshold.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Penultimate features of in-distribution inputs, as they enter the head.
        y : array-like of shape (n_samples,), default=None
            Rows labelled -1 are known outliers and are left out.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows in the mean activation and in the threshold; a row of weight 0 is
            left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The widths of X and the head do not match, the head has no two classes with different
            weights, a value is not finite, no row is in-distribution, or a parameter is out of its
            range.
        """
        self._validate_parameters(X)
        with self._unchanged_on_error():
            self._fit_rows(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Add a block of rows to the mean activation.

        Any way of splitting the rows gives the mean that `fit` gives. No threshold is set: call
        `calibrate` once, at the end. Calls from several threads wait for each other.

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
        """
        self._validate_parameters(X)
        with self._locked():
            head, statistics = self._accumulate(X, y, sample_weight)
            self._statistics = statistics
            if statistics.n_samples:  # else there were only outliers so far
                self._set_fitted(head, statistics)
                if get_config()["array_api_dispatch"]:
                    self._follow(X)
        return self

    def _wanted(self, head: LinearHead, rows: RowSource) -> Wanted:
        return Wanted()

    def _set_measured(self, head: LinearHead, rows: RowSource, measured: Measured) -> FDBDLayer:
        self._set_fitted(head, measured.statistics)
        return self._layer

    def _set_values(self, rows: RowSource, values: Any, measured: Measured) -> Any:
        return values

    def _set_fitted(self, head: LinearHead, statistics: FeatureStatistics) -> None:
        if (head.weight == head.weight[0]).all():
            raise ValueError(
                f"the head has no decision boundary: all {head.n_classes} of its classes have one "
                f"weight (n_features = {head.n_features}); FDBDDetector needs at least two classes "
                "with different weights"
            )
        self._forget_threshold()
        self._fit_namespace = None
        self.head_ = head
        self._statistics = statistics
        self.n_samples_seen_ = statistics.n_samples
        self.mean_activation_ = statistics.mean()
        self._layer = FDBDLayer(head.weight, head.bias, self.mean_activation_)
