"""Which weights of the head are kept: contribution, threshold and mask.

Pure functions on arrays. Sparsity is a fraction in [0, 1) throughout.

Source: Sun & Li, "DICE: Leveraging Sparsification for Out-of-Distribution
Detection", ECCV 2022, arXiv:2111.09805.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

Ranking = Literal["contribution", "magnitude", "unit_activation", "random"]


def contribution(
    weight: NDArray[np.floating[Any]], mean_activation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the contribution matrix V = mean activation * weight.

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
    with np.errstate(over="ignore"):  # found by `threshold_mask`, with a message
        values: NDArray[np.float64] = np.multiply(mean_activation, weight, dtype=np.float64)
    return values


def ranking_values(
    weight: NDArray[np.floating[Any]],
    mean_activation: NDArray[np.float64],
    *,
    ranking: Ranking = "contribution",
    random_state: int | np.random.RandomState | None = None,
) -> NDArray[np.float64]:
    """Return the value by which each weight is ranked; the largest are kept.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the last linear layer.
    mean_activation : ndarray of shape (n_features,), float64
        Mean in-distribution activation of each penultimate unit.
    ranking : {"contribution", "magnitude", "unit_activation", "random"}
        ``"contribution"`` is DICE. The others are the ablations of the paper:
        the absolute weight, the unit's mean activation alone, and chance.
    random_state : int, RandomState or None
        Seed of the ``"random"`` ranking.

    Returns
    -------
    ndarray of shape (n_classes, n_features), float64
    """
    match ranking:
        case "contribution":
            return contribution(weight, mean_activation)
        case "magnitude":
            magnitude: NDArray[np.float64] = np.abs(weight, dtype=np.float64)
            return magnitude
        case "unit_activation":
            return np.broadcast_to(mean_activation, weight.shape)
        case "random":
            chance: NDArray[np.float64] = check_random_state(random_state).uniform(
                size=weight.shape
            )
            return chance
    raise ValueError(
        "ranking must be 'contribution', 'magnitude', 'unit_activation' or 'random', "
        f"got {ranking!r}"
    )


def threshold_mask(values: NDArray[np.float64], sparsity: float) -> tuple[NDArray[np.bool_], float]:
    """Return the mask of the values above their percentile, and that percentile.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        Ranking values, the contribution matrix for DICE.
    sparsity : float in [0, 1)
        Fraction of the weights pruned. 0 keeps every weight.

    Returns
    -------
    mask : ndarray of shape (n_classes, n_features), bool
        True where the weight is kept: ``values > threshold``. Where ties leave
        nothing, the maximal values are kept.
    threshold : float
        ``np.percentile(values, 100 * sparsity)``; minus infinity for sparsity 0.
    """
    # NumPy selects rather than sorts: O(n_classes * n_features).
    return threshold_masks(values, [sparsity])[0]


def mask_above(
    values: NDArray[np.float64], sparsity: float, threshold: float
) -> tuple[NDArray[np.bool_], float]:
    """Return the mask and the threshold of `threshold_mask`, given the percentile."""
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
    """Return what `threshold_mask` does for each sparsity, from one selection for all.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_features), float64
        Ranking values.
    sparsities : sequence of float in [0, 1)
        Fractions of the weights pruned.
    """
    with np.errstate(invalid="ignore"):
        thresholds = np.percentile(values, [100 * each for each in sparsities])
    return [
        mask_above(values, each, float(threshold))
        for each, threshold in zip(sparsities, thresholds, strict=True)
    ]


def sparsity_mask(
    weight: NDArray[np.floating[Any]],
    mean_activation: NDArray[np.float64],
    sparsity: float,
    *,
    ranking: Ranking = "contribution",
    random_state: int | np.random.RandomState | None = None,
) -> tuple[NDArray[np.bool_], float]:
    """Return the mask of the weights that are kept, and its threshold.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the last linear layer.
    mean_activation : ndarray of shape (n_features,), float64
        Mean in-distribution activation of each penultimate unit.
    sparsity : float in [0, 1)
        Fraction of the weights pruned. 0 keeps every weight.
    ranking : {"contribution", "magnitude", "unit_activation", "random"}
        See `ranking_values`.
    random_state : int, RandomState or None
        Seed of the ``"random"`` ranking.

    Returns
    -------
    mask : ndarray of shape (n_classes, n_features), bool
        True where the weight is kept.
    threshold : float
        The percentile of the ranking values; minus infinity for sparsity 0.

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
    values = ranking_values(weight, mean_activation, ranking=ranking, random_state=random_state)
    return threshold_mask(values, sparsity)
