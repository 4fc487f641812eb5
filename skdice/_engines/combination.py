"""The scores of the members of a fitted ensemble, combined into one score.

`skdice._ensemble` has the estimator. This module knows its fitted numbers only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.reference_scores import (
    Combination,
    ReferenceDistribution,
    combine_log_pvalues,
)
from skdice._engines.run import Options
from skdice._engines.together import Group, Member, groups_of, run_together
from skdice._rows.sources import SlicedRows

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FittedEnsemble:
    """Fitted members with their reference distributions, as rows are scored.

    Parameters
    ----------
    members : tuple of Member
        The fitted detectors.
    references : tuple of ReferenceDistribution
        The scores of the reference rows by each member.
    combination : {"fisher", "min"}
        How their p-values become one score.
    """

    members: tuple[Member, ...]
    references: tuple[ReferenceDistribution, ...]
    combination: Combination

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The members in groups that share a part of the computation."""
        return groups_of(self.members)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # without the groups

    def log_pvalues(self, member_scores: Float64Array) -> Float64Array:
        """Return the logarithm of the p-value of each row by each member."""
        log_pvalues = np.empty(member_scores.shape)
        for n, reference in enumerate(self.references):
            log_pvalues[:, n] = reference.log_pvalues(member_scores[:, n])
        return log_pvalues


def run_ensemble(
    ensemble: FittedEnsemble, options: Options, values: str, rows: SlicedRows
) -> Iterator[tuple[slice, Float64Array]]:
    """Yield the slice and the values of each block of rows, in order.

    Parameters
    ----------
    ensemble : FittedEnsemble
        The members and their references.
    options : Options
        What the user asked for.
    values : {"scores", "member_scores", "member_pvalues", "judgements"}
        Which values: the combination, a column for each member, or two columns, the combination
        and the place of the member with the smallest p-value.
    rows : SlicedRows
        The rows.
    """
    for row_slice, member_scores in run_together(ensemble.members, ensemble.groups, options, rows):
        if values == "member_scores":
            yield row_slice, member_scores
            continue
        log_pvalues = ensemble.log_pvalues(member_scores)
        if values == "member_pvalues":
            yield row_slice, np.exp(log_pvalues)
            continue
        combined = combine_log_pvalues(log_pvalues, ensemble.combination)
        if values == "scores":
            yield row_slice, combined
        else:
            yield row_slice, np.stack([combined, log_pvalues.argmin(axis=1)], axis=1)
