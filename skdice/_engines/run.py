"""How the rows of one detector are computed: `choose` decides on an engine, and `run` loops.

An `Engine` is one callable from a block of rows to their logits or scores, and its conditions.
A new engine is returned from `choose`. If it packs the weights for the CPU, it gets a name in
`CPUEngine`, its class in `PACKED_LAYERS`, which has the interface of `FewClassesLayer`, and in
`skdice._engines.costs` its costs and a place in `cheapest`.
The detectors of an ensemble share each block in a loop of their own, `skdice._engines.together`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import mul
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, namespace_of, to_numpy
from skdice._compat.extras import has_numba
from skdice._compat.threads import available_threads, block_threads
from skdice._engines.activations import apply_shaping
from skdice._engines.costs import cheapest, cheapest_for_path, pays_to_compile
from skdice._engines.dense import array_engine, dense_engine, dense_path_engine
from skdice._engines.devices import torch_device
from skdice._engines.few import FewClassesLayer
from skdice._engines.geometric import geometric_engine
from skdice._engines.kernels.fused import FUSED_SCORES, FusedScore
from skdice._engines.layer import (
    FDBDLayer,
    FittedLayer,
    GeometricLayers,
    Layer,
    LayerPath,
    MaskedLayer,
    ViMLayer,
)
from skdice._engines.logits import score_logits
from skdice._engines.sparse import TILE_ROWS, SparseLayer
from skdice._engines.summaries import RowSummaries
from skdice._engines.summarized_geometry import geometric_function
from skdice._rows.sources import SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]
CPUEngine = Literal["dense", "sparse", "few"]
# The class of each engine of the CPU that packs the masked weight in a form of its own. The dense
# engine needs none, and computes whatever the others do not.
PACKED_LAYERS: dict[CPUEngine, type[SparseLayer | FewClassesLayer]] = {
    "sparse": SparseLayer,
    "few": FewClassesLayer,
}

# This many rows or fewer are computed in less time than the choice of an engine would take.
SMALL_BATCH_ROWS = 16
# Inside `forced_engine`, the last item names the engine of the CPU that is always chosen.
_forced: list[CPUEngine] = []


@dataclass(frozen=True)
class Options:
    """Options of the computation: the parameters of a detector with the same names."""

    device: str | None = None
    batch_size: int | None = None
    n_jobs: int | None = None
    verbose: int | bool = 0


@dataclass(frozen=True)
class Engine:
    """One function from a block of rows to its values, and how the loop calls it.

    Parameters
    ----------
    name : str
        Name of the engine, also for the progress bar.
    compute : callable
        From a block of rows to its values.
    slices : list of slice
        The blocks.
    n_threads : int
        Threads that call `compute`.
    native : bool
        Whether the blocks are arrays of the library of the rows, unchecked.
    nonfinite_propagates : bool
        Whether a feature that is not finite always makes a value that is not.
    finish : callable or None
        Called once after the last block.
    """

    name: str
    compute: Callable[[Any], Any]
    slices: list[slice]
    n_threads: int = 1
    native: bool = False
    nonfinite_propagates: bool = False
    finish: Callable[[], None] | None = None


def choose(layer: Layer | LayerPath, rows: SlicedRows, options: Options) -> Engine:
    """Return the engine that computes a layer for the rows of a source.

    Rows of torch or another array library are computed where they lie; other rows by NumPy or
    the kernels of the CPU, or on the GPU that `device` names. A function of the user, as the
    score or the shaping, is always called with NumPy arrays on the CPU.

    Parameters
    ----------
    layer : MaskedLayer, FDBDLayer, ViMLayer or LayerPath
        The layer that is computed.
    rows : SlicedRows
        Source of the blocks.
    options : Options
        The options of the user.
    """
    if isinstance(layer, LayerPath):
        return _path_engine(layer, rows, options)
    if (rows.namespace is not None or options.device is not None) and layer.is_portable:
        device = _torch_device(rows, options)
        if device is not None:
            return _torch_engine(layer, rows, options, device)
        if rows.namespace is not None and options.device in (None, "auto"):
            return _array_engine(layer, rows, options, rows.namespace)
    return choose_for_cpu(layer, rows, options)


@contextmanager
def forced_engine(name: CPUEngine) -> Iterator[None]:
    """Prefer one engine of the CPU for all NumPy blocks, for tests and benchmarks.

    The dense engine still computes small batches, and everything if numba is missing.
    """
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def _torch_device(rows: SlicedRows, options: Options) -> Any:
    """Return the torch.device on which the rows are computed; None if torch does not do it."""
    home = None
    if rows.namespace is not None and rows.namespace.xp.__name__.endswith("torch"):
        home = rows.namespace.device
    if options.device is None:
        return home
    if options.device != "auto":
        return torch_device(options.device)
    if rows.namespace is not None and (home is None or home.type != "cpu"):
        return home
    device = torch_device("auto")
    if device is not None and device.type == "mps" and scoring_dtype(rows.dtype) == np.float64:
        device = None  # MPS has no double precision
    return home if device is None else device


def _torch_engine(layer: Layer, rows: SlicedRows, options: Options, device: Any) -> Engine:
    from skdice._engines.torch import STAGING_THREADS, TorchEngine

    engine = TorchEngine(layer, device, scoring_dtype(rows.dtype))
    is_tensor = rows.namespace is not None and rows.namespace.xp.__name__.endswith("torch")
    from_host = not is_tensor or cast(Namespace, rows.namespace).device.type == "cpu"
    staged = from_host and device.type == "cuda"
    slices = rows.slices(
        options.batch_size,
        sum(map(mul, layer.row_arrays, layer.weight.shape)) * scoring_dtype(rows.dtype).itemsize,
        block_bytes=engine.block_bytes(from_host=from_host),
        min_rows=64,
    )
    return Engine(
        f"torch on {device}",
        engine.compute_tensor if is_tensor else engine.compute_host,
        slices,
        n_threads=STAGING_THREADS if staged else 1,
        native=True,
        finish=engine.free if from_host else None,
    )


def _array_engine(layer: Layer, rows: SlicedRows, options: Options, namespace: Namespace) -> Engine:
    name = namespace.xp.__name__.removeprefix("array_api_compat.")
    dtype = scoring_dtype(rows.dtype)
    if isinstance(layer, MaskedLayer):
        compute = array_engine(layer, namespace, dtype)
    else:
        compute = _first(geometric_engine(_alone(layer), dtype, namespace))
    row_size = sum(map(mul, layer.row_arrays, layer.weight.shape))
    slices = rows.slices(options.batch_size, row_size * dtype.itemsize)
    return Engine(name, compute, slices, native=True)


def _alone(layer: FDBDLayer | ViMLayer) -> GeometricLayers:
    return GeometricLayers((layer,), layer.packed)


def _first(function: Callable[[Any], list[Any]]) -> Callable[[Any], Any]:
    return lambda block: function(block)[0]


def summaries_for(layer: FittedLayer, rows: SlicedRows) -> RowSummaries | None:
    """Return the compiled summaries of rows; None if NumPy is to make them."""
    n_rows, dtype = rows.shape[0], scoring_dtype(rows.dtype)
    n_classes, n_features = layer.weight.shape
    if _forced:
        is_wanted = _forced[-1] != "dense"
    else:
        is_wanted = n_rows > SMALL_BATCH_ROWS and pays_to_compile(
            n_rows, n_features, n_classes, dtype
        )
    return RowSummaries(dtype) if is_wanted and has_numba() else None


def choose_for_cpu(layer: Layer, rows: SlicedRows, options: Options) -> Engine:
    """Return the engine that computes a layer from NumPy blocks of the rows."""
    n_rows, dtype = rows.shape[0], scoring_dtype(rows.dtype)
    row_size = sum(map(mul, layer.row_arrays, layer.weight.shape))
    slices = rows.slices(options.batch_size, row_size * dtype.itemsize)
    name: CPUEngine = "dense"
    # A service scores a few rows at a time, for which comparing the costs would take too long.
    if isinstance(layer, MaskedLayer) and n_rows > SMALL_BATCH_ROWS:
        name = _cheapest_for_cpu(layer, rows, options, len(slices))
    if name == "dense" or not isinstance(layer, MaskedLayer):
        compute: Callable[[Any], Any]
        if isinstance(layer, MaskedLayer):
            compute = dense_engine(layer, dtype, reuses_memory=len(slices) > 1)
        else:
            summaries = summaries_for(layer, rows)
            compute = _first(geometric_function(_alone(layer), dtype, summaries))
        # A task of a cluster has one thread, because other tasks work beside it.
        parallel = len(slices) > 1 and rows.reads_ahead
        n_threads = block_threads(options.n_jobs) if parallel else 1
        return Engine("dense engine", compute, slices, n_threads)
    packed: SparseLayer | FewClassesLayer = layer.packed_as(
        (name, dtype),
        lambda weight, bias: PACKED_LAYERS[name](weight.astype(dtype, copy=False), bias),
    )
    is_fused = layer.score in FUSED_SCORES

    def compute_block(block: FloatArray) -> FloatArray:
        shaped = apply_shaping(layer.shaping, block)
        if is_fused:
            return packed.scores(shaped, cast(FusedScore, layer.score))
        values: FloatArray = score_logits(layer.score, packed.logits(shaped))
        return values

    return Engine(
        f"{name} engine",
        compute_block,
        slices,
        _kernel_threads(layer, rows, options, len(slices)),
        # Only the engine for few classes multiplies every feature by every weight: the sparse
        # engine skips features without a weight, and a matrix library may skip zeros in the weight,
        # which a mask makes. With a shaping no engine guarantees it, because a shaping may clip a
        # feature that is not finite.
        nonfinite_propagates=name == "few"
        and layer.shaping is None
        and (layer.score is None or is_fused),
    )


def _cheapest_for_cpu(
    layer: MaskedLayer, rows: SlicedRows, options: Options, n_blocks: int
) -> CPUEngine:
    """Return the name of the fastest engine of the CPU that is available."""
    n_classes, n_features = layer.weight.shape
    problem = (rows.shape[0], n_features, n_classes)
    dtype = scoring_dtype(rows.dtype)
    # Most calls have too few rows for any other engine, even if the head kept no weight at all.
    if not _forced and not pays_to_compile(*problem, dtype):
        return "dense"
    if not has_numba() or (options.batch_size or TILE_ROWS) < TILE_ROWS:
        return "dense"
    if _forced:
        return _forced[-1]
    n_kept = int(np.count_nonzero(layer.weight))
    n_threads = _kernel_threads(layer, rows, options, n_blocks)
    return cheapest(*problem, n_kept, dtype, n_threads)


def _kernel_threads(layer: MaskedLayer, rows: SlicedRows, options: Options, n_blocks: int) -> int:
    """Return how many threads call an engine that uses no threads of a BLAS."""
    if not rows.reads_ahead:
        return 1
    if options.n_jobs is None and layer.is_portable:
        # The number is that of the threads that the dense engine's matrix products would take.
        return min(available_threads(), n_blocks)
    # A function of the user need not be thread-safe, so only `n_jobs` makes it run in threads.
    return min(block_threads(options.n_jobs), n_blocks)


def _path_engine(path: LayerPath, rows: SlicedRows, options: Options) -> Engine:
    dtype = scoring_dtype(rows.dtype)
    row_size = sum(map(mul, path.row_arrays, path.weight.shape))
    slices = rows.slices(options.batch_size, row_size * dtype.itemsize)
    n_classes, n_features = path.weight.shape
    n_kept = [int(np.count_nonzero(mask)) for mask in path.masks]
    n_threads = available_threads()
    name = (
        _forced[-1]
        if _forced
        else cheapest_for_path(len(rows), n_features, n_classes, sorted(n_kept), dtype, n_threads)
    )
    if name != "sparse" or path.score not in FUSED_SCORES or not has_numba():
        return Engine("dense engine", dense_path_engine(path, dtype), slices)
    # The masks are nested, so the level of a weight is the number of the first mask that keeps it.
    level = np.full(path.weight.shape, len(path.masks), np.uint16)
    for mask in path.masks:
        level -= mask
    packed = SparseLayer(path.weight.astype(dtype, copy=False), path.bias, level, len(path.masks))
    place = np.argsort(np.argsort(n_kept))

    def compute(block: FloatArray) -> FloatArray:
        shaped = apply_shaping(path.shaping, block)
        return packed.level_scores(shaped, cast(FusedScore, path.score))[place].T

    return Engine("sparse engine", compute, slices, n_threads if path.is_portable else 1)


def run(
    layer: Layer | LayerPath, rows: SlicedRows, options: Options
) -> Iterator[tuple[slice, Any]]:
    """Yield the slice and the logits or scores of each block of rows, in order.

    Parameters
    ----------
    layer : MaskedLayer, FDBDLayer, ViMLayer or LayerPath
        The layer that is computed.
    rows : SlicedRows
        The rows.
    options : Options
        The options of the user.

    Yields
    ------
    row_slice : slice
        Rows of the block.
    values : array
        Their values, on the device of the rows.

    Raises
    ------
    ValueError
        A feature or a value is not finite; the message names the row.
    """
    engine = choose(layer, rows, options)
    values_name = "logits" if layer.score is None else "scores"
    on_device: list[tuple[slice, Any]] = []
    blocks = rows.map_blocks(
        engine.compute,
        engine.slices,
        native=engine.native,
        validate=not engine.nonfinite_propagates,
        n_threads=engine.n_threads,
        description=f"{values_name}, {engine.name}",
        verbose=options.verbose,
    )
    try:
        for row_slice, values in blocks:
            if isinstance(values, np.ndarray):
                rows.check_values(values, row_slice, values_name)
            else:
                xp = namespace_of(values)
                on_device.append((row_slice, xp.all(xp.isfinite(values))))
            yield row_slice, values
        # Reading a result waits for the device, so all these results are read at the end.
        for row_slice, is_finite in on_device:
            if not bool(is_finite):
                values = to_numpy(engine.compute(rows.native_block(row_slice)))
                rows.check_values(values, row_slice, values_name)
    finally:
        if engine.finish is not None:
            engine.finish()
