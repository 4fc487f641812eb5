"""Displays in scikit-learn's convention. They need the extra ``plot``.

The constructors take only data; ``from_estimator`` and ``from_predictions`` compute the data and
draw; ``plot(ax=None)`` draws again on other axes. No setting of matplotlib is changed. The colours
are those of Okabe & Ito, and line styles tell the lines apart in grey.
"""

from skdice.plotting._member_pvalues import MemberPvaluesDisplay
from skdice.plotting._monitor import BatchTestDisplay, MonitorDisplay
from skdice.plotting._open_set import OpenSetDisplay, RiskCoverageDisplay
from skdice.plotting._roc_curve import OODRocCurveDisplay
from skdice.plotting._score_histogram import ScoreHistogramDisplay
from skdice.plotting._sparsity_curve import SparsityCurveDisplay
from skdice.plotting._unit_contribution import UnitContributionDisplay

__all__ = [
    "BatchTestDisplay",
    "MemberPvaluesDisplay",
    "MonitorDisplay",
    "OODRocCurveDisplay",
    "OpenSetDisplay",
    "RiskCoverageDisplay",
    "ScoreHistogramDisplay",
    "SparsityCurveDisplay",
    "UnitContributionDisplay",
]
