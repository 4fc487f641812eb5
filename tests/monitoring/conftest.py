from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin


class StandIn(OutlierMixin, BaseEstimator):
    """A detector whose score is the first feature, with the record that calibrate leaves."""

    def __init__(self, scores, rank, *, method="conformal", contamination=0.05, confidence=None):
        self.offset_ = np.sort(scores)[rank - 1]
        self.calibration_ = SimpleNamespace(
            method=method,
            contamination=contamination,
            confidence=confidence,
            n_samples=len(scores),
            rank=rank,
            date="2026-01-01",
            digest=f"digest of {len(scores)}",
        )

    def fit(self, X, y=None):
        raise AssertionError("nothing is fitted here")

    def decision_function(self, X):
        return np.asarray(X)[:, 0] - self.offset_


@pytest.fixture
def calibrated():
    """Make a stand-in for a detector, calibrated on the scores 1, 2, ..., n."""

    def make(n=500, rank=25, **record):
        return StandIn(np.arange(1.0, n + 1), rank, **record)

    return make
