"""What the kernels have in common: LLVM's vectors, and the log-sum-exp of a tile of logits.

numba keeps no array in registers. So the inner loops are written in LLVM's own vectors of
64 bytes, which it maps to the registers of the processor, four times of AVX-512, eight of
AVX2. No operation is marked as fast math: NaN and infinities pass as IEEE 754 has it, and the
order of every sum is fixed.

A tile has the logits of as many rows as `COLUMN_BYTES` hold: one of its rows per class.
"""

from __future__ import annotations

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
# A sum of exponentials is taken over as many classes at a time: one over tens of thousands,
# added one by one in float32, would be wrong by more than 1e-5.
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
    """Ask for the memory at a byte offset, which need not be there, to be brought close."""
    place = address(builder, pointer, offset, BYTE)
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # To be read; for the second-level cache, which has many more requests under way than the
    # first; of data.
    builder.call(function, [place, *(ir.Constant(number, each) for each in (0, 2, 1))])


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
    """Raise the maxima of the rows of a tile to those of its logits; NaN where there is one."""
    signature = types.void(logits, n_classes, maxima)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, maxima = (data(context, builder, signature, args, i) for i in (0, 2))
        vector = vector_type(logits.type.pointee)
        largest = [cgutils.alloca_once(builder, vector) for _ in VECTORS]
        for part, each in zip(VECTORS, largest, strict=True):
            builder.store(load(builder, maxima, index(part), vector), each)
        with cgutils.for_range(builder, args[1], intp=INDEX) as loop:
            start = builder.mul(loop.index, index(COLUMN_BYTES))
            for part, each in zip(VECTORS, largest, strict=True):
                value = load(builder, logits, builder.add(start, index(part)), vector)
                before = builder.load(each)
                larger = builder.fcmp_ordered(">", value, before)
                larger = builder.select(larger, value, before)
                # Once it is NaN, no comparison is true any more.
                missing = builder.fcmp_unordered("uno", value, value)
                value = builder.select(missing, value, larger)
                builder.store(value, each)
        for part, each in zip(VECTORS, largest, strict=True):
            store(builder, builder.load(each), maxima, index(part))
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

    # Added to a number this large, x / log 2 is rounded to a whole, in the lowest bits; there
    # it is n + bias, the exponent of 2**n.
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
    # A product, as the sum of the bits could make a number of a NaN.
    value = builder.fmul(value, builder.bitcast(scale, vector))
    # The comparison is false for NaN, which so passes.
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
                value = builder.fadd(builder.load(total), _exponential(builder, below))
                builder.store(value, total)
            value = builder.fadd(load(builder, totals, index(part), vector), builder.load(total))
            store(builder, value, totals, index(part))
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True)
def finish_tile(what: Any, tile: Any, n_classes: Any, maxima: Any, totals: Any) -> None:
    """Raise the maxima (rows,) and sums of exponentials below them by the classes of a tile.

    They are those of earlier classes: -inf and 0 where there are none.
    """
    largest, shifts, sums = np.empty((3, tile.shape[1]), tile.dtype)
    rows = len(maxima)
    largest[:] = -np.inf
    largest[:rows] = maxima
    raise_maxima(tile, np.int64(n_classes), largest)
    if what == TOTALS:
        sums[:] = 0
        # Nothing to subtract where all logits so far are -inf.
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

    Features in a file that is mapped are; others are accepted as such.
    """
    return types.Array(from_dtype(np.dtype(item)), ndim, "C", readonly=not writable)


def digest_of_sources() -> str:
    """Return what changes with any file of the engines, all that a kernel is made of."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:16]


def compile_kernel(function: Callable[..., None], signature: Any) -> Callable[..., None]:
    """Return a function compiled for a signature, or read from numba's cache on disk.

    numba finds out by the file of a function alone whether what it keeps of it is still right.
    So it keeps it under a name that tells of all files that a kernel is made of.
    """
    function.__qualname__ = f"{function.__name__}_{digest_of_sources()}"
    try:
        compiled: Callable[..., None] = njit(signature, nogil=True, cache=True)(function)
    except Exception:  # of the cache: no place to write it, a full disk, a damaged file
        compiled = njit(signature, nogil=True)(function)
    return compiled
