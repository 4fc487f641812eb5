"""Environment of all tests, those in the documentation and in docstrings included."""

import os
import sys

import pytest

# Set this before SciPy is imported, because scikit-learn checks array API support only with it.
os.environ["SCIPY_ARRAY_API"] = "1"
# Plots are drawn without a window on any machine.
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def _same_random_numbers_of_torch():
    """Seed torch's own generator, because some random networks give scores that are warned about.

    NumPy's global generator needs no seed: the tests make their own.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
