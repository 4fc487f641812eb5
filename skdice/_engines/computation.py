"""Which engine computes the rows of a source, and where the results lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from skdice._compat.arrays import from_numpy, has_float64, to_numpy
from skdice._compat.extras import has_numba
from skdice._engines import (
    FUSED_SCORES,
    TILE_ROWS,
    ArrayLayer,
    Plan,
    available_threads,
    block_threads,
    choose_engine,
    torch_blocks,
    torch_device,
)
from skdice._engines.scoring import (
    check_finite,
    engine_function,
    is_builtin,
)
from skdice._rows.dask import DaskRows, in_order
from skdice._rows.sources import (
    ArrayRows,
    Rows,
    SelectedRows,
    array_source,
    block_slices,
    load_block,
    map_blocks,
    scoring_dtype,
)
from skdice.shaping import ASH, VRA, ReAct, Scale

FloatArray = NDArray[np.floating[Any]]
Blocks = Iterator[tuple[slice, Any]]


def named_plan(
    coef: FloatArray, intercept: FloatArray, score_func: Any, shaping: Any
) -> Plan | None:
    """Return what an engine has to compute; None where it takes a function of the user's.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features)
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.
    score_func : str or callable
        Of the detector.
    shaping : fitted transformer or None
        Of the detector.
    """
    if not isinstance(score_func, str) or not is_builtin(shaping):
        return None
    match shaping:
        case None:
            return Plan(coef, intercept, score_func)
        case ReAct():
            high: Any = getattr(shaping, "threshold_", shaping.threshold)
            return Plan(coef, intercept, score_func, "ReAct", high=high)
        case VRA():
            low, high = shaping.alpha_, shaping.beta_
            return Plan(coef, intercept, score_func, "VRA", low=low, high=high)
        case ASH() | Scale():
            name, n_pruned = type(shaping).__name__, shaping.n_pruned(coef.shape[1])
            return Plan(coef, intercept, score_func, name, n_pruned=n_pruned)
    return None


@dataclass(frozen=True)
class Computation:
    """The logits or the scores of rows, as a fitted detector computes them.

    Where the rows are an array of torch or another library, it is computed where they lie
    and the results lie there too; on a GPU where `device` names one; by NumPy otherwise,
    and always where `score_func` or the shaping is a function of the user's.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features)
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.
    shaping : fitted transformer or None
        Applied to the features first.
    score_func : str, callable or None
        None for the logits themselves.
    device : str or None
        Of the detector.
    batch_size, n_jobs, verbose : int or None
        Of the detector.
    """

    coef: FloatArray
    intercept: FloatArray
    shaping: Any
    score_func: str | Callable[[FloatArray], FloatArray] | None
    device: str | None
    batch_size: int | None
    n_jobs: int | None
    verbose: int | bool

    @property
    def name(self) -> str:
        """What the values are."""
        return "logits" if self.score_func is None else "scores"

    def collect(self, rows: Rows) -> Any:
        """Return the values of all rows, in the library and on the device of the rows.

        Of rows of a Dask array, a lazy array with the same chunks.
        """
        source, dtype = array_source(rows), scoring_dtype(rows.dtype)
        if isinstance(rows, DaskRows):
            # A task has one thread: others work beside it.
            in_task = replace(self, n_jobs=1, verbose=0)
            return rows.map(in_task, dtype, len(self.coef) if self.score_func is None else None)
        shape = (rows.shape[0], *([len(self.coef)] if self.score_func is None else []))
        if source is None:
            out = np.empty(shape, dtype)
            for where, values in self.numpy_blocks(rows):
                out[where] = values
            return out
        if not has_float64(source.xp, source.device):
            dtype = np.dtype(np.float32)
        out = source.empty(shape, dtype)
        for where, values in self._blocks(rows):
            if isinstance(values, np.ndarray):
                values = from_numpy(values.astype(dtype, copy=False), source.xp, source.device)
            out[where, ...] = values
        # Once, at the end: each look from the host would wait for the device.
        bad = ~source.xp.isfinite(out)
        if bool(source.xp.any(bad)):
            self._check(to_numpy(out), rows, 0)
        return out

    def numpy_blocks(self, rows: Rows) -> Iterator[tuple[slice, FloatArray]]:
        """Yield the slice and the values of each block of rows, in order, as NumPy arrays."""
        dtype = scoring_dtype(rows.dtype)
        if isinstance(rows, DaskRows):
            stop = 0
            for block in in_order(self.collect(rows)):
                start, stop = stop, stop + len(block)
                yield slice(start, stop), block
            return
        for where, values in self._blocks(rows):
            block = to_numpy(values)
            self._check(block, rows, where.start)
            yield where, block.astype(dtype, copy=False)

    def _check(self, values: FloatArray, rows: Rows, first_row: int) -> None:
        if values.ndim == 2:
            values = np.abs(values).max(axis=1)  # NaN where there is one
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            # The features themselves may be at fault, which other engines leave unsaid.
            row = first_row + int(bad[0])
            load_block(rows, slice(row, row + 1))
            check_finite(values, rows, first_row, "logits" if self.score_func is None else "score")

    def _blocks(self, rows: Rows) -> Blocks:
        device = self._torch_device(rows)
        # Of a library other than torch, it is computed where it lies.
        follows = array_source(rows) is not None and self.device in (None, "auto")
        plan = None
        if device is not None or follows:
            plan = named_plan(self.coef, self.intercept, self.score_func or "energy", self.shaping)
        if plan is None:
            return self._numpy_blocks(rows)
        if device is not None:
            return self._with_progress(self._torch_blocks(rows, plan, device), rows)
        return self._with_progress(self._array_blocks(rows, plan), rows)

    def _torch_device(self, rows: Rows) -> Any:
        """Return the torch.device on which the rows are computed; None if not by torch."""
        source, home = array_source(rows), None
        if source is not None and array_api_compat.is_torch_array(source.array):
            home = source.device
        if self.device is None:
            return home
        if self.device != "auto":
            return torch_device(self.device)
        if source is not None and (home is None or home.type != "cpu"):
            return home
        device = torch_device("auto")
        if device is not None and device.type == "mps" and scoring_dtype(rows.dtype).itemsize > 4:
            device = None  # it has no double precision
        return home if device is None else device

    def _numpy_blocks(self, rows: Rows) -> Blocks:
        slices, dtype = self._slices(rows), scoring_dtype(rows.dtype)
        engine, n_threads = self._engine(rows, len(slices))
        # It multiplies every feature by every weight: one that is not finite makes a result that
        # is not, which is looked at anyway. (A shaping may clip it; a matrix library may skip
        # the zeros.)
        shows = engine == "few" and self.shaping is None
        shows = shows and (self.score_func is None or self.score_func in FUSED_SCORES)
        return map_blocks(
            engine_function(
                engine, self.coef, self.intercept, self.shaping, dtype, self.score_func
            ),
            rows,
            slices,
            n_threads=n_threads,
            validate=not shows,
            description=f"{self.name}, {engine} engine",
            verbose=self.verbose,
        )

    def _engine(self, rows: Rows, n_blocks: int) -> tuple[Literal["dense", "sparse", "few"], int]:
        """Return the fastest engine of the CPU, and its number of threads."""
        n_classes, n_features = self.coef.shape
        shape, dtype = (rows.shape[0], n_features, n_classes), scoring_dtype(rows.dtype)
        dense_threads = block_threads(self.n_jobs) if n_blocks > 1 else 1
        # Most are too few rows whatever the head keeps; a single one is spared the rest.
        if choose_engine(*shape, 0, dtype, 1) == "dense" or not has_numba():
            return "dense", dense_threads
        if self.batch_size is not None and self.batch_size < TILE_ROWS:
            return "dense", dense_threads
        if self.n_jobs is None and not callable(self.score_func) and is_builtin(self.shaping):
            # As many as the matrix products of the dense engine would take.
            n_threads = available_threads()
        else:
            n_threads = block_threads(self.n_jobs)
        n_threads = min(n_threads, n_blocks)
        n_kept = int(np.count_nonzero(self.coef))
        engine = choose_engine(*shape, n_kept, dtype, n_threads)
        return engine, dense_threads if engine == "dense" else n_threads

    def _array_blocks(self, rows: Rows, plan: Plan) -> Blocks:
        source, dtype = array_source(rows), scoring_dtype(rows.dtype)
        assert source is not None
        assert isinstance(rows, ArrayRows | SelectedRows)
        coef, intercept = (
            from_numpy(each.astype(dtype), source.xp, source.device)
            for each in (plan.coef, plan.intercept)
        )
        layer = ArrayLayer(replace(plan, coef=coef, intercept=intercept), source.xp)
        for where in self._slices(rows):
            block = source.xp.astype(rows.native(where), coef.dtype)
            with np.errstate(all="ignore"):  # the results are looked at
                values = layer.compute(block, logits=self.score_func is None)
            yield where, values

    def _torch_blocks(self, rows: Rows, plan: Plan, device: Any) -> Blocks:
        source, read, dtype = array_source(rows), rows.__getitem__, rows.dtype
        if source is not None and array_api_compat.is_torch_array(source.array):
            assert isinstance(rows, ArrayRows | SelectedRows)
            read, dtype = rows.native, source.array.dtype
        return torch_blocks(
            plan,
            read,
            rows.shape[0],
            dtype,
            device,
            logits=self.score_func is None,
            double=scoring_dtype(rows.dtype) == np.float64,
            batch_size=self.batch_size,
        )

    def _slices(self, rows: Rows) -> list[slice]:
        n_classes, n_features = self.coef.shape
        row_bytes = (n_features + n_classes) * scoring_dtype(rows.dtype).itemsize
        return block_slices(rows.shape[0], row_bytes, self.batch_size)

    def _with_progress(self, blocks: Blocks, rows: Rows) -> Blocks:
        with tqdm(
            total=rows.shape[0], desc=self.name, unit=" rows", disable=not self.verbose
        ) as bar:
            for where, values in blocks:
                yield where, values
                bar.update(where.stop - where.start)
