"""Pseudo-outliers made of in-distribution features, for choosing without any OOD data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._head import LinearHead

FloatArray = NDArray[np.floating[Any]]


def permuted(features: FloatArray, head: LinearHead, rng: np.random.Generator) -> FloatArray:
    """Return the features with each column permuted by itself: moments kept, structure lost."""
    return rng.permuted(features, axis=0)


def mixed(features: FloatArray, head: LinearHead, rng: np.random.Generator) -> FloatArray:
    """Return means of two rows that the head takes for different classes.

    Raises
    ------
    ValueError
        The head takes all rows for one class.
    """
    classes = (features @ head.weight.T + head.bias).argmax(axis=1)
    if (classes == classes[0]).all():
        raise ValueError(
            f"outliers='mixture' mixes rows of different classes, but the head takes all "
            f"{len(features)} rows of a fold for class {classes[0]}"
        )
    partner = rng.integers(0, len(features), len(features))
    while len(alike := np.flatnonzero(classes[partner] == classes)):
        partner[alike] = rng.integers(0, len(features), len(alike))
    return (features + features[partner]) / 2


def noise(features: FloatArray, head: LinearHead, rng: np.random.Generator) -> FloatArray:
    """Return normal noise with each column's mean and variance, within its range."""
    mean, deviation = (each(features, axis=0, dtype=np.float64) for each in (np.mean, np.std))
    values = rng.normal(mean, deviation, features.shape)
    return np.clip(values, features.min(axis=0), features.max(axis=0)).astype(features.dtype)


GENERATORS: dict[str, Callable[[FloatArray, LinearHead, np.random.Generator], FloatArray]] = {
    "permutation": permuted,
    "mixture": mixed,
    "noise": noise,
}
