"""Penultimate features and the head, from any torch classifier.

The features are the values that enter the classification layer. A forward hook copies them. The
model runs in evaluation mode, without gradients, and is left as it was. Features and head are
compared with the output of the model.
"""

from skdice.extraction._features import (
    Extraction,
    attach,
    extract_features,
    iterate_features,
    load_program,
)

__all__ = ["Extraction", "attach", "extract_features", "iterate_features", "load_program"]
