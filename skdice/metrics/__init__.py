"""Metrics of out-of-distribution detection, reports on detectors, and a scorer for searches.

Labels are scikit-learn's of outlier detectors: +1 in-distribution, -1 out-of-distribution.
Scores are those of a detector, higher = more in-distribution, whichever class is taken as
positive. Rates are fractions.
"""

from skdice.metrics._intervals import confidence_interval
from skdice.metrics._rates import (
    aupr_in,
    aupr_out,
    auroc,
    detection_error,
    fpr_at_tpr,
    neg_fpr95_scorer,
)
from skdice.metrics._report import OODReport, compare, evaluate

__all__ = [
    "OODReport",
    "aupr_in",
    "aupr_out",
    "auroc",
    "compare",
    "confidence_interval",
    "detection_error",
    "evaluate",
    "fpr_at_tpr",
    "neg_fpr95_scorer",
]
