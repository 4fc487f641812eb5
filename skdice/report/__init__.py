"""The evidence file: what a detector is, what it promises, and how it did, on one page to sign."""

from skdice.report._report import OODReport

__all__ = ["OODReport"]
