"""What an engine computes, in plain values: shape the features, mask the layer, score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """A masked layer with a shaping before it and a score after it.

    Parameters
    ----------
    coef : array of shape (n_classes, n_features)
        Masked weight.
    intercept : array of shape (n_classes,)
        Bias.
    score : {"energy", "max_logit", "msp", "gen"}
        Score of a row from its logits.
    shaping : {"", "ReAct", "VRA", "ASH", "Scale"}
        Shaping of the features.
    low, high : float
        alpha and beta of VRA; the threshold of ReAct is `high`.
    n_pruned : int
        Entries of each row that ASH and Scale leave out.
    """

    coef: Any
    intercept: Any
    score: str
    shaping: str = ""
    low: float = 0.0
    high: float = 0.0
    n_pruned: int = 0
