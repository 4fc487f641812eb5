"""Scores that look at the features beside the logits: fDBD and ViM, by any array library."""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, from_numpy, namespace_of
from skdice._engines.layer import FDBDLayer, GeometricLayers, ViMLayer
from skdice._scores import SCORES

FloatArray = NDArray[np.floating[Any]]

# Above so many classes no matrix of all pairs of them is kept: it takes 134 MB in float64.
MOST_TABLED_CLASSES = 4096
# A squared distance of two weights that is below this multiple of the rounding error of its terms
# may be nothing but rounding.
ROUNDINGS = 32
# The components of ViM are stacked on the weight of a head of so few classes, because one product
# is faster than two. For more classes the gain does not pay for a copy of the weight.
MOST_STACKED_CLASSES = 512
# A row nearer to the mean than this share of the mean's norm is taken to be as far as that.
LEAST_DISTANCE = 1e-7


class FDBDArrays(NamedTuple):
    """What `fdbd_scores` needs beside the logits, in one dtype on one device.

    `boundaries` is the table of `inverse_distances` of all classes. It is None for a head of many
    classes, which has `centred` and `squares` instead.
    """

    mean: Any
    least_distance: float
    boundaries: Any
    centred: Any
    squares: Any


def fdbd_arrays(weight: FloatArray, mean: FloatArray) -> FDBDArrays:
    """Return what `fdbd_scores` needs, as NumPy arrays in float64."""
    wide = weight.astype(np.float64)
    # The differences of the weights stay the same, and cancel less in the squared distances.
    centred = wide - wide.mean(axis=0)
    squares = np.square(centred).sum(axis=1)
    least = max(LEAST_DISTANCE * float(np.linalg.norm(mean)), 1e-30)
    if len(weight) > MOST_TABLED_CLASSES:
        return FDBDArrays(mean, least, None, centred, squares)
    boundaries = inverse_distances(centred, squares, np.arange(len(weight)))
    return FDBDArrays(mean, least, boundaries, None, None)


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


def fdbd_scores(arrays: FDBDArrays, features: Any, logits: Any) -> Any:
    """Return the mean distance to the decision boundaries over the distance to the mean.

    Parameters
    ----------
    arrays : FDBDArrays
        The fitted state, in the library and dtype of the features.
    features : array of shape (n_samples, n_features)
        A block of features.
    logits : array of shape (n_samples, n_classes)
        Their logits.

    Returns
    -------
    array of shape (n_samples,)
    """
    xp = namespace_of(features)
    predicted = xp.argmax(logits, axis=1)
    if arrays.boundaries is None:
        inverse = inverse_distances(arrays.centred, arrays.squares, predicted)
    else:
        inverse = xp.take(arrays.boundaries, predicted, axis=0)
    margins = xp.max(logits, axis=1, keepdims=True) - logits
    distance = _row_norms(features - arrays.mean)
    return over_distance(_row_products(margins, inverse), distance, arrays.least_distance)


def over_distance(boundary_distance: Any, distance: Any, least_distance: float) -> Any:
    """Return the distance to the boundaries over the distance to the mean."""
    xp = namespace_of(distance)
    least = xp.full_like(distance, least_distance)
    distance = xp.where(distance < least, least, distance)
    # An overflow of the distance must not look like a score of zero.
    distance = xp.where(xp.isfinite(distance), distance, xp.full_like(distance, xp.nan))
    return boundary_distance / distance


def vim_values(
    logits: Any, residual: Any, alpha: float | None = None, *, overwrite: bool = False
) -> Any:
    """Return the energy less alpha times the norm of the residual.

    Parameters
    ----------
    logits : array of shape (n_samples, n_classes)
        Logits.
    residual : array of shape (n_samples, n_residual)
        What the features have in the directions in which in-distribution rows vary least.
    alpha : float, default=None
        Weight of the residual; None for the numbers of each row that it is estimated from.
    overwrite : bool
        True if the memory of the logits may be used.

    Returns
    -------
    array of shape (n_samples,), or (n_samples, 3) where alpha is None
        The scores, or the largest logit, the energy and the norm of the residual.
    """
    xp = namespace_of(logits)
    norm = _row_norms(residual)
    if alpha is None:
        largest = xp.max(logits, axis=1)
        return xp.stack([largest, SCORES["energy"](logits, overwrite=overwrite), norm], axis=1)
    return SCORES["energy"](logits, overwrite=overwrite) - alpha * norm


class PackedGeometry(NamedTuple):
    """The fitted arrays of a group of layers, in one dtype on one device.

    `factors` are transposed matrices that the features are multiplied by, with the vectors that are
    added. `places` are the number of the factor and the columns of its product that hold the
    logits, and then the same for the residual of each `ViMLayer`. `arrays` has an item for each
    layer, None for a `ViMLayer`.
    """

    factors: list[tuple[Any, Any]]
    places: list[tuple[int, slice]]
    arrays: list[FDBDArrays | None]


def packed_geometry(
    group: GeometricLayers, dtype: np.dtype[Any], namespace: Namespace | None = None
) -> PackedGeometry:
    """Return the fitted arrays of a group of layers, which are packed once."""

    def in_place(array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        array = array.astype(dtype, copy=False)
        return array if namespace is None else from_numpy(array, namespace)

    def pack(*_: FloatArray) -> PackedGeometry:
        factors = [(group.weight, group.bias)]
        factors += [
            (each.components, each.shift) for each in group.layers if isinstance(each, ViMLayer)
        ]
        places = [(n, slice(0, len(weight))) for n, (weight, _) in enumerate(factors)]
        if len(group.weight) <= MOST_STACKED_CLASSES:
            stops = accumulate((len(weight) for weight, _ in factors), initial=0)
            places = [(0, slice(start, stop)) for start, stop in pairwise(stops)]
            weights, shifts = zip(*factors, strict=True)
            factors = [(np.concatenate(weights), np.concatenate(shifts))]
        arrays = [
            FDBDArrays(*map(in_place, fdbd_arrays(group.weight, each.mean)))
            if isinstance(each, FDBDLayer)
            else None
            for each in group.layers
        ]
        transposed = [(in_place(weight).T, in_place(shift)) for weight, shift in factors]
        return PackedGeometry(transposed, places, arrays)

    device = () if namespace is None else (namespace.xp, namespace.device)
    return group.packed_as(("geometric", *device, dtype), pack)


def geometric_engine(
    group: GeometricLayers, dtype: np.dtype[Any], namespace: Namespace | None = None
) -> Callable[[Any], list[Any]]:
    """Return the function from a block to the values by each layer of a group.

    Parameters
    ----------
    group : GeometricLayers
        The layers that are computed.
    dtype : dtype
        Dtype in which they are computed.
    namespace : Namespace, default=None
        Library and device of the blocks; None for NumPy.
    """
    layers = group.layers
    factors, places, fitted = packed_geometry(group, dtype, namespace)

    def compute(block: Any) -> list[Any]:
        with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
            if namespace is not None:
                block = namespace.xp.astype(block, getattr(namespace.xp, dtype.name))
            products = []
            for weight, shift in factors:
                product = block @ weight
                product += shift
                products.append(product)
            logits, *residuals = (products[n][:, columns] for n, columns in places)
            values = []
            for n, (layer, arrays) in enumerate(zip(layers, fitted, strict=True)):
                if isinstance(layer, ViMLayer):
                    is_last = n == len(layers) - 1
                    residual = residuals.pop(0)
                    values.append(vim_values(logits, residual, layer.alpha, overwrite=is_last))
                else:
                    values.append(fdbd_scores(cast(FDBDArrays, arrays), block, logits))
            return values

    return compute


def _row_products(a: Any, b: Any) -> Any:
    """Return the sum of the products of each row of two arrays."""
    if isinstance(a, np.ndarray):
        return np.einsum("ij,ij->i", a, b)  # without an array of the products
    return namespace_of(a).sum(a * b, axis=1)


def _row_norms(rows: Any) -> Any:
    """Return the norm of each row."""
    return namespace_of(rows).sqrt(_row_products(rows, rows))
