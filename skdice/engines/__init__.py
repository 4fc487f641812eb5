"""How a block of rows becomes logits. Engines know no scikit-learn."""

from skdice.engines._dense import dense_logits

__all__ = ["dense_logits"]
