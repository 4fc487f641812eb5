"""Environment of all tests, those in the documentation and in docstrings included."""

import os

# Set this before SciPy is imported, because scikit-learn checks array API support only with it.
os.environ["SCIPY_ARRAY_API"] = "1"
# Plots are drawn without a window on any machine.
os.environ["MPLBACKEND"] = "Agg"
