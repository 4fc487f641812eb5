"""The method of DICE: the contribution of each weight, the threshold and the mask.

These are pure functions of arrays. A sparsity is a fraction in [0, 1) everywhere; the authors'
code gives it as a percentage.

Source: Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution
Detection", ECCV 2022, arXiv:2111.09805.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def contribution(
    weight: NDArray[np.floating[Any]], mean_activation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the contribution matrix, the mean activation times the weight.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the last linear layer.
    mean_activation : ndarray of shape (n_features,), float64
        Mean in-distribution activation of each penultimate unit.

    Returns
    -------
    ndarray of shape (n_classes, n_features), float64
    """
    # `_mask_above` raises for infinite contributions, with a message; a warning says less.
    with np.errstate(over="ignore"):
        values: NDArray[np.float64] = np.multiply(mean_activation, weight, dtype=np.float64)
    return values


def threshold_mask(values: NDArray[np.float64], sparsity: float) -> tuple[NDArray[np.bool_], float]:
    """Return the mask of the values above their percentile, and that percentile.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        The values by which the weights are ranked: the contributions.
    sparsity : float in [0, 1)
        The fraction of the weights that is pruned. 0 keeps every weight.

    Returns
    -------
    mask : ndarray of shape (n_classes, n_features), bool
        True where the weight is kept: ``values > threshold``. If no value exceeds the
        threshold because of ties, the weights with the maximal value are kept.
    threshold : float
        ``np.percentile(values, 100 * sparsity)``; minus infinity for sparsity 0.
    """
    return threshold_masks(values, [sparsity])[0]


def _mask_above(
    values: NDArray[np.float64], sparsity: float, threshold: float
) -> tuple[NDArray[np.bool_], float]:
    """Return the mask and the threshold of `threshold_mask`, given the percentile.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        The values by which the weights are ranked: the contributions.
    sparsity : float in [0, 1)
        The fraction of the weights that is pruned.
    threshold : float
        ``np.percentile(values, 100 * sparsity)``.

    Raises
    ------
    ValueError
        The percentile is not finite.
    """
    # No pruning is no mask: percentile 0 with `>` would drop the smallest contribution.
    if sparsity == 0:
        return np.ones(values.shape, dtype=np.bool_), -np.inf
    if not np.isfinite(threshold):
        raise ValueError(
            f"the {100 * sparsity:g}th percentile of the contributions is {threshold}: "
            "mean activation times weight exceeds the range of float64"
        )
    mask = values > threshold
    if not mask.any():
        mask = values == values.max()
    return mask, threshold


def threshold_masks(
    values: NDArray[np.float64], sparsities: Sequence[float]
) -> list[tuple[NDArray[np.bool_], float]]:
    """Return the mask and the threshold of `threshold_mask` for each of several sparsities.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        The values by which the weights are ranked: the contributions.
    sparsities : sequence of float in [0, 1)
        The fractions of the weights that are pruned.
    """
    # NumPy finds all percentiles in one selection, which takes O(n_classes * n_features). It
    # warns where infinities of both signs meet; `_mask_above` raises then.
    with np.errstate(invalid="ignore"):
        thresholds = np.percentile(values, [100 * each for each in sparsities])
    return [
        _mask_above(values, each, float(threshold))
        for each, threshold in zip(sparsities, thresholds, strict=True)
    ]


def sparsity_mask(
    weight: NDArray[np.floating[Any]], mean_activation: NDArray[np.float64], sparsity: float
) -> tuple[NDArray[np.bool_], float]:
    """Return the mask of the weights that DICE keeps, and the threshold.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the last linear layer.
    mean_activation : ndarray of shape (n_features,), float64
        Mean in-distribution activation of each penultimate unit.
    sparsity : float in [0, 1)
        The fraction of the weights that is pruned. 0 keeps every weight.

    Returns
    -------
    mask : ndarray of shape (n_classes, n_features), bool
        True where the weight is kept.
    threshold : float
        The percentile of the contributions; minus infinity for sparsity 0.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[1.0, -1.0], [2.0, 3.0]])
    >>> mask, threshold = sparsity_mask(weight, np.array([1.0, 0.5]), 0.5)
    >>> mask
    array([[False, False],
           [ True,  True]])
    >>> threshold
    1.25
    """
    return threshold_mask(contribution(weight, mean_activation), sparsity)
