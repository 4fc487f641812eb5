"""Penultimate features and the head, from any torch classifier.

The features are what enters the classification layer, caught by a forward hook; the model
is run in evaluation mode, without gradients, and left as it was found.
"""

from skdice.extraction._features import (
    Extraction,
    attach,
    extract_features,
    iterate_features,
    load_program,
)

__all__ = ["Extraction", "attach", "extract_features", "iterate_features", "load_program"]
