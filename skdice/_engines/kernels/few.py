"""The kernel for heads of few classes, compiled by numba; imported by `FewClassesLayer` only."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skdice._engines.kernels.fused import LOGITS
from skdice._engines.kernels.layout import CLASSES, COLUMN_BYTES, ROWS
from skdice._engines.kernels.vectors import (
    INDEX,
    array_type,
    compile_kernel,
    data,
    filled,
    finish_tile,
    index,
    item_bytes,
    load,
    multiply_add,
    prefetch,
    shuffle,
    store,
    vector_type,
)

# The kernel prefetches the row that lies this many rows ahead.
ROWS_AHEAD = 16


def _added_up(builder: Any, sums: list[Any]) -> list[Any]:
    """Return vectors whose items are the sums of the items of each vector, in their order."""
    n = sums[0].type.count
    sums = [*sums, *[filled(sums[0].type, 0.0)] * (-len(sums) % n)]
    size = n
    while size > 1:
        # A group of `size` items belongs to one sum: add one half of the group to the other.
        halves = [
            [group + part + item for group in range(0, 2 * n, size) for item in range(size // 2)]
            for part in (0, size // 2)
        ]
        sums = [
            builder.fadd(*(shuffle(builder, first, second, half) for half in halves))
            for first, second in zip(sums[::2], sums[1::2], strict=True)
        ]
        size //= 2
    return sums


@intrinsic
def _multiply(
    typing: Any,
    features: Any,
    row: Any,
    last_row: Any,
    weight: Any,
    chunk: Any,
    tile: Any,
    lane: Any,
) -> Any:
    """Multiply some rows by the weights of a chunk of classes, into a tile from `lane` on.

    In place of rows beyond the last, the last row is read again. All sums are held in registers:
    a vector of features is read once for all classes of the chunk, and a vector of weights once
    for all rows.
    """
    signature = types.void(features, row, last_row, weight, chunk, tile, lane)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        features, n_features = array.data, builder.extract_value(array.shape, 1)
        packed = context.make_array(signature.args[3])(context, builder, args[3])
        weight, n_steps = packed.data, builder.extract_value(packed.shape, 1)
        tile = data(context, builder, signature, args, 5)
        _, row, last_row, _, chunk, _, lane = args
        element = features.type.pointee
        vector, n_bytes = vector_type(element), index(item_bytes(element))
        starts = []
        for i in range(ROWS):
            number = builder.add(row, index(i))
            number = builder.select(builder.icmp_signed("<", number, last_row), number, last_row)
            starts.append(builder.gep(features, [builder.mul(number, n_features)]))
        # Prefetch by hand, because the rows are too short for the prefetcher of the processor.
        ahead = builder.mul(index(ROWS_AHEAD), builder.mul(n_features, n_bytes))
        step_bytes = index(CLASSES * vector.count * item_bytes(element))
        first = builder.mul(builder.mul(chunk, n_steps), step_bytes)
        sums = [cgutils.alloca_once(builder, vector) for _ in range(CLASSES * ROWS)]
        for total in sums:
            builder.store(filled(vector, 0.0), total)
        # The last vector ends where the features end.
        last_column = builder.sub(n_features, index(vector.count))
        with cgutils.for_range(builder, n_steps, intp=INDEX) as loop:
            column = builder.mul(loop.index, index(vector.count))
            inside = builder.icmp_signed("<", column, last_column)
            offset = builder.mul(builder.select(inside, column, last_column), n_bytes)
            place = builder.add(first, builder.mul(loop.index, step_bytes))
            values = [load(builder, start, offset, vector) for start in starts]
            for start in starts:
                prefetch(builder, start, builder.add(offset, ahead))
            for k in range(CLASSES):
                class_place = builder.add(place, index(k * vector.count * item_bytes(element)))
                weights = load(builder, weight, class_place, vector)
                for value, total in zip(values, sums[k * ROWS : (k + 1) * ROWS], strict=True):
                    added = multiply_add(builder, value, weights, builder.load(total))
                    builder.store(added, total)
        logits = _added_up(builder, [builder.load(total) for total in sums])
        target = builder.mul(builder.mul(chunk, index(CLASSES)), index(COLUMN_BYTES))
        target = builder.add(target, builder.mul(lane, n_bytes))
        for k in range(CLASSES):
            number, item = divmod(k * ROWS, vector.count)
            part = shuffle(builder, logits[number], logits[number], range(item, item + ROWS))
            store(builder, part, tile, builder.add(target, index(k * COLUMN_BYTES)))
        return context.get_dummy_value()

    return signature, generate


def _few_classes(
    output: Any,
    features: Any,
    weight: Any,
    intercept: Any,
    tile: Any,
    logits: Any,
    maxima: Any,
    totals: Any,
) -> None:
    """Compute the rows of a block; see `pack_few_classes` for the layout of the weight.

    `tile` is working memory. `output` says which of `logits`, `maxima` and `totals` are computed;
    the others are empty.
    """
    n_rows, n_classes, tile_rows = features.shape[0], len(intercept), tile.shape[1]
    for first_row in range(0, n_rows, tile_rows):
        rows = min(tile_rows, n_rows - first_row)
        for lane in range(0, rows, ROWS):
            for chunk in range(weight.shape[0]):
                _multiply(
                    features,
                    np.int64(first_row + lane),
                    np.int64(n_rows - 1),
                    weight,
                    np.int64(chunk),
                    tile,
                    np.int64(lane),
                )
        for k in range(n_classes):
            tile[k, :] += intercept[k]
        if output == LOGITS:
            for r in range(rows):
                for k in range(n_classes):
                    logits[first_row + r, k] = tile[k, r]
        else:
            row_slice = slice(first_row, first_row + rows)
            finish_tile(output, tile, n_classes, maxima[row_slice], totals[row_slice])


@cache
def compiled(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return the kernel for features of a dtype."""
    signature = types.void(
        types.int64,
        array_type(dtype, 2),
        array_type(dtype, 3),
        array_type(dtype, 1),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 1, writable=True),
        array_type(dtype, 1, writable=True),
    )
    return compile_kernel(_few_classes, signature)
