"""Mergeable float64 sums of all rows, which never hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dger
from sklearn.utils import column_or_1d

from skdice._compat.arrays import is_accelerator, namespace_of, to_host, to_numpy
from skdice._compat.extras import has_numba
from skdice._compat.threads import block_threads
from skdice._passes.largest import LargestEntries, keeper, margin_of, merged_largest
from skdice._passes.sums import array_column_sums, column_sums, two_sum
from skdice._rows.door import as_source
from skdice._rows.sources import MIN_BLOCK_ROWS, RowSource, SlicedRows, scoring_dtype

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]


# From this number of values on, 1 GiB in float32, compiled sums save more time than numba takes to
# load.
COMPILED_VALUES = 1 << 28
# A block has this many rows at least where the products of its columns are summed.
PRODUCT_ROWS = 2048
# 2**64 divided by the golden ratio. Multiples of it, modulo 2**64, fill the range evenly.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class FeatureStatistics:
    """Mean activation of features that come in blocks, on any number of machines.

    Each worker of Ray, Spark, MPI or any other engine adds its blocks of rows to an object of
    its own, which is small to send. The objects are merged in any order and given to
    `DICEDetector.partial_fit` in place of the rows. The sums are float64 and compensated, so
    that the mean does not depend on blocks, workers or the order of merging beyond the last
    digits; the notes state the bound.

    Parameters
    ----------
    n_features : int, default=None
        Number of features; None takes the number of the first block, or of the statistics that
        are merged first.
    second_moments : bool, default=False
        Whether the products of the features are summed too, as `ViMDetector.partial_fit` needs
        them. They take 8 bytes for each pair of features.

    Attributes
    ----------
    n_features : int or None
        Number of features; None until rows or other statistics are added.
    n_samples : int
        Number of rows so far.
    sum_of_weights : float
        Sum of their weights; the number of rows where no weights are given.
    total, error : ndarray of shape (n_features,), float64
        Weighted sum of the rows, and the part of it that rounding took away.
    scatter : ndarray of shape (n_features, n_features), float64, or None
        Weighted sum of ``(x - mean) (x - mean)^T`` over the rows x; None without second moments.

    See Also
    --------
    DICEDetector.partial_fit : Takes the statistics in place of rows.
    ViMDetector.partial_fit : Takes statistics with second moments.

    Notes
    -----
    `add` and `merge` change the object and are not safe to call from several threads at once:
    give each thread an object of its own.

    The mean of n rows without weights, however they are split and merged, differs from the exact
    mean of a feature x by at most ``4 u |mean(x)| + ((n + 2**14) u)**2 mean(|x|)``, where
    ``u = 2**-53``, so the means of two splits differ by twice that at most. The second term counts
    only where the values cancel almost wholly: it is 6e-8 of the mean of a few rows whose
    ``mean(|x|) / |mean(x)|`` is 2e16, and below 1e-12 where that is below 1e11.
    Blocks of more than 256 rows without a negative value are summed faster, plainly, which adds
    up to ``256 u`` of the mean of these blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice import DICEDetector, FeatureStatistics
    >>> X = np.random.default_rng(0).random((1000, 4))
    >>> of_workers = [FeatureStatistics().add(block) for block in np.split(X, [100, 700])]
    >>> statistics = FeatureStatistics()
    >>> for part in of_workers:
    ...     statistics = statistics.merge(part)
    >>> statistics
    FeatureStatistics(n_samples=1000, n_features=4)
    >>> bool(np.allclose(statistics.mean(), X.mean(axis=0), rtol=1e-14))
    True
    >>> DICEDetector(head="identity", sparsity=0).partial_fit(statistics).n_samples_seen_
    1000
    """

    def __init__(self, n_features: int | None = None, *, second_moments: bool = False) -> None:
        self.n_samples = 0
        self.sum_of_weights = 0.0
        self.n_features = n_features
        self.second_moments = second_moments
        self.total = np.zeros(n_features or 0)
        self.error = np.zeros(n_features or 0)
        self.scatter: Float64Array | None = None
        if second_moments:
            self.scatter = np.zeros((n_features or 0, n_features or 0))

    def add(self, X: Any, *, sample_weight: ArrayLike | None = None) -> Self:
        """Add the rows of X.

        Parameters
        ----------
        X : array-like or source of rows, of shape (n_samples, n_features)
            Features; an X without rows adds nothing.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, which must not be negative; None weighs all rows by 1.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A value is not finite (the message names the first such row of X), or the number
            of features differs from the rows before. The statistics are left as they were.
        """
        # The number of rows of a Dask data frame is not known, and cannot be compared.
        shape: tuple[int, ...] = () if hasattr(X, "to_dask_array") else np.shape(X)
        if len(shape) == 2 and shape[0] == 0 and shape[1] > 0:
            self._set_n_features(shape[1])
            return self
        rows = as_source(X)
        if sample_weight is not None:
            rows = rows.inliers(None, check_weights(sample_weight, rows))
        return self.merge(gather_statistics(rows, second_moments=self.second_moments))

    def merge(self, other: FeatureStatistics) -> Self:
        """Add the rows of other statistics, which do not change.

        Parameters
        ----------
        other : FeatureStatistics
            Statistics of other rows of the same features.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The numbers of features differ, or these statistics have second moments and the others
            have none.
        """
        if other.n_features is not None:
            if self.second_moments and other.scatter is None:
                raise ValueError(
                    "the statistics that are merged have no second moments: make them by "
                    "FeatureStatistics(second_moments=True)"
                )
            self._set_n_features(other.n_features)
            if self.scatter is not None and other.scatter is not None:
                self._add_scatter(other)
            self._add_sums(
                other.n_samples, np.stack([other.total, other.error]), other.sum_of_weights
            )
        return self

    def mean(self) -> Float64Array:
        """Return the mean activation, weighted if the rows had weights.

        Returns
        -------
        ndarray of shape (n_features,), float64

        Raises
        ------
        ValueError
            There are no rows yet, or the sum of a feature has overflowed.
        """
        if self.sum_of_weights == 0:
            raise ValueError("the statistics have no rows yet: there is no mean")
        mean: Float64Array = (self.total + self.error) / self.sum_of_weights
        overflow = np.flatnonzero(~np.isfinite(mean))
        if len(overflow):
            raise ValueError(
                f"the mean activation of feature {overflow[0]} is {mean[overflow[0]]}: the sum of "
                "its values exceeds the range of float64"
            )
        return mean

    def second_moments_about(self, origin: ArrayLike) -> Float64Array:
        """Return the mean of ``(x - origin) (x - origin)^T`` over the rows x.

        Parameters
        ----------
        origin : array-like of shape (n_features,)
            The point that the moments are about.

        Returns
        -------
        ndarray of shape (n_features, n_features), float64

        Raises
        ------
        ValueError
            There are no rows yet, or no second moments.
        """
        if self.scatter is None:
            raise ValueError(
                "there are no second moments: make the statistics by "
                "FeatureStatistics(second_moments=True)"
            )
        distance = self.mean() - np.asarray(origin)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the moments
            return self.scatter / self.sum_of_weights + np.outer(distance, distance)

    def copy(self) -> FeatureStatistics:
        """Return an independent copy.

        Returns
        -------
        FeatureStatistics
            The statistics of the same rows.
        """
        return FeatureStatistics(self.n_features, second_moments=self.second_moments).merge(self)

    def _add_scatter(self, other: FeatureStatistics) -> None:
        """Add the scatter of other rows, before their sums are added (Chan, Golub & LeVeque)."""
        assert self.scatter is not None
        assert other.scatter is not None
        with np.errstate(over="ignore", invalid="ignore"):
            self.scatter += other.scatter
            if self.sum_of_weights and other.sum_of_weights:
                distance = other.mean() - self.mean()
                share = other.sum_of_weights / (self.sum_of_weights + other.sum_of_weights)
                # In place, because the outer product would take as much memory as the scatter.
                whole = dger(
                    self.sum_of_weights * share, distance, distance, a=self.scatter.T, overwrite_a=1
                )
                self.scatter = whole.T

    def _add_sums(self, n_samples: int, sums: Float64Array, sum_of_weights: float) -> None:
        """Add the `column_sums` (2, n_features) of some rows."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.total, rounding = two_sum(self.total, sums[0])
            self.error = self.error + (sums[1] + rounding)
        self.n_samples += n_samples
        self.sum_of_weights += sum_of_weights

    def _set_n_features(self, n_features: int) -> None:
        if self.n_features is None:
            self.n_features = n_features
            self.total, self.error = np.zeros((2, n_features))
            if self.second_moments:
                self.scatter = np.zeros((n_features, n_features))
        elif self.n_features != n_features:
            raise ValueError(
                f"these rows have {n_features} features, but those before have {self.n_features}"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_samples={self.n_samples}, n_features={self.n_features})"


class RowSample(NamedTuple):
    """Some of the rows that were summed, as NumPy arrays.

    Parameters
    ----------
    rows : ndarray of shape (n_sampled, n_features), float32 or float64
        The rows, in their scoring dtype.
    weights : ndarray of shape (n_sampled,), float64
        Their weights; 1 where the user gave none.
    """

    rows: FloatArray
    weights: Float64Array


@dataclass(frozen=True)
class Wanted:
    """What one pass over the rows of `fit` finds out, beside their mean.

    Parameters
    ----------
    second_moments : bool
        Whether the products of the features are summed too.
    n_sampled : int
        Number of rows that are kept. There are up to 20 more or fewer, as their spread is not
        perfect.
    levels : tuple of float
        The levels of the quantiles of all entries that are sought.
    """

    second_moments: bool = False
    n_sampled: int = 0
    levels: tuple[float, ...] = ()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.second_moments or other.second_moments,
            max(self.n_sampled, other.n_sampled),
            (*self.levels, *other.levels),
        )


class Measured(NamedTuple):
    """What one pass has found: the sums, the sample, and quantiles by their levels.

    None stands for quantiles that take passes of their own.
    """

    statistics: FeatureStatistics
    sample: RowSample | None = None
    quantiles: Mapping[float, float] | None = None


class _PartMeasured(NamedTuple):
    statistics: FeatureStatistics
    sample: RowSample
    largest: LargestEntries | None


def check_weights(sample_weight: ArrayLike, rows: RowSource) -> Float64Array:
    """Return the weights of rows as float64, one for each row, finite and not negative."""
    weights = column_or_1d(to_host(sample_weight), dtype=np.float64)
    if len(weights) != rows.shape[0] and not np.isnan(rows.shape[0]):
        raise ValueError(f"sample_weight has {len(weights)} values, but X has {rows.shape[0]} rows")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(
            f"sample_weight is {weights[bad[0]]} in row {bad[0]}, expected finite weights that are "
            "not negative"
        )
    checked: Float64Array = weights
    return checked


def gather_statistics(
    rows: RowSource,
    *,
    second_moments: bool = False,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: int | bool = 0,
) -> FeatureStatistics:
    """Return the statistics of all rows of a source, with their weights if they have some.

    Parameters
    ----------
    rows : source of rows, of shape (n_samples, n_features)
        The rows. Those of an array on a GPU are summed there.
    second_moments : bool
        Whether the products of the features are summed too.
    batch_size : int or None
        Rows of a block.
    n_jobs : int or None
        Number of threads that sum the blocks; two at least are used.
    verbose : int
        Above 0, there is a progress bar.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "n_jobs": n_jobs, "verbose": verbose}
    return measure(rows, Wanted(second_moments), **options).statistics


def measure(
    rows: RowSource,
    wanted: Wanted,
    *,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    verbose: int | bool = 0,
) -> Measured:
    """Return the statistics of all rows of a source, and what else is wanted, from one pass.

    Row k is in the sample if ``k * GOLDEN``, modulo 2**64, is below a share of 2**64. That spreads
    the sample evenly over the rows, whatever order or period they have, and it depends on the
    number of the row alone: not on blocks, threads or chunks. Where the chunks of a Dask
    collection have unknown sizes, all chunks give the same number of rows.
    """
    level = min(wanted.levels, default=np.inf)
    n_rows, n_sampled = rows.shape[0], wanted.n_sampled
    if np.isnan(n_rows):
        n_sampled = math.ceil(n_sampled / max(1, rows.n_parts))
    statistics, sample, largest = rows.reduce(
        partial(
            _measure_part,
            wanted=replace(wanted, n_sampled=n_sampled),
            n_rows=n_rows,
            margin=margin_of(rows, level) if wanted.levels else None,
            batch_size=batch_size,
            n_jobs=n_jobs,
            verbose=verbose,
        ),
        _merged,
    )
    found = None if largest is None else largest.quantiles(wanted.levels)
    if found is None:
        return Measured(statistics, sample)
    return Measured(statistics, sample, dict(zip(wanted.levels, found, strict=True)))


def _measure_part(
    rows: SlicedRows,
    wanted: Wanted,
    n_rows: float,
    margin: float | None,
    batch_size: int | None,
    n_jobs: int | None,
    verbose: int | bool,
) -> _PartMeasured:
    statistics = FeatureStatistics(rows.shape[1], second_moments=wanted.second_moments)
    share = wanted.n_sampled / max(1, rows.shape[0] if np.isnan(n_rows) else n_rows)
    limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
    kept = [np.empty((0, rows.shape[1]), scoring_dtype(rows.dtype))]
    kept_weights = [np.empty(0)]
    largest = None if margin is None else keeper(rows, min(wanted.levels), margin)
    native = rows.weights is None and rows.namespace is not None and is_accelerator(rows.namespace)
    # Adding up the products of a block takes as long as some hundred rows of it.
    min_rows = PRODUCT_ROWS if wanted.second_moments else MIN_BLOCK_ROWS
    slices = rows.slices(batch_size, min_rows=min_rows)
    sum_block, n_threads = None, 1
    if rows.weights is None and not wanted.second_moments:
        sum_block = array_column_sums if native else _column_sums_of(rows)
        # Two threads that sum are faster than one that sums and one that reads ahead, because one
        # thread alone is slower than the memory.
        n_threads = 1 if native or len(slices) == 1 else max(2, block_threads(n_jobs))
    blocks = rows.map_blocks(
        lambda block: (None if sum_block is None else sum_block(block), block),
        slices,
        native=native,
        n_threads=n_threads,
        description="second moments" if wanted.second_moments else "mean activation",
        verbose=verbose,
    )
    for row_slice, (sums, block) in blocks:
        n_in_block = row_slice.stop - row_slice.start
        weights = np.ones(n_in_block) if rows.weights is None else rows.weights[row_slice]
        if wanted.second_moments:
            part = _block_products(block, None if rows.weights is None else weights)
            sums = part.total
            statistics.merge(part)
        else:
            if sums is None:
                sums = column_sums(block * weights[:, np.newaxis])
            statistics._add_sums(n_in_block, sums, float(weights.sum()))
        if native and not np.isfinite(sums).all():
            rows.read_block(row_slice)  # raises, and names the row
        if wanted.n_sampled:
            numbers = rows.first + np.arange(row_slice.start, row_slice.stop, dtype=np.uint64)
            chosen = np.flatnonzero(numbers * GOLDEN < limit)
            kept.append(_taken(block, chosen) if native else block[chosen])
            kept_weights.append(weights[chosen])
        if largest is not None:
            largest.add(block)
    return _PartMeasured(
        statistics,
        # The first array is in the dtype of the others, unless these were tensors of another one.
        RowSample(np.concatenate(kept, dtype=kept[0].dtype), np.concatenate(kept_weights)),
        None if largest is None else largest.largest(),
    )


def _column_sums_of(rows: SlicedRows) -> Callable[[Any], Float64Array]:
    """Return the fastest function that sums the columns of a NumPy block of these rows."""
    if rows.shape[0] * rows.shape[1] < COMPILED_VALUES or not has_numba():
        return partial(column_sums, half=rows.dtype.itemsize <= 2)
    from skdice._passes.sum_kernel import compiled, compiled_column_sums

    compiled(scoring_dtype(rows.dtype))  # compile once, before the threads start
    return compiled_column_sums


def _taken(block: Any, chosen: NDArray[np.intp]) -> NDArray[Any]:
    """Return some rows of a block of another library as a NumPy array."""
    xp = namespace_of(block)
    return to_numpy(xp.take(block, xp.asarray(chosen, device=block.device), axis=0))


def _block_products(block: Any, weights: Float64Array | None) -> FeatureStatistics:
    """Return the statistics of one block with second moments, computed where the block lies."""
    xp = namespace_of(block)
    part = FeatureStatistics(int(block.shape[1]))
    part.second_moments = True
    if isinstance(block, np.ndarray):
        sums = column_sums(block if weights is None else block * weights[:, np.newaxis])
        centred = block.astype(np.float64)
    else:
        sums = array_column_sums(block)
        centred = xp.astype(block, xp.float64, copy=True)
    part._add_sums(len(block), sums, len(block) if weights is None else float(weights.sum()))
    mean = part.mean()
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the moments
        centred -= mean if isinstance(block, np.ndarray) else xp.asarray(mean, device=block.device)
        if weights is not None:
            centred *= np.sqrt(weights)[:, np.newaxis]
        part.scatter = to_numpy(centred.T @ centred)
    return part


def weights_of(rows: RowSource) -> Float64Array:
    """Return the weights of a source of rows with weights, joined from all of its parts."""
    return rows.reduce(_weights_of_part, np.concatenate)


def _weights_of_part(rows: SlicedRows) -> Float64Array:
    assert rows.weights is not None
    return rows.weights


def _merged(parts: list[_PartMeasured]) -> _PartMeasured:
    of_parts, samples, largest = zip(*parts, strict=True)
    whole = FeatureStatistics(second_moments=of_parts[0].second_moments)
    for part in of_parts:
        whole.merge(part)
    rows, weights = map(np.concatenate, zip(*samples, strict=True))
    return _PartMeasured(whole, RowSample(rows, weights), merged_largest(largest))
