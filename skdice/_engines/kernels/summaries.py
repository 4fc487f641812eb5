"""The kernels of `RowSummaries`, compiled by numba; imported by that class only."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from skdice._engines.kernels.layout import VECTOR_BYTES
from skdice._engines.kernels.vectors import (
    INDEX,
    array_type,
    compile_kernel,
    data,
    exponential,
    filled,
    index,
    item_bytes,
    load,
    shuffle,
    vector_type,
)

# A sum in single precision takes this many exponentials, because the error of one sum over tens of
# thousands of classes would exceed 1e-5. These sums are added in double precision.
SUM_CLASSES = 2048
# The products of a row are corrected for clipping if at most one in so many of its features is cut
# off. More would take longer than a product.
MOST_CUT = 8
# They are corrected if what is cut off a feature is at most this multiple of what is left. Then no
# term is more than three times as large as in the clipped row's own product, and neither are the
# rounding errors by much.
LARGEST_PART = 2
# The compiler may add in another order, which lets it use vectors. It may not assume that numbers
# are finite, because NaN and infinities have to show in the results.
REORDERED = {"reassoc", "contract"}


def _reduced(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Return the items of a vector combined into one, by halves."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        lower, upper = (
            shuffle(builder, vector, vector, range(start, start + half)) for start in (0, half)
        )
        vector = combine(lower, upper)
    return builder.extract_element(vector, index(0))


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    """Return a vector whose items are all one value."""
    first = builder.insert_element(filled(vector, 0.0), value, index(0))
    return shuffle(builder, first, first, [0] * vector.count)


@intrinsic
def _largest(typing: Any, row: Any, stop: Any) -> Any:
    """Return the largest of ``row[:stop]``, a whole number of vectors, apart from NaN."""
    signature = row.dtype(row, stop)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = data(context, builder, signature, args, 0)
        vector = vector_type(row.type.pointee)

        def larger(first: Any, second: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", first, second), first, second)

        found = cgutils.alloca_once_value(builder, filled(vector, float("-inf")))
        lanes = index(vector.count)
        with cgutils.for_range_slice(builder, index(0), args[1], lanes, INDEX) as (i, _):
            values = load(builder, row, builder.mul(i, index(item_bytes(vector.element))), vector)
            builder.store(larger(values, builder.load(found)), found)
        return _reduced(builder, builder.load(found), larger)

    return signature, generate


@intrinsic
def _sum_of_exponentials(typing: Any, row: Any, first: Any, stop: Any, shift: Any) -> Any:
    """Return the sum of ``exp(row[first:stop] - shift)``, a whole number of vectors."""
    signature = row.dtype(row, first, stop, shift)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = data(context, builder, signature, args, 0)
        vector = vector_type(row.type.pointee)
        shifts = _spread(builder, args[3], vector)
        total = cgutils.alloca_once_value(builder, filled(vector, 0.0))
        lanes = index(vector.count)
        with cgutils.for_range_slice(builder, args[1], args[2], lanes, INDEX) as (i, _):
            values = load(builder, row, builder.mul(i, index(item_bytes(vector.element))), vector)
            values = exponential(builder, builder.fsub(values, shifts))
            builder.store(builder.fadd(builder.load(total), values), total)
        return _reduced(builder, builder.load(total), builder.fadd)

    return signature, generate


@njit(nogil=True, fastmath=REORDERED)
def _sum_of_margins(row: Any, n_classes: Any, top: Any, factors: Any) -> Any:
    """Return the sum of ``(top - row) * factors``."""
    total = row.dtype.type(0)
    for k in range(n_classes):
        total += (top - row[k]) * factors[k]
    return total


@njit(nogil=True, fastmath=REORDERED)
def _squared_distance(row: Any, point: Any) -> Any:
    """Return the sum of the squares of ``row - point``."""
    total = row.dtype.type(0)
    for k in range(len(point)):
        difference = row[k] - point[k]
        total += difference * difference
    return total


def _summarize_logits(
    products: Any,
    bias: Any,
    subtracted: Any,
    factors: Any,
    row: Any,
    maxima: Any,
    totals: Any,
    margins: Any,
) -> None:
    """Summarize the logits ``products[:, :len(bias)] + bias - subtracted`` of each row.

    `subtracted` and `factors` have no rows where they are not needed. `row` is memory for the
    logits of a row and for numbers of minus infinity that fill the last vector.
    """
    n_classes = len(bias)
    for i in range(len(products)):
        for k in range(n_classes):
            row[k] = products[i, k] + bias[k]
        if len(subtracted):
            for k in range(n_classes):
                row[k] -= subtracted[i, k]
        top = _largest(row, np.int64(len(row)))
        shift = top if top > -np.inf else row.dtype.type(0)  # -inf minus -inf would be NaN
        total = 0.0
        for k in range(0, len(row), SUM_CLASSES):
            stop = min(k + SUM_CLASSES, len(row))
            total += _sum_of_exponentials(row, np.int64(k), np.int64(stop), shift)
        # `_largest` leaves NaN out, which the total shows.
        maxima[i], totals[i] = total if np.isnan(total) else top, total
        if len(factors):
            predicted = 0
            while predicted < n_classes - 1 and row[predicted] != top:
                predicted += 1
            margins[i] = _sum_of_margins(row, n_classes, top, factors[predicted])


def _measure_distances(rows: Any, first: Any, point: Any, distances: Any) -> None:
    """Compute the squared distance of some columns of each row, from `first` on, to a point."""
    for i in range(len(rows)):
        distances[i] = _squared_distance(rows[i, first : first + len(point)], point)


def _clip_rows(
    rows: Any,
    high: Any,
    weight: Any,
    products: Any,
    places: Any,
    clipped: Any,
    clipped_products: Any,
    is_left: Any,
) -> None:
    """Clip rows, and correct their products with the weight by what is cut off.

    `weight` has a line for each feature. `places` is memory for the places of large features.
    `is_left` tells which products are not computed, because the parts that are cut off are too
    large or too many.
    """
    n_features, n_classes = weight.shape
    for i in range(len(rows)):
        _clip(rows[i], high, clipped[i])
        n_cut = _find_above(rows[i], high, places)
        is_left[i] = n_cut * MOST_CUT > n_features
        if is_left[i]:
            continue
        for k in range(n_classes):
            clipped_products[i, k] = products[i, k]
        for place in range(n_cut):
            j = places[place]
            part = rows[i, j] - high
            if not part <= LARGEST_PART * high:
                is_left[i] = True
                break
            for k in range(n_classes):
                clipped_products[i, k] -= part * weight[j, k]


@njit(nogil=True)
def _clip(row: Any, high: Any, clipped: Any) -> None:
    """Clip a row; a NaN stays."""
    for j in range(len(row)):
        clipped[j] = high if row[j] > high else row[j]


@intrinsic
def _mask_above(typing: Any, row: Any, first: Any, high: Any) -> Any:
    """Return a number whose bits tell which items of a vector of the row are above `high`."""
    signature = types.int64(row, first, high)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = data(context, builder, signature, args, 0)
        vector = vector_type(row.type.pointee)
        offset = builder.mul(args[1], index(item_bytes(vector.element)))
        values = load(builder, row, offset, vector)
        is_above = builder.fcmp_ordered(">", values, _spread(builder, args[2], vector))
        mask = builder.bitcast(is_above, ir.IntType(vector.count))
        return builder.zext(mask, INDEX)

    return signature, generate


@njit(nogil=True)
def _find_above(row: Any, high: Any, places: Any) -> Any:
    """Write the places of the features above `high`, and return their number."""
    lanes = VECTOR_BYTES // row.itemsize
    whole = len(row) - len(row) % lanes
    n_found = 0
    for first in range(0, whole, lanes):
        mask = _mask_above(row, np.int64(first), high)
        place = first
        while mask:  # most masks are zero
            if mask & 1:
                places[n_found] = place
                n_found += 1
            mask >>= 1
            place += 1
    for place in range(whole, len(row)):
        if row[place] > high:
            places[n_found] = place
            n_found += 1
    return n_found


@cache
def compiled(dtype: np.dtype[Any]) -> tuple[Callable[..., None], ...]:
    """Return the three kernels for rows of a dtype, compiled, in their order in this module."""
    matrix, vector = array_type(dtype, 2), array_type(dtype, 1)
    written = array_type(dtype, 1, writable=True)
    written_matrix = array_type(dtype, 2, writable=True)
    return (
        compile_kernel(
            _summarize_logits,
            types.void(matrix, vector, matrix, matrix, written, written, written, written),
        ),
        compile_kernel(_measure_distances, types.void(matrix, types.int64, vector, written)),
        compile_kernel(
            _clip_rows,
            types.void(
                matrix,
                from_dtype(dtype),
                matrix,
                matrix,
                array_type(np.int64, 1, writable=True),
                written_matrix,
                written_matrix,
                array_type(np.bool_, 1, writable=True),
            ),
        ),
    )
