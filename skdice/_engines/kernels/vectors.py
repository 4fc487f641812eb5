"""Functions that the kernels share: LLVM's vectors, and the log-sum-exp of a tile of logits.

numba keeps no array in registers, so the inner loops use LLVM's own vectors of 64 bytes. A column
of a tile is four vectors, for which LLVM uses four registers of AVX-512 or eight of AVX2. No
operation is marked as fast math: NaN and infinities propagate as IEEE 754 defines it, and the
order of every sum is fixed.

A tile is an array with one line per class, which holds the logits of as many rows of features as
fit into `COLUMN_BYTES`.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from skdice._engines.kernels.fused import TOTALS
from skdice._engines.kernels.layout import COLUMN_BYTES, VECTOR_BYTES

VECTORS = range(0, COLUMN_BYTES, VECTOR_BYTES)
# Exponentials are summed over this many classes at a time, because the error of one float32 sum
# over tens of thousands of classes would exceed 1e-5.
SUM_CLASSES = 128

INDEX = ir.IntType(64)
BYTE = ir.IntType(8)


def index(value: int) -> Any:
    return ir.Constant(INDEX, value)


def item_bytes(element: Any) -> int:
    return 4 if isinstance(element, ir.FloatType) else 8


def vector_type(element: Any, n_bytes: int = VECTOR_BYTES) -> Any:
    return ir.VectorType(element, n_bytes // item_bytes(element))


def filled(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def data(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    """Return the pointer to the first item of an argument that is an array."""
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def address(builder: Any, pointer: Any, offset: Any, vector: Any) -> Any:
    """Return the pointer to the vector that lies at a byte offset."""
    moved = builder.gep(builder.bitcast(pointer, BYTE.as_pointer()), [offset])
    return builder.bitcast(moved, vector.as_pointer())


def load(builder: Any, pointer: Any, offset: Any, vector: Any) -> Any:
    place = address(builder, pointer, offset, vector)
    return builder.load(place, align=item_bytes(vector.element))


def store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    place = address(builder, pointer, offset, value.type)
    builder.store(value, place, align=item_bytes(value.type.element))


def prefetch(builder: Any, pointer: Any, offset: Any) -> None:
    """Prefetch the memory at a byte offset, which may lie beyond the end of the array."""
    place = address(builder, pointer, offset, BYTE)
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # 0: the memory will be read. 2: bring it to the second-level cache, which can have many more
    # requests under way than the first-level cache. 1: it is data.
    builder.call(function, [place, *(ir.Constant(number, value) for value in (0, 2, 1))])


def shuffle(builder: Any, first: Any, second: Any, items: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(items)), list(items))
    return builder.shuffle_vector(first, second, mask)


def multiply_add(builder: Any, first: Any, second: Any, added: Any) -> Any:
    """Return first * second + added, rounded once where the processor can."""
    vector = added.type
    name = f"llvm.fmuladd.v{vector.count}f{8 * item_bytes(vector.element)}"
    kind = ir.FunctionType(vector, [vector] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [first, second, added])


@intrinsic
def raise_maxima(typing: Any, logits: Any, n_classes: Any, maxima: Any) -> Any:
    """Raise the maxima of the rows of a tile to those of its logits; NaN if a logit is NaN."""
    signature = types.void(logits, n_classes, maxima)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, maxima = (data(context, builder, signature, args, i) for i in (0, 2))
        vector = vector_type(logits.type.pointee)
        largest = [cgutils.alloca_once(builder, vector) for _ in VECTORS]
        for part, maximum in zip(VECTORS, largest, strict=True):
            builder.store(load(builder, maxima, index(part), vector), maximum)
        with cgutils.for_range(builder, args[1], intp=INDEX) as loop:
            start = builder.mul(loop.index, index(COLUMN_BYTES))
            for part, maximum in zip(VECTORS, largest, strict=True):
                value = load(builder, logits, builder.add(start, index(part)), vector)
                before = builder.load(maximum)
                larger = builder.fcmp_ordered(">", value, before)
                larger = builder.select(larger, value, before)
                # A maximum that is NaN stays NaN, because no comparison with NaN is true.
                missing = builder.fcmp_unordered("uno", value, value)
                value = builder.select(missing, value, larger)
                builder.store(value, maximum)
        for part, maximum in zip(VECTORS, largest, strict=True):
            store(builder, builder.load(maximum), maxima, index(part))
        return context.get_dummy_value()

    return signature, generate


def exponential(builder: Any, x: Any) -> Any:
    """Return exp(x) for x <= 0: 0 if exp(x) is below the smallest normal number, NaN for NaN.

    The function uses ``exp(x) = 2**n * exp(r)`` with a whole n and r = x - n log 2, and a
    polynomial for exp(r). log 2 is split into two parts, the first of which has so few digits that
    its product with n is exact. The float32 constants are those of the Cephes library. The float64
    constants are the Taylor series, which is exact to 4e-18 for |r| <= log(2) / 2.
    """
    vector = x.type
    if isinstance(vector.element, ir.FloatType):
        integer, digits, bias, smallest = ir.IntType(32), 23, 127, -87.0
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
        integer, digits, bias, smallest = ir.IntType(64), 52, 1023, -708.0
        log2_high, log2_low = 6.93145751953125e-1, 1.42860682030941723212e-6
        series = [1 / factorial(k) for k in range(13, 1, -1)]
    integers = ir.VectorType(integer, vector.count)

    def constant(value: float) -> Any:
        return filled(vector, value)

    # Adding a number this large to x / log 2 rounds the sum to a whole number, whose lowest bits
    # are n + bias, the exponent of 2**n.
    whole = constant(1.5 * 2.0**digits + bias)
    shifted = multiply_add(builder, x, constant(1 / np.log(2.0)), whole)
    n = builder.fsub(shifted, whole)
    r = multiply_add(builder, n, constant(-log2_high), x)
    r = multiply_add(builder, n, constant(-log2_low), r)
    value = constant(series[0])
    for coefficient in series[1:]:
        value = multiply_add(builder, value, r, constant(coefficient))
    value = multiply_add(builder, value, builder.fmul(r, r), r)
    value = builder.fadd(value, constant(1.0))
    scale = builder.shl(
        builder.bitcast(shifted, integers),
        ir.Constant(integers, [ir.Constant(integer, digits)] * vector.count),
    )
    # Multiply by 2**n rather than add n to the exponent, which could turn a NaN into a number.
    value = builder.fmul(value, builder.bitcast(scale, vector))
    # NaN is returned as NaN, because the comparison is false for it.
    vanishes = builder.fcmp_ordered("<", x, constant(smallest))
    return builder.select(vanishes, constant(0.0), value)


@intrinsic
def add_exponentials(
    typing: Any, logits: Any, first: Any, stop: Any, shifts: Any, totals: Any
) -> Any:
    """Add the sums of ``exp(logits[first:stop] - shifts)`` to the totals of the rows of a tile."""
    signature = types.void(logits, first, stop, shifts, totals)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, shifts, totals = (data(context, builder, signature, args, i) for i in (0, 3, 4))
        vector = vector_type(logits.type.pointee)
        total = cgutils.alloca_once(builder, vector)
        for part in VECTORS:
            shift = load(builder, shifts, index(part), vector)
            builder.store(filled(vector, 0.0), total)
            with cgutils.for_range_slice(builder, args[1], args[2], index(1), INDEX) as (i, _):
                offset = builder.add(builder.mul(i, index(COLUMN_BYTES)), index(part))
                below = builder.fsub(load(builder, logits, offset, vector), shift)
                value = builder.fadd(builder.load(total), exponential(builder, below))
                builder.store(value, total)
            value = builder.fadd(load(builder, totals, index(part), vector), builder.load(total))
            store(builder, value, totals, index(part))
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True)
def finish_tile(output: Any, tile: Any, n_classes: Any, maxima: Any, totals: Any) -> None:
    """Raise the maxima (rows,) and sums of exponentials below them by the classes of a tile.

    Given are the maxima and sums of earlier classes, or -inf and 0 if there are none.
    """
    largest, shifts, sums = np.empty((3, tile.shape[1]), tile.dtype)
    rows = len(maxima)
    largest[:] = -np.inf
    largest[:rows] = maxima
    raise_maxima(tile, np.int64(n_classes), largest)
    if output == TOTALS:
        sums[:] = 0
        # Subtract 0 where all logits so far are -inf, because -inf minus -inf is NaN.
        for r in range(tile.shape[1]):
            shifts[r] = largest[r] if largest[r] > -np.inf else 0
        for r in range(rows):
            if totals[r] != 0:
                sums[r] = totals[r] * np.exp(maxima[r] - shifts[r])
        for k in range(0, n_classes, SUM_CLASSES):
            last = min(k + SUM_CLASSES, n_classes)
            add_exponentials(tile, np.int64(k), np.int64(last), shifts, sums)
        totals[:] = sums[:rows]
    maxima[:] = largest[:rows]


def array_type(item: Any, ndim: int, writable: bool = False) -> Any:
    """Return the type of a contiguous array of numbers of a NumPy dtype, by default read-only.

    Features of a mapped file are read-only, and numba accepts writable arrays as read-only ones.
    """
    return types.Array(from_dtype(np.dtype(item)), ndim, "C", readonly=not writable)


def digest_of_sources() -> str:
    """Return a digest of all source files of the engines, from which the kernels are made."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def compile_kernel(function: Callable[..., None], signature: Any) -> Callable[..., None]:
    """Return a function compiled for a signature, or read from numba's cache on disk.

    numba compares only the file that defines a function with its cache, but a kernel is made of
    several files. Therefore the name of the function contains a digest of all these files.
    """
    function.__qualname__ = f"{function.__name__}_{digest_of_sources()}"
    try:
        compiled: Callable[..., None] = njit(signature, nogil=True, cache=True)(function)
    except Exception:  # The cache has no writable folder or disk space, or is damaged.
        compiled = njit(signature, nogil=True)(function)
    return compiled
