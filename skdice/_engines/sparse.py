"""The sparse engine: each class adds up its kept weights only; exact, for CPUs.

A tile of 64 rows in float32, of 32 in float64, is transposed, so that one feature of all its
rows is four vectors of 64 bytes. Its columns are worked through in panels that fit the
first-level cache. In a panel, each class adds its kept weights times their columns in
registers, and once to its logits of the tile, which stay in the second-level cache. The
log-sum-exp is taken there: the logits are never written out unless asked for.

Only the kernels (`skdice._engines.kernels.sparse`) import numba.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skdice._compat.extras import import_extra
from skdice._engines.kernels.fused import LOGITS, FusedScore, aligned, fused_scores, output_of
from skdice._engines.kernels.layout import COLUMN_BYTES, SQUARE_BYTES

FloatArray = NDArray[np.floating[Any]]
IndexArray = NDArray[np.int64]

# A tile has this many rows in float32. A block of fewer rows takes the time of a whole tile.
TILE_ROWS = COLUMN_BYTES // 4
# A panel of so many columns takes 28 KiB, because the smallest first-level caches have 32 KiB and
# also hold weights and logits. Every byte offset in a panel must fit into 16 bits.
PANEL_COLUMNS = 112
# The logits of a tile for this many classes take 256 KiB of the second-level cache.
BLOCK_CLASSES = 1024


class PackedHead(NamedTuple):
    """A masked head, laid out for the kernel.

    Classes come in blocks, weights in levels, used columns in panels. The kept weights of
    one class and level in one panel are a run; the runs of a block, level and panel are
    ordered by length, the longest first, so that the processor can predict the length of
    the loop over a run.

    Attributes
    ----------
    intercept : ndarray of shape (n_classes,)
        Bias.
    block_classes : ndarray of shape (n_blocks + 1,)
        First class of each block.
    panel_squares : ndarray of shape (n_panels + 1,)
        First square of columns of each panel.
    square_columns : ndarray of shape (n_squares,)
        First column of the features in each square.
    square_offsets : ndarray of shape (n_squares, columns per square), uint16
        Byte offset in the panel to which each column of the square goes. Columns of units with
        no weight left, and of other panels, all go to one place that is never read.
    first_runs : ndarray of shape (n_blocks, n_levels, n_panels + 1)
        First run of each block, level and panel.
    run_classes : ndarray of shape (n_runs,), uint16
        Class of each run, counted from the first of its block.
    run_weights : ndarray of shape (n_runs + 1,)
        First weight of each run.
    offsets : ndarray of shape (n_kept,), uint16
        Byte offset in the panel of the column of each weight.
    weights : ndarray of shape (n_kept,)
        Kept weights.
    """

    intercept: FloatArray
    block_classes: IndexArray
    panel_squares: IndexArray
    square_columns: IndexArray
    square_offsets: NDArray[np.uint16]
    first_runs: IndexArray
    run_classes: NDArray[np.uint16]
    run_weights: IndexArray
    offsets: NDArray[np.uint16]
    weights: FloatArray


def pack_head(
    coef: FloatArray,
    intercept: FloatArray,
    level: NDArray[np.integer[Any]] | None = None,
    n_levels: int = 1,
) -> PackedHead:
    """Lay a masked head out for the kernel.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features), float32 or float64
        Masked weight: the kept weights are those that are not zero. A row has at least 32
        bytes, which is 8 features in float32 and 4 in float64.
    intercept : ndarray of shape (n_classes,)
        Bias, in the same dtype.
    level : ndarray of shape (n_classes, n_features), int, default=None
        Level of each weight. A weight whose level is `n_levels` or above is never used. None
        puts all weights at level 0.
    n_levels : int, default=1
        Number of levels.
    """
    n_classes, n_features = coef.shape
    n_blocks = -(-n_classes // BLOCK_CLASSES)
    block_classes = np.linspace(0, n_classes, n_blocks + 1).astype(np.int64)

    def kept_weights(first: int, stop: int) -> NDArray[np.bool_]:
        # The mask is made for one block at a time, because little memory may be left beside a
        # large head.
        kept: NDArray[np.bool_] = coef[first:stop] != 0
        if level is not None:
            kept &= level[first:stop] < n_levels
        return kept

    n_kept, is_used = 0, np.zeros(n_features, np.bool_)
    for block in pairwise(block_classes):
        kept = kept_weights(*block)
        n_kept += int(np.count_nonzero(kept))
        is_used |= kept.any(axis=0)
    used = np.flatnonzero(is_used)
    n_panels = -(-len(used) // PANEL_COLUMNS)
    # The panels are as even as possible.
    panels = [
        used[len(used) * i // n_panels : len(used) * (i + 1) // n_panels] for i in range(n_panels)
    ]
    first_columns = np.array([columns[0] for columns in panels], np.intp)
    offset_of_column = np.zeros(n_features, np.uint16)
    for columns in panels:
        offset_of_column[columns] = np.arange(len(columns)) * COLUMN_BYTES
    panel_squares, square_columns, square_offsets = _squares(
        panels, n_features, SQUARE_BYTES // coef.itemsize
    )
    parts = []
    offsets, weights = np.empty(n_kept, np.uint16), np.empty(n_kept, coef.dtype)
    filled = 0
    for first, stop in pairwise(block_classes):
        kept = kept_weights(first, stop)
        for n in range(n_levels):
            in_level = kept if level is None else kept & (level[first:stop] == n)
            runs = _runs(coef[first:stop], in_level, first_columns, offset_of_column)
            parts.append(runs[:3])
            end = filled + len(runs[3])
            offsets[filled:end], weights[filled:end] = runs[3:]
            filled = end
    runs_of_panels, run_classes, run_lengths = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    first_runs = np.zeros((n_blocks * n_levels, n_panels + 1), np.int64)
    first_runs[:, 1:] = np.cumsum(runs_of_panels).reshape(len(first_runs), n_panels)
    first_runs[1:, 0] = first_runs[:-1, -1]
    return PackedHead(
        intercept=np.ascontiguousarray(intercept),
        block_classes=block_classes,
        panel_squares=panel_squares,
        square_columns=square_columns,
        square_offsets=square_offsets,
        first_runs=first_runs.reshape(n_blocks, n_levels, n_panels + 1),
        run_classes=run_classes.astype(np.uint16),
        run_weights=np.concatenate([[0], np.cumsum(run_lengths)]).astype(np.int64),
        offsets=offsets,
        weights=weights,
    )


def _runs(
    coef: FloatArray,
    kept: NDArray[np.bool_],
    first_columns: NDArray[np.intp],
    offset_of_column: NDArray[np.uint16],
) -> tuple[IndexArray, IndexArray, IndexArray, NDArray[np.uint16], FloatArray]:
    """Return the runs of one block and level.

    Returns
    -------
    n_runs : ndarray of shape (n_panels,)
        Number of runs in each panel.
    classes, lengths : ndarray of shape (sum of n_runs,)
        Class of each run, counted from the first of the block, and its number of weights.
    offsets, weights : ndarray of shape (n_kept,)
        The same as in `PackedHead`.
    """
    kept_places = np.flatnonzero(kept)
    n_kept = np.add.reduceat(kept, first_columns, axis=1, dtype=np.intp)
    order = np.argsort(-n_kept.T, axis=1, kind="stable")  # (n_panels, classes)
    lengths = np.take_along_axis(n_kept.T, order, axis=1)
    # A run moves as a whole, because its weights lie together in row-major order as well.
    target = np.empty_like(n_kept)
    ends = np.cumsum(lengths).reshape(lengths.shape)
    np.put_along_axis(target.T, order, ends - lengths, axis=1)
    source = np.cumsum(n_kept) - n_kept.ravel()
    moved = np.arange(len(kept_places)) + np.repeat(target.ravel() - source, n_kept.ravel())
    offsets = np.empty(len(kept_places), np.uint16)
    weights = np.empty(len(kept_places), coef.dtype)
    offsets[moved] = offset_of_column[kept_places % kept.shape[1]]
    weights[moved] = coef.ravel()[kept_places]
    runs = lengths > 0
    return runs.sum(axis=1), order[runs], lengths[runs], offsets, weights


def _squares(
    panels: list[NDArray[np.intp]], n_features: int, width: int
) -> tuple[IndexArray, IndexArray, NDArray[np.uint16]]:
    """Return which squares of columns each panel transposes, and where their columns go."""
    counts = [0]
    columns: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
    offsets: list[NDArray[np.uint16]] = [np.empty((0, width), np.uint16)]
    for used in panels:
        offset = np.full(n_features, PANEL_COLUMNS * COLUMN_BYTES, np.uint16)
        offset[used] = np.arange(len(used)) * COLUMN_BYTES
        # The last square is moved to the left, to end where the features end.
        first = np.minimum(np.unique(used // width) * width, n_features - width)
        counts.append(counts[-1] + len(first))
        columns.append(first)
        offsets.append(offset[first[:, np.newaxis] + np.arange(width)])
    return (
        np.asarray(counts, np.int64),
        np.concatenate(columns).astype(np.int64),
        np.concatenate(offsets),
    )


class SparseLayer:
    """A masked layer of which only the kept weights are computed.

    One layer computes any number of blocks, in any number of threads at a time: the kernel runs
    in the thread that calls it, without the interpreter lock. The results of a row are the same
    bits in every block.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features), float32 or float64
        Masked weight: the kept weights are those that are not zero.
    intercept : ndarray of shape (n_classes,)
        Bias.
    level : ndarray of shape (n_classes, n_features), int, default=None
        Level with which `level_scores` adds each weight. A weight whose level is `n_levels` or
        above is not used. None adds all weights at once.
    n_levels : int, default=1
        Number of levels.

    Raises
    ------
    ImportError
        numba is not installed.
    """

    def __init__(
        self,
        coef: FloatArray,
        intercept: FloatArray,
        level: NDArray[np.integer[Any]] | None = None,
        n_levels: int = 1,
    ) -> None:
        import_extra("numba", "fast")
        from skdice._engines.kernels import sparse as kernels

        self.dtype = coef.dtype
        # Compile here, in one thread, because later several threads compute blocks.
        self._compute = kernels.compiled(self.dtype)
        widened = self._widened(coef)
        if level is not None and level.shape != widened.shape:
            level = np.pad(level, ((0, 0), (0, widened.shape[1] - coef.shape[1])))
        intercept = intercept.astype(self.dtype, copy=False)
        self._head = pack_head(widened, intercept, level, n_levels)

    def logits(self, features: FloatArray) -> FloatArray:
        """Return the logits (n_samples, n_classes) of a block of features.

        Parameters
        ----------
        features : ndarray of shape (n_samples, n_features)
            One block of rows, which is computed in the dtype of `coef`.
        """
        logits = np.empty((len(features), len(self._head.intercept)), self.dtype)
        unused = np.empty((1, 0), self.dtype)
        self._run(LOGITS, features, logits, unused, unused)
        return logits

    def scores(self, features: FloatArray, score: FusedScore) -> FloatArray:
        """Return one of `FUSED_SCORES` (n_samples,) of a block of features.

        Parameters
        ----------
        features : ndarray of shape (n_samples, n_features)
            One block of rows, which is computed in the dtype of `coef`.
        score : {"energy", "max_logit", "msp"}
            Score of a row from its logits.
        """
        scores: FloatArray = self.level_scores(features, score)[0]
        return scores

    def level_scores(self, features: FloatArray, score: FusedScore) -> FloatArray:
        """Return one of `FUSED_SCORES` with the weights of the first levels, for each level.

        Parameters
        ----------
        features, score
            The same as for `scores`.

        Returns
        -------
        ndarray of shape (n_levels, n_samples)
        """
        shape = self._head.first_runs.shape[1], len(features)
        maxima, totals = np.full(shape, -np.inf, self.dtype), np.zeros(shape, self.dtype)
        self._run(output_of(score), features, np.empty((0, 0), self.dtype), maxima, totals)
        return fused_scores(score, maxima, totals)

    def _widened(self, rows: FloatArray) -> FloatArray:
        """Return rows of at least one square of columns, contiguous and aligned."""
        missing = SQUARE_BYTES // self.dtype.itemsize - rows.shape[1]
        if missing > 0:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        return np.require(np.asarray(rows), self.dtype, ["C", "A"])

    def _run(
        self,
        output: int,
        features: FloatArray,
        logits: FloatArray,
        maxima: FloatArray,
        totals: FloatArray,
    ) -> None:
        tile_rows = COLUMN_BYTES // self.dtype.itemsize
        n_largest = int(np.diff(self._head.block_classes).max())
        self._compute(
            output,
            self._widened(features),
            *self._head,
            # The panel has one more column, to which the columns go that are not needed.
            aligned((PANEL_COLUMNS + 1, tile_rows), self.dtype),
            aligned((n_largest, tile_rows), self.dtype),
            logits,
            maxima,
            totals,
        )
