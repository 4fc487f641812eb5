"""Calibration through the steps of a pipeline."""

from typing import Any, Literal

from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skdice._base import BaseDetector


def calibrate(
    estimator: Any,
    X: ArrayLike,
    contamination: float | None = None,
    *,
    method: Literal["quantile", "conformal"] = "quantile",
    confidence: float | None = None,
    by: Literal["prediction"] | None = None,
) -> Any:
    """Set the threshold of a detector at the end of a pipeline from held-out rows.

    The rows go through the earlier steps, and the last step is calibrated. Nothing is refitted.

    Parameters
    ----------
    estimator : Pipeline or outlier detector of skdice
        A fitted Pipeline that ends in a detector of skdice, or such a detector.
    X : array-like of shape (n_samples, n_features)
        Rows of in-distribution inputs that `fit` has not seen, as the first step takes them.
    contamination : float in (0, 0.5], default=None
        Share of rows below the threshold; None takes the parameter of the detector.
    method : {"quantile", "conformal"}, default="quantile"
        The rule of the threshold, as for `DICEDetector.calibrate`.
    confidence : float in (0, 1), default=None
        The confidence in the share of future rows, as for `DICEDetector.calibrate`.
    by : {None, "prediction"}, default=None
        What has a threshold of its own, as for `DICEDetector.calibrate`.

    Returns
    -------
    Pipeline or outlier detector
        The estimator that was given.

    Raises
    ------
    TypeError
        The estimator, or the last step of the pipeline, is not a detector of skdice.
    ValueError
        `DICEDetector.calibrate` raises it.
    sklearn.exceptions.NotFittedError
        The estimator is not fitted.

    Examples
    --------
    >>> import skdice
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from skdice.shaping import ReAct
    >>> data = load_fashion_mnist_ood()
    >>> pipeline = make_pipeline(ReAct(), skdice.DICEDetector(data.head)).fit(data.id_train)
    >>> pipeline = skdice.calibrate(
    ...     pipeline, data.id_test[:1500], 0.05, method="conformal", by="prediction"
    ... )
    >>> f"{(pipeline.predict(data.ood['mnist']) == -1).mean():.0%}"
    '95%'
    """
    is_pipeline = isinstance(estimator, Pipeline)
    detector = estimator.steps[-1][1] if is_pipeline else estimator
    if not isinstance(detector, BaseDetector):
        name = "the last step of the pipeline" if is_pipeline else "estimator"
        raise TypeError(f"{name} is {detector!r}, expected an outlier detector of skdice")
    if is_pipeline and len(estimator.steps) > 1:
        # Do not ask the pipeline, which only looks at its last step.
        check_is_fitted(detector)
        X = estimator[:-1].transform(X)
    detector.calibrate(X, contamination, method=method, confidence=confidence, by=by)
    return estimator
