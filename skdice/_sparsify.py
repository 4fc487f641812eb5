"""The method of DICE: the contribution of each weight, the threshold and the mask.

These are pure functions of arrays. A sparsity is a fraction in [0, 1) everywhere; the authors'
code gives it as a percentage.

Source: Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution
Detection", ECCV 2022, arXiv:2111.09805.
"""

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
    # Ignore the warning, because `threshold_masks` raises an error for infinite contributions.
    with np.errstate(over="ignore"):
        values: NDArray[np.float64] = np.multiply(mean_activation, weight, dtype=np.float64)
    return values


def threshold_masks(
    values: NDArray[np.float64], sparsities: Sequence[float]
) -> list[tuple[NDArray[np.bool_], float]]:
    """Return the mask of the values above their percentile, and that percentile, by sparsity.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        The values by which the weights are ranked: the contributions.
    sparsities : sequence of float in [0, 1)
        The fractions of the weights that are pruned. 0 keeps every weight.

    Returns
    -------
    list of (mask, threshold), one for each sparsity
        The mask, (n_classes, n_features), is True where the weight is kept: ``values >
        threshold``. If no value exceeds the threshold because of ties, the weights with the
        maximal value are kept. The threshold is ``np.percentile(values, 100 * sparsity)``; it is
        minus infinity for sparsity 0.

    Raises
    ------
    ValueError
        A percentile is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> values = contribution(np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([1.0, 0.5]))
    >>> ((mask, threshold),) = threshold_masks(values, [0.5])
    >>> mask
    array([[False, False],
           [ True,  True]])
    >>> threshold
    1.25
    """
    # NumPy finds all percentiles in one selection, which takes O(n_classes * n_features). Its
    # warning about infinities of both signs is ignored because the loop below raises for them.
    with np.errstate(invalid="ignore"):
        thresholds = np.percentile(values, 100 * np.asarray(sparsities, np.float64)).tolist()
    masks: list[tuple[NDArray[np.bool_], float]] = []
    for sparsity, threshold in zip(sparsities, thresholds, strict=True):
        if sparsity == 0:
            # No pruning is no mask: percentile 0 with `>` would drop the smallest contribution.
            masks.append((np.ones(values.shape, dtype=np.bool_), -np.inf))
            continue
        if not np.isfinite(threshold):
            raise ValueError(
                f"the {100 * sparsity:g}th percentile of the contributions is {threshold}: "
                "mean activation times weight exceeds the range of float64"
            )
        mask = values > threshold
        masks.append((mask if mask.any() else values == values.max(), threshold))
    return masks
