"""The kernels of the sparse engine, compiled by numba; imported by `SparseLayer` only.

numba keeps no array in registers. So the inner loops are written in LLVM's own vectors of
64 bytes, which it maps to the registers of the processor, four times of AVX-512, eight of
AVX2. No operation is marked as fast math: NaN and infinities pass as IEEE 754 has it, and the
order of every sum is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import factorial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

# Here rather than imported: numba finds out by this file alone whether what it keeps on disk is
# still right. `SparseLayer` makes sure that the layout of the head is the same.
VECTOR_BYTES, COLUMN_BYTES, SQUARE_BYTES = 64, 256, 32
# What to compute.
LOGITS, MAXIMA, TOTALS = 0, 1, 2

VECTORS = range(0, COLUMN_BYTES, VECTOR_BYTES)
# A sum of exponentials is taken over as many classes at a time: one over tens of thousands,
# added one by one in float32, would be wrong by more than 1e-5.
SUM_CLASSES = 128
# Of logits that are copied out at a time: their lines stay in the first-level cache.
COPY_CLASSES = 16

INDEX = ir.IntType(64)
BYTE = ir.IntType(8)


def _index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def _item_bytes(element: Any) -> int:
    return 4 if isinstance(element, ir.FloatType) else 8


def _vector(element: Any, n_bytes: int = VECTOR_BYTES) -> Any:
    return ir.VectorType(element, n_bytes // _item_bytes(element))


def _filled(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _data(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    """Return the pointer to the first item of an argument that is an array."""
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def _address(builder: Any, pointer: Any, offset: Any, vector: Any) -> Any:
    """Return the pointer to the vector that lies at a byte offset."""
    moved = builder.gep(builder.bitcast(pointer, BYTE.as_pointer()), [offset])
    return builder.bitcast(moved, vector.as_pointer())


def _load(builder: Any, pointer: Any, offset: Any, vector: Any) -> Any:
    address = _address(builder, pointer, offset, vector)
    return builder.load(address, align=_item_bytes(vector.element))


def _store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    address = _address(builder, pointer, offset, value.type)
    builder.store(value, address, align=_item_bytes(value.type.element))


def _shuffle(builder: Any, first: Any, second: Any, items: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(items)), list(items))
    return builder.shuffle_vector(first, second, mask)


def _multiply_add(builder: Any, first: Any, second: Any, added: Any) -> Any:
    """Return first * second + added, rounded once where the processor can."""
    vector = added.type
    name = f"llvm.fmuladd.v{vector.count}f{8 * _item_bytes(vector.element)}"
    kind = ir.FunctionType(vector, [vector] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [first, second, added])


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
            _data(context, builder, signature, args, position) for position in (0, 1, 2, 5)
        )
        _, _, _, first, stop, _, row = args
        vector = _vector(weights.type.pointee)
        sums = [cgutils.alloca_once(builder, vector) for _ in VECTORS]
        for each in sums:
            builder.store(_filled(vector, 0.0), each)
        with cgutils.for_range_slice(builder, first, stop, _index(1), INDEX) as (i, _):
            start = builder.zext(builder.load(builder.gep(offsets, [i])), INDEX)
            weight = builder.insert_element(
                ir.Constant(vector, ir.Undefined),
                builder.load(builder.gep(weights, [i])),
                ir.Constant(ir.IntType(32), 0),
            )
            weight = _shuffle(builder, weight, weight, [0] * vector.count)
            for part, each in zip(VECTORS, sums, strict=True):
                column = _load(builder, panel, builder.add(start, _index(part)), vector)
                total = _multiply_add(builder, column, weight, builder.load(each))
                builder.store(total, each)
        start = builder.mul(row, _index(COLUMN_BYTES))
        for part, each in zip(VECTORS, sums, strict=True):
            offset = builder.add(start, _index(part))
            before = _load(builder, logits, offset, vector)
            _store(builder, builder.fadd(before, builder.load(each)), logits, offset)
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

    Rows beyond the last are read as the last.
    """
    signature = types.void(features, row, last_row, column, offsets, square, panel, lane)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        features, n_features = array.data, builder.extract_value(array.shape, 1)
        offsets, panel = (_data(context, builder, signature, args, i) for i in (4, 6))
        _, row, last_row, column, _, square, _, lane = args
        element = features.type.pointee
        vector = _vector(element, SQUARE_BYTES)

        def interleaved(first: Any, second: Any, size: int) -> list[Any]:
            # In halves of a vector, which all processors shuffle fastest: groups of `size`
            # items of both in turn, of the lower and of the upper part of each half.
            half, n = vector.count // 2, vector.count
            return [
                _shuffle(
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
            number = builder.add(row, _index(i))
            number = builder.select(builder.icmp_signed("<", number, last_row), number, last_row)
            start = builder.gep(features, [builder.add(builder.mul(number, n_features), column)])
            rows.append([_load(builder, start, _index(0), vector)])
        size = 1
        while len(rows) > 2:
            rows = [
                [
                    each
                    for pair in zip(first, second, strict=True)
                    for each in interleaved(*pair, size)
                ]
                for first, second in zip(rows[::2], rows[1::2], strict=True)
            ]
            size *= 2
        n, half = vector.count, vector.count // 2
        columns = [
            _shuffle(
                builder,
                upper,
                lower,
                [origin + begin + item for origin in (0, n) for item in range(half)],
            )
            for begin in (0, half)
            for upper, lower in zip(*rows, strict=True)
        ]
        lane_bytes = builder.mul(lane, _index(_item_bytes(element)))
        for i, each in enumerate(columns):
            place = builder.add(builder.mul(square, _index(vector.count)), _index(i))
            offset = builder.zext(builder.load(builder.gep(offsets, [place])), INDEX)
            _store(builder, each, panel, builder.add(offset, lane_bytes))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _largest(typing: Any, logits: Any, n_classes: Any, maxima: Any) -> Any:
    """Raise the maxima of the rows of a tile to those of its logits; NaN where there is one."""
    signature = types.void(logits, n_classes, maxima)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, maxima = (_data(context, builder, signature, args, i) for i in (0, 2))
        vector = _vector(logits.type.pointee)
        largest = [cgutils.alloca_once(builder, vector) for _ in VECTORS]
        for part, each in zip(VECTORS, largest, strict=True):
            builder.store(_load(builder, maxima, _index(part), vector), each)
        with cgutils.for_range(builder, args[1], intp=INDEX) as loop:
            start = builder.mul(loop.index, _index(COLUMN_BYTES))
            for part, each in zip(VECTORS, largest, strict=True):
                value = _load(builder, logits, builder.add(start, _index(part)), vector)
                before = builder.load(each)
                larger = builder.fcmp_ordered(">", value, before)
                larger = builder.select(larger, value, before)
                # Once it is NaN, no comparison is true any more.
                missing = builder.fcmp_unordered("uno", value, value)
                value = builder.select(missing, value, larger)
                builder.store(value, each)
        for part, each in zip(VECTORS, largest, strict=True):
            _store(builder, builder.load(each), maxima, _index(part))
        return context.get_dummy_value()

    return signature, generate


def _exponential(builder: Any, x: Any) -> Any:
    """Return exp(x) for x <= 0: 0 where it is below the smallest normal number, NaN for NaN.

    ``exp(x) = 2**n * exp(r)`` with n whole and r = x - n log 2; a polynomial for r. log 2 is
    taken in two parts, the first of which has few enough digits for an exact product. In
    float32 the constants are those of the Cephes library; in float64 the Taylor series, which
    is exact to 4e-18 at |r| <= log(2) / 2.
    """
    vector = x.type
    if isinstance(vector.element, ir.FloatType):
        integer, digits, smallest = ir.IntType(32), 23, -87.0
        log2_high, log2_low = 0.693359375, -2.12194440e-4
        series = [
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ]
    else:
        integer, digits, smallest = ir.IntType(64), 52, -708.0
        log2_high, log2_low = 6.93145751953125e-1, 1.42860682030941723212e-6
        series = [1 / factorial(k) for k in range(13, 1, -1)]
    integers = ir.VectorType(integer, vector.count)

    def constant(value: float) -> Any:
        return _filled(vector, value)

    # Added to a number this large, x / log 2 is rounded to a whole, in the lowest bits.
    whole = constant(1.5 * 2.0**digits)
    shifted = _multiply_add(builder, x, constant(1 / np.log(2.0)), whole)
    n = builder.fsub(shifted, whole)
    r = _multiply_add(builder, n, constant(-log2_high), x)
    r = _multiply_add(builder, n, constant(-log2_low), r)
    value = constant(series[0])
    for coefficient in series[1:]:
        value = _multiply_add(builder, value, r, constant(coefficient))
    value = _multiply_add(builder, value, builder.fmul(r, r), r)
    value = builder.fadd(value, constant(1.0))
    # 2**n: n is added to the exponent.
    exponent = builder.shl(
        builder.bitcast(shifted, integers),
        ir.Constant(integers, [ir.Constant(integer, digits)] * vector.count),
    )
    value = builder.bitcast(builder.add(builder.bitcast(value, integers), exponent), vector)
    # The comparison is false for NaN, which so passes.
    vanishes = builder.fcmp_ordered("<", x, constant(smallest))
    return builder.select(vanishes, constant(0.0), value)


@intrinsic
def _add_exponentials(
    typing: Any, logits: Any, first: Any, stop: Any, shifts: Any, totals: Any
) -> Any:
    """Add the sums of ``exp(logits[first:stop] - shifts)`` to the totals of the rows of a tile."""
    signature = types.void(logits, first, stop, shifts, totals)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, shifts, totals = (_data(context, builder, signature, args, i) for i in (0, 3, 4))
        vector = _vector(logits.type.pointee)
        total = cgutils.alloca_once(builder, vector)
        for part in VECTORS:
            shift = _load(builder, shifts, _index(part), vector)
            builder.store(_filled(vector, 0.0), total)
            with cgutils.for_range_slice(builder, args[1], args[2], _index(1), INDEX) as (i, _):
                offset = builder.add(builder.mul(i, _index(COLUMN_BYTES)), _index(part))
                below = builder.fsub(_load(builder, logits, offset, vector), shift)
                value = builder.fadd(builder.load(total), _exponential(builder, below))
                builder.store(value, total)
            value = builder.fadd(_load(builder, totals, _index(part), vector), builder.load(total))
            _store(builder, value, totals, _index(part))
        return context.get_dummy_value()

    return signature, generate


def _compute(
    what: Any,
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

    `panel` and `tile` are memory to work in; of `logits`, `maxima` and `totals`, what is not
    asked for by `what` is empty.
    """
    n_rows, tile_rows = features.shape[0], tile.shape[1]
    square = square_offsets.shape[1]
    n_levels = first_runs.shape[1]
    largest, before, shifts, sums = np.empty((4, tile_rows), tile.dtype)
    # All rows take a block of classes in turn, while its weights are in some cache.
    for block in range(len(block_classes) - 1):
        first_class = block_classes[block]
        n_classes = block_classes[block + 1] - first_class
        for first_row in range(0, n_rows, tile_rows):
            rows = min(tile_rows, n_rows - first_row)
            for k in range(n_classes):
                tile[k, :] = intercept[first_class + k]
            # Each level adds its weights to the logits of those before.
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
                if what == LOGITS:
                    continue
                before[:] = -np.inf
                if block > 0:
                    before[:rows] = maxima[level, first_row : first_row + rows]
                largest[:] = before
                _largest(tile, np.int64(n_classes), largest)
                maxima[level, first_row : first_row + rows] = largest[:rows]
                if what == TOTALS:
                    sums[:] = 0
                    # Nothing to subtract where all logits so far are -inf.
                    for r in range(tile_rows):
                        shifts[r] = largest[r] if largest[r] > -np.inf else 0
                    if block > 0:
                        for r in range(rows):
                            total = totals[level, first_row + r]
                            sums[r] = total * np.exp(before[r] - shifts[r])
                    for k in range(0, n_classes, SUM_CLASSES):
                        last = min(k + SUM_CLASSES, n_classes)
                        _add_exponentials(tile, np.int64(k), np.int64(last), shifts, sums)
                    totals[level, first_row : first_row + rows] = sums[:rows]
            if what == LOGITS:
                for k in range(0, n_classes, COPY_CLASSES):
                    for r in range(rows):
                        for j in range(k, min(k + COPY_CLASSES, n_classes)):
                            logits[first_row + r, first_class + j] = tile[j, r]


@cache
def compiled(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return `_compute` for features of a dtype, compiled, or read from numba's cache on disk."""
    number = from_dtype(dtype)

    def array(item: Any, ndim: int, writable: bool = False) -> Any:
        # Features in a file that is mapped are read-only; others are accepted as such.
        return types.Array(item, ndim, "C", readonly=not writable)

    signature = types.void(
        types.int64,
        array(number, 2),
        array(number, 1),
        array(types.int64, 1),
        array(types.int64, 1),
        array(types.int64, 1),
        array(types.uint16, 2),
        array(types.int64, 3),
        array(types.uint16, 1),
        array(types.int64, 1),
        array(types.uint16, 1),
        array(number, 1),
        array(number, 2, writable=True),
        array(number, 2, writable=True),
        array(number, 2, writable=True),
        array(number, 2, writable=True),
        array(number, 2, writable=True),
    )
    try:
        function: Callable[..., None] = njit(signature, nogil=True, cache=True)(_compute)
    except RuntimeError:  # there is no place where the cache could be written
        function = njit(signature, nogil=True)(_compute)
    return function
