"""FPR95 and AUROC of detectors on OOD sets, and their table as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from skdice import DICEDetector

FloatArray = NDArray[np.floating[Any]]

CONVENTION = (
    "FPR95 / AUROC in percent; in-distribution is positive, a lower FPR95 and a higher AUROC\n"
    "are better"
)


@dataclass(frozen=True)
class Quality:
    """FPR95 and AUROC of one detector on one OOD set, in percent."""

    fpr95: float
    auroc: float

    def __str__(self) -> str:
        return f"{self.fpr95:5.1f} /{self.auroc:6.1f}"


def quality(id_scores: FloatArray, ood_scores: FloatArray) -> Quality:
    """Return FPR95 by the paper's rule (in-distribution is positive) and AUROC."""
    threshold = np.sort(id_scores)[round(0.05 * len(id_scores))]
    is_id = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
    auroc = roc_auc_score(is_id, np.concatenate([id_scores, ood_scores]))
    return Quality(100 * float(np.mean(ood_scores > threshold)), 100 * float(auroc))


def mean_quality(row: Mapping[str, Quality]) -> Quality:
    """Return the mean over the OOD sets, each counting the same."""
    return Quality(
        float(np.mean([each.fpr95 for each in row.values()])),
        float(np.mean([each.auroc for each in row.values()])),
    )


def measure(detector: DICEDetector, id_rows: Any, ood: Mapping[str, Any]) -> dict[str, Quality]:
    """Return the quality of a fitted detector on each OOD set."""
    id_scores = detector.score_samples(id_rows)
    return {name: quality(id_scores, detector.score_samples(rows)) for name, rows in ood.items()}


def render(table: Mapping[str, Mapping[str, Quality]]) -> str:
    """Return the table as text: a row per detector, a column per OOD set and their mean."""
    columns = [*next(iter(table.values())), "mean"]
    width = max(map(len, table))
    widths = [max(16, len(column) + 2) for column in columns]
    header = "".join(f"{column:>{w}}" for column, w in zip(columns, widths, strict=True))
    lines = [" " * width + header]
    for name, row in table.items():
        cells = zip([*row.values(), mean_quality(row)], widths, strict=True)
        lines.append(f"{name:<{width}}" + "".join(f"{cell!s:>{w}}" for cell, w in cells))
    return "\n".join(lines)
