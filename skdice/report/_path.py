"""How the metrics of a DICE detector depend on the sparsity, on the rows of a report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skdice._compat.arrays import to_numpy
from skdice._dice import BaseDICE
from skdice._engines.run import Options
from skdice._rows.sources import FloatArray, RowSource, SlicedRows
from skdice._search import SPARSITIES, path_scores
from skdice.metrics._counts import metric_on_counts
from skdice.metrics._rates import count_scores, labelled


@dataclass(frozen=True)
class SparsityPath:
    """Metrics at several sparsities, as fractions.

    The sparsities ascend, and that of the detector is among them. Each metric is given by set.
    """

    sparsities: tuple[float, ...]
    deployed: float
    auroc: dict[str, tuple[float, ...]]
    fpr95: dict[str, tuple[float, ...]]

    @property
    def mean_auroc(self) -> tuple[float, ...]:
        """Mean AUROC over the sets at each sparsity."""
        return _means(self.auroc)

    @property
    def mean_fpr95(self) -> tuple[float, ...]:
        """Mean FPR95 over the sets at each sparsity."""
        return _means(self.fpr95)


def measure_path(
    detector: Any, inside: RowSource, outside: Mapping[str, RowSource], rule: str
) -> SparsityPath | None:
    """Return the metrics at several sparsities; None for a detector that prunes no head.

    Rows that lie on a cluster have no path either, because all sparsities are computed in one
    pass over rows that are read here.
    """
    if not isinstance(detector, BaseDICE) or isinstance(detector.head, str):
        return None
    if not all(isinstance(rows, SlicedRows) for rows in (inside, *outside.values())):
        return None
    deployed = float(getattr(detector, "sparsity_", detector.get_params().get("sparsity", 0.0)))
    sparsities = sorted({*SPARSITIES, deployed})
    options = Options(None, detector.batch_size, detector.n_jobs, detector.verbose)

    def scores_of(rows: Any) -> FloatArray:
        return path_scores(
            detector.head_,
            to_numpy(detector.mean_activation_),
            detector.shaping_,
            rows,
            sparsities,
            detector.score_func,
            options,
        )

    id_scores = scores_of(inside)
    metrics = {name: metric_on_counts(name, rule=rule) for name in ("auroc", "fpr_at_tpr")}
    found: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in metrics}
    for set_name, rows in outside.items():
        pairs = zip(id_scores, scores_of(rows), strict=True)
        counts = [count_scores(*labelled(*pair)) for pair in pairs]
        for name, compute in metrics.items():
            found[name][set_name] = tuple(float(compute(*pair)) for pair in counts)
    return SparsityPath(tuple(sparsities), deployed, found["auroc"], found["fpr_at_tpr"])


def _means(values: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(map(float, np.mean(list(values.values()), axis=0)))
