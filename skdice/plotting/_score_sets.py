"""Scores of in-distribution rows and of named OOD sets, from whatever a display is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.validation import check_is_fitted

from skdice._compat.arrays import to_host
from skdice.metrics._rates import labelled, validated
from skdice.metrics._report import score_rows

FloatArray = NDArray[np.floating[Any]]

ID_NAME = "in-distribution"
OOD_NAME = "out-of-distribution"


def named_sets(ood: Any, id_name: str) -> dict[str, Any]:
    """Return OOD sets by name; one that is given alone is named for what it is.

    Raises
    ------
    ValueError
        There is no set, or one has the name of the in-distribution rows.
    """
    sets = dict(ood) if isinstance(ood, Mapping) else {OOD_NAME: ood}
    if not sets:
        raise ValueError("ood is an empty mapping, expected at least one set")
    if id_name in sets:
        raise ValueError(f"an OOD set is named {id_name!r}, as are the in-distribution rows")
    return sets


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a set before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def estimator_scores(
    detector: Any, X_id: Any, ood: Any, id_name: str
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return the scores of rows by a fitted detector, block by block where it can."""
    sets = named_sets(ood, id_name)
    check_is_fitted(detector)

    def scores_of(name: str, X: Any) -> FloatArray:
        with naming(name):
            return score_rows(detector, X)

    return scores_of(id_name, X_id), {name: scores_of(name, X) for name, X in sets.items()}


def labelled_scores(y_true: ArrayLike, y_score: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the scores of the rows labelled +1, and of those labelled -1."""
    labels, scores = validated(y_true, y_score)
    return scores[labels == 1], scores[labels == -1]


def checked_scores(
    id_scores: ArrayLike, ood_scores: Any, id_name: str
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return scores as arrays of finite values, one of each at least."""
    sets = named_sets(ood_scores, id_name)
    return _finite(id_name, id_scores), {name: _finite(name, each) for name, each in sets.items()}


def by_set(
    metric: Callable[..., float], id_scores: FloatArray, ood_scores: Mapping[str, FloatArray]
) -> dict[str, float]:
    """Return a metric of labels and scores for each set against the in-distribution rows."""
    return {name: metric(*labelled(id_scores, each)) for name, each in ood_scores.items()}


def _finite(name: str, scores: ArrayLike) -> FloatArray:
    with naming(name):
        array = check_array(
            to_host(scores), ensure_2d=False, dtype=[np.float64, np.float32], input_name="scores"
        )
        values: FloatArray = column_or_1d(array)
    return values
