"""Which engine computes the rows of a source: the only place that decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace
from skdice._compat.extras import has_numba
from skdice._engines.activations import apply_shaping
from skdice._engines.costs import cheapest, cheapest_for_path
from skdice._engines.dense import array_engine, dense_engine, dense_path_engine
from skdice._engines.devices import torch_device
from skdice._engines.few import FewClassesLayer
from skdice._engines.kernels.fused import FUSED_SCORES, FusedScore
from skdice._engines.layer import LayerPath, MaskedLayer, values_dtype
from skdice._engines.logits import score_logits
from skdice._engines.sparse import TILE_ROWS, SparseLayer
from skdice._engines.threads import available_threads, block_threads
from skdice._rows.blocks import block_slices
from skdice._rows.sources import SlicedRows

FloatArray = NDArray[np.floating[Any]]
CPUEngine = Literal["dense", "sparse", "few"]

# The name of the engine of the CPU that is chosen in any case, inside `forced_engine`.
_forced: list[CPUEngine] = []


@dataclass(frozen=True)
class Options:
    """How the user wants rows to be computed: parameters of an estimator of those names."""

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
        Name for the progress bar.
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
    finish : callable
        Called once after the last block.
    """

    name: str
    compute: Callable[[Any], Any]
    slices: list[slice]
    n_threads: int = 1
    native: bool = False
    nonfinite_propagates: bool = False
    finish: Callable[[], None] = lambda: None


def choose(layer: MaskedLayer | LayerPath, rows: SlicedRows, options: Options) -> Engine:
    """Return the engine that computes a layer for the rows of a source.

    Rows of torch or another array library are computed where they lie; other rows by NumPy or
    the kernels of the CPU, or on the GPU that `device` names. A function of the user, as the
    score or the shaping, is always called with NumPy arrays on the CPU.

    Parameters
    ----------
    layer : MaskedLayer or LayerPath
        What is computed.
    rows : SlicedRows
        Source of the blocks.
    options : Options
        What the user asked for.
    """
    if isinstance(layer, LayerPath):
        return _path_engine(layer, rows, options)
    if layer.is_portable:
        device = _torch_device(rows, options)
        if device is not None:
            return _torch_engine(layer, rows, options, device)
        if rows.namespace is not None and options.device in (None, "auto"):
            return _array_engine(layer, rows, options, rows.namespace)
    return _cpu_engine(layer, rows, options)


@contextmanager
def forced_engine(name: CPUEngine) -> Iterator[None]:
    """Have one engine of the CPU chosen for all rows, for tests and benchmarks."""
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
    if device is not None and device.type == "mps" and values_dtype(rows) == np.float64:
        device = None  # MPS has no double precision
    return home if device is None else device


def _torch_engine(layer: MaskedLayer, rows: SlicedRows, options: Options, device: Any) -> Engine:
    from skdice._engines.torch import STAGING_THREADS, TorchEngine

    engine = TorchEngine(layer, device, values_dtype(rows))
    is_tensor = rows.namespace is not None and rows.namespace.xp.__name__.endswith("torch")
    to_host = not is_tensor or cast(Namespace, rows.namespace).device.type == "cpu"
    staged = to_host and device.type == "cuda"
    slices = block_slices(
        len(rows),
        _row_bytes(layer, rows),
        options.batch_size,
        block_bytes=engine.block_bytes(to_host=to_host),
        min_rows=64,
    )
    return Engine(
        f"torch on {device}",
        engine.compute_tensor if is_tensor else engine.compute_host,
        slices,
        n_threads=STAGING_THREADS if staged else 1,
        native=True,
        finish=engine.free if to_host else Engine.finish,
    )


def _array_engine(
    layer: MaskedLayer, rows: SlicedRows, options: Options, namespace: Namespace
) -> Engine:
    name = namespace.xp.__name__.removeprefix("array_api_compat.")
    compute = array_engine(layer, namespace, values_dtype(rows))
    slices = rows.slices(options.batch_size, _row_bytes(layer, rows))
    return Engine(name, compute, slices, native=True)


def _cpu_engine(layer: MaskedLayer, rows: SlicedRows, options: Options) -> Engine:
    slices = rows.slices(options.batch_size, _row_bytes(layer, rows))
    dtype = values_dtype(rows)
    name, n_threads = _cpu_choice(layer, rows, options, len(slices))
    if name == "dense":
        return Engine("dense engine", dense_engine(layer, dtype), slices, n_threads)
    packers: dict[str, Any] = {"sparse": SparseLayer, "few": FewClassesLayer}
    packed: SparseLayer | FewClassesLayer = layer.packed_as(
        (name, dtype),
        lambda weight, bias: packers[name](weight.astype(dtype, copy=False), bias),
    )
    is_fused = layer.score in FUSED_SCORES

    def compute(block: FloatArray) -> FloatArray:
        shaped = apply_shaping(layer.shaping, block)
        if is_fused:
            return packed.scores(shaped, cast(FusedScore, layer.score))
        values: FloatArray = score_logits(layer.score, packed.logits(shaped))
        return values

    return Engine(
        f"{name} engine",
        compute,
        slices,
        n_threads,
        # The engine for few classes multiplies every feature by every weight. A shaping may clip
        # a feature that is not finite, the sparse engine skips features without a weight, and a
        # matrix library may skip zeros.
        nonfinite_propagates=name == "few"
        and layer.shaping is None
        and (layer.score is None or is_fused),
    )


def _cpu_choice(
    layer: MaskedLayer, rows: SlicedRows, options: Options, n_blocks: int
) -> tuple[CPUEngine, int]:
    """Return the fastest engine of the CPU, and its number of threads."""
    n_classes, n_features = layer.weight.shape
    problem = (len(rows), n_features, n_classes)
    dtype = values_dtype(rows)
    # A task of a cluster has one thread, because other tasks work beside it.
    dense_threads = block_threads(options.n_jobs) if n_blocks > 1 and rows.reads_ahead else 1
    if not _forced and cheapest(*problem, 0, dtype, 1) == "dense":
        # Most calls have too few rows for any other engine, whatever the head keeps. A single row
        # is spared the questions below.
        return "dense", dense_threads
    if not has_numba() or (options.batch_size or TILE_ROWS) < TILE_ROWS:
        return "dense", dense_threads
    if not rows.reads_ahead:
        n_threads = 1
    elif options.n_jobs is None and layer.is_portable:
        # As many as the matrix products of the dense engine would take.
        n_threads = min(available_threads(), n_blocks)
    else:
        # Functions of the user need not be safe to call from threads that nobody asked for.
        n_threads = min(block_threads(options.n_jobs), n_blocks)
    if _forced:
        name = _forced[-1]
    else:
        n_kept = int(np.count_nonzero(layer.weight))
        name = cheapest(*problem, n_kept, dtype, n_threads)
    return name, dense_threads if name == "dense" else n_threads


def _path_engine(path: LayerPath, rows: SlicedRows, options: Options) -> Engine:
    dtype = values_dtype(rows)
    slices = rows.slices(options.batch_size, _row_bytes(path, rows))
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
    # Each mask holds the smaller ones: a weight comes in with the first mask that has it.
    level = np.full(path.weight.shape, len(path.masks), np.uint16)
    for mask in path.masks:
        level -= mask
    packed = SparseLayer(path.weight.astype(dtype, copy=False), path.bias, level, len(path.masks))
    place = np.argsort(np.argsort(n_kept))

    def compute(block: FloatArray) -> FloatArray:
        shaped = apply_shaping(path.shaping, block)
        return packed.level_scores(shaped, cast(FusedScore, path.score))[place].T

    return Engine("sparse engine", compute, slices, n_threads if path.is_portable else 1)


def _row_bytes(layer: MaskedLayer | LayerPath, rows: SlicedRows) -> int:
    """Return the memory that a row and its logits take while it is processed."""
    return sum(layer.weight.shape) * values_dtype(rows).itemsize
