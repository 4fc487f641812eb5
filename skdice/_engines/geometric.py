"""Scores that look at the features beside the logits: fDBD and ViM, by any array library."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, from_numpy, namespace_of
from skdice._engines.layer import FDBDLayer, ViMLayer
from skdice._scores import SCORES

FloatArray = NDArray[np.floating[Any]]

# Above so many classes no matrix of all pairs of them is kept: it takes 134 MB in float64.
MOST_TABLED_CLASSES = 4096
# A squared distance of two weights that is below this multiple of the rounding error of its terms
# may be nothing but rounding.
ROUNDINGS = 32
# A row nearer to the mean than this share of the mean's norm is taken to be as far as that.
LEAST_DISTANCE = 1e-7


class FDBDArrays(NamedTuple):
    """What `fdbd_scores` needs, in one dtype on one device.

    `boundaries` is the table of `inverse_distances` of all classes. It is None for a head of many
    classes, which has `centred` and `squares` instead.
    """

    weight: Any
    bias: Any
    mean: Any
    least_distance: float
    boundaries: Any
    centred: Any
    squares: Any


class ViMArrays(NamedTuple):
    """What `vim_scores` needs, in one dtype on one device."""

    weight: Any
    bias: Any
    components: Any
    shift: Any


def fdbd_arrays(weight: FloatArray, bias: FloatArray, mean: FloatArray) -> FDBDArrays:
    """Return what `fdbd_scores` needs, as NumPy arrays in float64."""
    wide = weight.astype(np.float64)
    # The differences of the weights stay the same, and cancel less in the squared distances.
    centred = wide - wide.mean(axis=0)
    squares = np.square(centred).sum(axis=1)
    boundaries = None
    if len(weight) <= MOST_TABLED_CLASSES:
        boundaries = inverse_distances(centred, squares, np.arange(len(weight)))
    least = max(LEAST_DISTANCE * float(np.linalg.norm(mean)), 1e-30)
    is_tabled = boundaries is not None
    return FDBDArrays(
        weight,
        bias,
        mean,
        least,
        boundaries,
        None if is_tabled else centred,
        None if is_tabled else squares,
    )


def inverse_distances(centred: Any, squares: Any, classes: Any) -> Any:
    """Return what the margins between some classes and all others are multiplied by.

    That is ``1 / |w_y - w_c|`` over the number of classes c that have a boundary with y, and zero
    where there is no boundary, because the two weights are equal.

    Parameters
    ----------
    centred : array of shape (n_classes, n_features)
        Weight, less its mean over the classes.
    squares : array of shape (n_classes,)
        Squared norms of the rows of `centred`.
    classes : array of shape (n,), int
        The classes y.

    Returns
    -------
    array of shape (n, n_classes)
    """
    xp = namespace_of(centred)
    sums = xp.take(squares, classes, axis=0)[:, None] + squares[None, :]
    squared = sums - 2 * (xp.take(centred, classes, axis=0) @ centred.T)
    is_apart = squared > ROUNDINGS * float(xp.finfo(squared.dtype).eps) * sums
    one, zero = xp.ones_like(sums), xp.zeros_like(sums)
    inverse = xp.where(is_apart, 1 / xp.sqrt(xp.where(is_apart, squared, one)), zero)
    n_boundaries = xp.sum(xp.where(is_apart, one, zero), axis=1, keepdims=True)
    return inverse / xp.where(n_boundaries > 0, n_boundaries, one[:, :1])


def fdbd_scores(arrays: FDBDArrays, features: Any, logits: Any = None) -> Any:
    """Return the mean distance to the decision boundaries over the distance to the mean.

    Parameters
    ----------
    arrays : FDBDArrays
        The fitted state, in the library and dtype of the features.
    features : array of shape (n_samples, n_features)
        A block of features.
    logits : array of shape (n_samples, n_classes), default=None
        Their logits, where they are known already.

    Returns
    -------
    array of shape (n_samples,)
    """
    xp = namespace_of(features)
    if logits is None:
        logits = features @ arrays.weight.T + arrays.bias
    predicted = xp.argmax(logits, axis=1)
    if arrays.boundaries is None:
        inverse = inverse_distances(arrays.centred, arrays.squares, predicted)
    else:
        inverse = xp.take(arrays.boundaries, predicted, axis=0)
    margins = xp.max(logits, axis=1, keepdims=True) - logits
    boundary_distance = xp.sum(margins * inverse, axis=1)
    distance = _row_norms(xp, features - arrays.mean)
    least = xp.full_like(distance, arrays.least_distance)
    distance = xp.where(distance < least, least, distance)
    # An overflow of the distance must not look like a score of zero.
    distance = xp.where(xp.isfinite(distance), distance, xp.full_like(distance, xp.nan))
    return boundary_distance / distance


def vim_scores(arrays: ViMArrays, features: Any, logits: Any = None, alpha: Any = None) -> Any:
    """Return the energy less alpha times the norm of the residual.

    Parameters
    ----------
    arrays : ViMArrays
        The fitted state, in the library and dtype of the features.
    features : array of shape (n_samples, n_features)
        A block of features.
    logits : array of shape (n_samples, n_classes), default=None
        Their logits, where they are known already. They are not changed.
    alpha : float, default=None
        Weight of the residual; None for the numbers of each row that it is estimated from.

    Returns
    -------
    array of shape (n_samples,), or (n_samples, 3) where alpha is None
        The scores, or the largest logit, the energy and the norm of the residual.
    """
    xp = namespace_of(features)
    is_own = logits is None
    if is_own:
        logits = features @ arrays.weight.T + arrays.bias
    residual = _row_norms(xp, features @ arrays.components.T + arrays.shift)
    if alpha is None:
        largest = xp.max(logits, axis=1)
        return xp.stack([largest, SCORES["energy"](logits, overwrite=is_own), residual], axis=1)
    return SCORES["energy"](logits, overwrite=is_own) - alpha * residual


def geometric_engine(
    layer: FDBDLayer | ViMLayer, dtype: np.dtype[Any], namespace: Namespace | None = None
) -> Callable[[Any], Any]:
    """Return the function from a block to its values.

    Parameters
    ----------
    layer : FDBDLayer or ViMLayer
        The layer that is computed.
    dtype : dtype
        Dtype in which it is computed.
    namespace : Namespace, default=None
        Library and device of the blocks; None for NumPy.
    """
    scores = score_function(layer, dtype, namespace)

    def compute(block: Any) -> Any:
        with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
            if namespace is not None:
                block = namespace.xp.astype(block, getattr(namespace.xp, dtype.name))
            return scores(block)

    return compute


def score_function(
    layer: FDBDLayer | ViMLayer, dtype: np.dtype[Any], namespace: Namespace | None = None
) -> Callable[..., Any]:
    """Return the function from features, and their logits where these are known, to the values."""

    def in_place(array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        array = array.astype(dtype, copy=False)
        return array if namespace is None else from_numpy(array, namespace)

    def pack(*arrays: FloatArray) -> FDBDArrays | ViMArrays:
        if isinstance(layer, FDBDLayer):
            return FDBDArrays(*map(in_place, fdbd_arrays(*arrays)))
        return ViMArrays(*map(in_place, arrays))

    place = () if namespace is None else (namespace.xp, namespace.device)
    arrays: Any = layer.packed_as(("geometric", *place, dtype), pack)
    if isinstance(layer, FDBDLayer):
        return partial(fdbd_scores, arrays)
    return partial(vim_scores, arrays, alpha=layer.alpha)


def _row_norms(xp: Any, rows: Any) -> Any:
    """Return the norm of each row."""
    return xp.sqrt(xp.sum(rows * rows, axis=1))
