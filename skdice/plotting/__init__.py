"""Displays in scikit-learn's convention. Needs the extra ``plot``.

The constructors take data alone; ``from_estimator`` and its like compute it and draw;
``plot(ax=None)`` draws again, elsewhere. No setting of matplotlib is changed. Colours are those
of Okabe & Ito; line styles tell the same in grey.
"""

from skdice.plotting._monitor import BatchTestDisplay, MonitorDisplay
from skdice.plotting._roc_curve import OODRocCurveDisplay
from skdice.plotting._score_histogram import ScoreHistogramDisplay
from skdice.plotting._sparsity_curve import SparsityCurveDisplay
from skdice.plotting._unit_contribution import UnitContributionDisplay

__all__ = [
    "BatchTestDisplay",
    "MonitorDisplay",
    "OODRocCurveDisplay",
    "ScoreHistogramDisplay",
    "SparsityCurveDisplay",
    "UnitContributionDisplay",
]
