"""Shapings of a block of features, as plain values that every engine understands.

A shaping transformer describes itself by one of these values, so that no engine needs to know the
classes of `skdice.shaping`. The functions are written once, for any library with the array API.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from skdice._compat.arrays import namespace_of
from skdice._rows.sources import all_finite
from skdice._scores import partitioned


@dataclass(frozen=True)
class Clip:
    """Features below `low` become 0, features above `high` become `high`, others stay."""

    low: float
    high: float
    is_portable: ClassVar[bool] = True

    def apply(self, features: Any) -> Any:
        """Return the features after the shaping."""
        xp = namespace_of(features)
        like = {"dtype": features.dtype} | ({} if xp is np else {"device": features.device})
        clipped = xp.minimum(features, xp.asarray(self.high, **like))
        if self.low == -np.inf:
            return clipped
        return xp.where(features < xp.asarray(self.low, **like), xp.asarray(0, **like), clipped)


@dataclass(frozen=True)
class ScaleRows:
    """Each row is multiplied by ``exp(s1 / s2)``.

    s1 is the sum of the row, and s2 is the sum of its largest features.

    Parameters
    ----------
    n_pruned : int
        Number of the smallest features of a row that s2 leaves out.
    zero_pruned : bool
        True if these features become zero as well.
    """

    n_pruned: int
    zero_pruned: bool
    is_portable: ClassVar[bool] = True

    def apply(self, features: Any) -> Any:
        """Return the features after the shaping; NaN or infinity where that has no meaning."""
        xp = namespace_of(features)
        kept = self._largest(xp, features)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            before = xp.sum(features, axis=1, keepdims=True)
            after = xp.sum(kept, axis=1, keepdims=True)
            both_zero = (before == 0) & (after == 0)
            ratio = xp.where(both_zero, xp.ones_like(before), before / after)
            # An infinite ratio comes from negative features alone, and has no meaning.
            factor = xp.where(xp.isfinite(ratio), xp.exp(ratio), xp.full_like(ratio, xp.nan))
            return (kept if self.zero_pruned else features) * factor

    def _largest(self, xp: Any, features: Any) -> Any:
        """Return the features with zeros in place of each row's `n_pruned` smallest ones.

        Of the features that tie for the last places, those in the first columns are kept, so
        that nothing depends on how a library sorts.
        """
        n_kept = features.shape[1] - self.n_pruned
        place = self.n_pruned
        least = partitioned(features, [place])[:, place : place + 1]
        is_kept = features >= least
        if bool(xp.any(xp.sum(xp.asarray(is_kept, dtype=xp.int32), axis=1) > n_kept)):
            above, equal = features > least, features == least
            places = n_kept - xp.sum(xp.asarray(above, dtype=xp.int32), axis=1, keepdims=True)
            rank = _cumulative_sum(xp, xp.asarray(equal, dtype=xp.int32))
            is_kept = above | (equal & (rank <= places))
        return xp.where(is_kept, features, xp.zeros_like(features))


@dataclass(frozen=True, eq=False)
class Transform:
    """A fitted transformer that skdice does not know; it is called with NumPy arrays only."""

    transformer: Any
    is_portable: ClassVar[bool] = False

    def apply(self, features: Any) -> Any:
        """Return the features after the transformer, in their dtype."""
        shaped = np.asarray(self.transformer.transform(features), dtype=features.dtype)
        if shaped.shape != features.shape:
            raise ValueError(
                f"{self.transformer!r} turned features of shape {features.shape} into "
                f"{shaped.shape}; a shaping keeps the shape"
            )
        return shaped


Activation = Clip | ScaleRows | Transform


def apply_shaping(shaping: Activation | None, features: Any) -> Any:
    """Return a block of features after a shaping, if there is one.

    A row with a value that is not finite, before or after the shaping, becomes NaN as a whole.
    Otherwise the masked weight would decide whether the value shows in the results.
    """
    if shaping is None:
        return features
    with np.errstate(over="ignore", invalid="ignore"):  # such a row is reported by its score
        shaped = shaping.apply(features)
    # A function of the user gets checked features only. Of NumPy's features that were not checked,
    # a bad one shows in the score of fDBD (`skdice._engines.together`). So only the shaping can
    # have made such a value.
    if isinstance(shaped, np.ndarray) and (
        isinstance(shaping, Clip) or not shaped.size or all_finite(shaped)
    ):
        return shaped
    xp = namespace_of(shaped)
    is_sound = xp.all(xp.isfinite(features) & xp.isfinite(shaped), axis=1, keepdims=True)
    return xp.where(is_sound, shaped, xp.full_like(shaped, xp.nan))


def _cumulative_sum(xp: Any, values: Any) -> Any:
    """Return the cumulative sums along rows; NumPy has the standard's name only from 2.1 on."""
    if isinstance(values, np.ndarray):
        return np.cumsum(values, axis=1)
    return xp.cumulative_sum(values, axis=1)
