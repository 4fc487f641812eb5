"""The kernel of the sparse engine, compiled by numba; imported by `SparseLayer` only."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skdice._engines.kernels.fused import LOGITS
from skdice._engines.kernels.layout import COLUMN_BYTES, SQUARE_BYTES
from skdice._engines.kernels.vectors import (
    INDEX,
    VECTORS,
    array_type,
    compile_kernel,
    data,
    filled,
    finish_tile,
    index,
    item_bytes,
    load,
    multiply_add,
    shuffle,
    store,
    vector_type,
)

# The logits of this many classes are copied out at a time, so that the lines of memory that they
# are written to stay in the first-level cache.
COPY_CLASSES = 16


@intrinsic
def _accumulate(
    typing: Any,
    panel: Any,
    offsets: Any,
    weights: Any,
    first: Any,
    stop: Any,
    logits: Any,
    row: Any,
) -> Any:
    """Add the weights of one run, times their columns of a panel, to one row of the logits.

    ``logits[row] += sum(weights[i] * column(offsets[i]) for i in range(first, stop))``. The sum
    is held in registers; per weight and vector it takes one multiplication and addition, which
    reads the column from the cache.
    """
    signature = types.void(panel, offsets, weights, first, stop, logits, row)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        panel, offsets, weights, logits = (
            data(context, builder, signature, args, position) for position in (0, 1, 2, 5)
        )
        _, _, _, first, stop, _, row = args
        vector = vector_type(weights.type.pointee)
        sums = [cgutils.alloca_once(builder, vector) for _ in VECTORS]
        for total in sums:
            builder.store(filled(vector, 0.0), total)
        with cgutils.for_range_slice(builder, first, stop, index(1), INDEX) as (i, _):
            start = builder.zext(builder.load(builder.gep(offsets, [i])), INDEX)
            weight = builder.insert_element(
                ir.Constant(vector, ir.Undefined),
                builder.load(builder.gep(weights, [i])),
                ir.Constant(ir.IntType(32), 0),
            )
            weight = shuffle(builder, weight, weight, [0] * vector.count)
            for part, total in zip(VECTORS, sums, strict=True):
                column = load(builder, panel, builder.add(start, index(part)), vector)
                added = multiply_add(builder, column, weight, builder.load(total))
                builder.store(added, total)
        start = builder.mul(row, index(COLUMN_BYTES))
        for part, total in zip(VECTORS, sums, strict=True):
            offset = builder.add(start, index(part))
            before = load(builder, logits, offset, vector)
            store(builder, builder.fadd(before, builder.load(total)), logits, offset)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _transpose(
    typing: Any,
    features: Any,
    row: Any,
    last_row: Any,
    column: Any,
    offsets: Any,
    square: Any,
    panel: Any,
    lane: Any,
) -> Any:
    """Transpose a square of the features into a panel, from `lane` on of each column.

    In place of rows beyond the last, the last row is read again.
    """
    signature = types.void(features, row, last_row, column, offsets, square, panel, lane)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        features, n_features = array.data, builder.extract_value(array.shape, 1)
        offsets, panel = (data(context, builder, signature, args, i) for i in (4, 6))
        _, row, last_row, column, _, square, _, lane = args
        element = features.type.pointee
        vector = vector_type(element, SQUARE_BYTES)

        def interleaved(first: Any, second: Any, size: int) -> list[Any]:
            # Take groups of `size` items of both vectors in turn, from the lower and from the
            # upper part of each half, because all processors shuffle halves of a vector fastest.
            half, n = vector.count // 2, vector.count
            return [
                shuffle(
                    builder,
                    first,
                    second,
                    [
                        origin + begin + part + group + item
                        for begin in (0, half)
                        for group in range(0, half // 2, size)
                        for origin in (0, n)
                        for item in range(size)
                    ],
                )
                for part in (0, half // 2)
            ]

        rows = []
        for i in range(vector.count):
            number = builder.add(row, index(i))
            number = builder.select(builder.icmp_signed("<", number, last_row), number, last_row)
            start = builder.gep(features, [builder.add(builder.mul(number, n_features), column)])
            rows.append([load(builder, start, index(0), vector)])
        size = 1
        while len(rows) > 2:
            rows = [
                [
                    part
                    for pair in zip(first, second, strict=True)
                    for part in interleaved(*pair, size)
                ]
                for first, second in zip(rows[::2], rows[1::2], strict=True)
            ]
            size *= 2
        n, half = vector.count, vector.count // 2
        columns = [
            shuffle(
                builder,
                upper,
                lower,
                [origin + begin + item for origin in (0, n) for item in range(half)],
            )
            for begin in (0, half)
            for upper, lower in zip(*rows, strict=True)
        ]
        lane_bytes = builder.mul(lane, index(item_bytes(element)))
        for i, values in enumerate(columns):
            place = builder.add(builder.mul(square, index(vector.count)), index(i))
            offset = builder.zext(builder.load(builder.gep(offsets, [place])), INDEX)
            store(builder, values, panel, builder.add(offset, lane_bytes))
        return context.get_dummy_value()

    return signature, generate


def _sparse_scores(
    output: Any,
    features: Any,
    intercept: Any,
    block_classes: Any,
    panel_squares: Any,
    square_columns: Any,
    square_offsets: Any,
    first_runs: Any,
    run_classes: Any,
    run_weights: Any,
    offsets: Any,
    weights: Any,
    panel: Any,
    tile: Any,
    logits: Any,
    maxima: Any,
    totals: Any,
) -> None:
    """Compute the rows of a block; see `PackedHead` for the layout of the head.

    `panel` and `tile` are working memory. `output` says which of `logits`, `maxima` and `totals`
    are computed; the others are empty.
    """
    n_rows, tile_rows = features.shape[0], tile.shape[1]
    square = square_offsets.shape[1]
    n_levels = first_runs.shape[1]
    # All rows are multiplied by one block of classes, while its weights stay in a cache.
    for block in range(len(block_classes) - 1):
        first_class = block_classes[block]
        n_classes = block_classes[block + 1] - first_class
        for first_row in range(0, n_rows, tile_rows):
            rows = min(tile_rows, n_rows - first_row)
            for k in range(n_classes):
                tile[k, :] = intercept[first_class + k]
            # A level adds its weights to the logits of the levels before.
            for level in range(n_levels):
                for p in range(len(panel_squares) - 1):
                    for lane in range(0, tile_rows, square):
                        for s in range(panel_squares[p], panel_squares[p + 1]):
                            _transpose(
                                features,
                                np.int64(first_row + lane),
                                np.int64(n_rows - 1),
                                np.int64(square_columns[s]),
                                square_offsets,
                                np.int64(s),
                                panel,
                                np.int64(lane),
                            )
                    run, last_run = first_runs[block, level, p], first_runs[block, level, p + 1]
                    start = run_weights[run]
                    for i in range(run, last_run):
                        stop = run_weights[i + 1]
                        _accumulate(
                            panel, offsets, weights, start, stop, tile, np.int64(run_classes[i])
                        )
                        start = stop
                if output == LOGITS:
                    continue
                finish_tile(
                    output,
                    tile,
                    n_classes,
                    maxima[level, first_row : first_row + rows],
                    totals[level, first_row : first_row + rows],
                )
            if output == LOGITS:
                for k in range(0, n_classes, COPY_CLASSES):
                    for r in range(rows):
                        for j in range(k, min(k + COPY_CLASSES, n_classes)):
                            logits[first_row + r, first_class + j] = tile[j, r]


@cache
def compiled(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return the kernel for features of a dtype."""
    signature = types.void(
        types.int64,
        array_type(dtype, 2),
        array_type(dtype, 1),
        array_type(np.int64, 1),
        array_type(np.int64, 1),
        array_type(np.int64, 1),
        array_type(np.uint16, 2),
        array_type(np.int64, 3),
        array_type(np.uint16, 1),
        array_type(np.int64, 1),
        array_type(np.uint16, 1),
        array_type(dtype, 1),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 2, writable=True),
        array_type(dtype, 2, writable=True),
    )
    return compile_kernel(_sparse_scores, signature)
