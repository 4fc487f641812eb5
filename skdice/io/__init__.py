"""Feature files of any size, which are opened lazily and read in blocks of rows."""

from skdice.io._open import open_features
from skdice.io._save import save_features
from skdice.io._score_files import save_scores

__all__ = ["open_features", "save_features", "save_scores"]
