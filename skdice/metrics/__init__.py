"""Metrics of out-of-distribution detection, reports on detectors, and a scorer for searches.

Labels are those of scikit-learn's outlier detectors: +1 for in-distribution rows, -1 for
out-of-distribution rows. Scores are those of a detector: a higher score means more
in-distribution, whichever class is taken as positive. Rates are fractions. Each metric is
implemented once, on counts of rows per distinct score (``_counts.py``). The metrics of classifiers
that may say "unknown" take classes as labels (``_open_set.py``).
"""

from skdice.metrics._intervals import confidence_interval
from skdice.metrics._open_set import (
    OpenSetReport,
    aurc,
    open_set_report,
    oscr_auc,
    oscr_auc_scorer,
    oscr_curve,
    risk_coverage_curve,
)
from skdice.metrics._rates import (
    aupr_in,
    aupr_out,
    auroc,
    detection_error,
    fpr_at_tpr,
    neg_fpr95_scorer,
)
from skdice.metrics._report import MetricsTable, compare, evaluate

__all__ = [
    "MetricsTable",
    "OpenSetReport",
    "aupr_in",
    "aupr_out",
    "aurc",
    "auroc",
    "compare",
    "confidence_interval",
    "detection_error",
    "evaluate",
    "fpr_at_tpr",
    "neg_fpr95_scorer",
    "open_set_report",
    "oscr_auc",
    "oscr_auc_scorer",
    "oscr_curve",
    "risk_coverage_curve",
]
