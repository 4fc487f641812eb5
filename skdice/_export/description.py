"""What an exported detector consists of, as arrays and numbers. Importing this imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.layer import Layer
from skdice._engines.reference_scores import Combination, ReferenceDistribution
from skdice._head import LinearHead
from skdice._passes.threshold import Calibration

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class CombinedLayers:
    """Several layers whose scores become one by their p-values among reference scores.

    Parameters
    ----------
    layers : tuple of Layer or CombinedLayers
        What the members compute.
    references : tuple of ReferenceDistribution
        The reference scores of each member.
    combination : {"fisher", "min"}
        Mean or minimum of the logarithms of the p-values.
    """

    layers: tuple[Layer | CombinedLayers, ...]
    references: tuple[ReferenceDistribution, ...]
    combination: Combination


@dataclass(frozen=True, eq=False)
class ClassThresholds:
    """A threshold for each predicted class.

    Parameters
    ----------
    head : LinearHead
        The head that predicts the class, without a mask.
    thresholds : ndarray of shape (n_classes,), float64
        The threshold of each class.
    fallback_classes : ndarray of int
        Classes with too few calibration rows, which have the threshold of all rows.
    calibration_classes : ndarray of shape (n_calibration,), int
        Predicted class of each calibration score.
    """

    head: LinearHead
    thresholds: FloatArray
    fallback_classes: NDArray[np.integer[Any]]
    calibration_classes: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class FittedDetector:
    """A fitted detector as it is exported.

    Parameters
    ----------
    kind : str
        Name of the class of the detector.
    layer : Layer or CombinedLayers
        What computes the scores.
    n_features : int
        Number of features.
    n_classes : int or None
        Number of classes of the head, where there is one.
    threshold : float or None
        Threshold on the scores of rows of any class; None where the detector has none.
    contamination : float or None
        Share of in-distribution rows below the threshold.
    calibration : Calibration or None
        Record of the calibration, where there was one.
    calibration_scores : ndarray of shape (n_calibration,) or None
        Sorted scores of the rows of a conformal calibration.
    by_class : ClassThresholds or None
        The thresholds by predicted class, where the detector has some.
    """

    kind: str
    layer: Layer | CombinedLayers
    n_features: int
    n_classes: int | None
    threshold: float | None
    contamination: float | None
    calibration: Calibration | None
    calibration_scores: FloatArray | None
    by_class: ClassThresholds | None = None


def exported_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of an exported detector, if it is float32 or float64."""
    for known in (np.dtype(np.float32), np.dtype(np.float64)):
        # A dtype is equal to its scalar type, but float64 is equal to None, too.
        if dtype is not None and dtype in (known, known.name):
            return known
    raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
