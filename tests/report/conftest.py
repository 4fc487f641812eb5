"""Reports on detectors of every kind."""

from functools import cache

import numpy as np
import pytest
from reported import HOSTILE, fitted_detectors

from skdice import DICEDetector
from skdice.report import OODReport


@pytest.fixture(scope="session")
def rows(fashion):
    """In-distribution rows and two sets, one of them with a hostile name."""
    sets = {"mnist": fashion.ood["mnist"][:300], HOSTILE: fashion.ood["textures"][:200]}
    return fashion.id_test[600:1400], sets


@pytest.fixture(scope="session")
def detector_of(fashion):
    """A function from a kind to its fitted detector."""
    return cache(lambda kind: fitted_detectors(fashion)[kind]())


@pytest.fixture(scope="session")
def report_of(detector_of, rows):
    """A function from a kind to the report on its detector."""
    return cache(lambda kind: OODReport.from_detector(detector_of(kind), *rows))


@pytest.fixture(scope="session")
def wide_report():
    """A report on a head of 100 classes and 10 sets."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(100, 64)).astype(np.float32)

    def draw(n, shift):
        classes = rng.integers(100, size=n)
        return np.maximum(2 * weight[classes] + rng.normal(shift, 1, (n, 64)), 0).astype(np.float32)

    detector = DICEDetector(weight).fit(draw(2000, 0)).calibrate(draw(1000, 0), method="conformal")
    sets = {f"set {n}": draw(1500, -0.5 * n) / (1 + n) for n in range(10)}
    return OODReport.from_detector(detector, draw(5000, 0), sets)
