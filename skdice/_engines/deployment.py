"""A fitted detector as a torch module."""

from __future__ import annotations

from typing import Any

from skdice._compat.extras import import_extra
from skdice._engines.computation import named_plan


def detector_module(
    coef: Any, intercept: Any, threshold: float | None, score_func: Any, shaping: Any
) -> Any:
    """Return the torch module that computes what the fitted arrays do.

    Parameters
    ----------
    coef : ndarray of shape (n_classes, n_features)
        Masked weight.
    intercept : ndarray of shape (n_classes,)
        Bias.
    threshold : float or None
        On the scores.
    score_func : str
        Name of the score.
    shaping : fitted transformer of skdice.shaping or None
        Applied to the features.
    """
    import_extra("torch", "torch")
    from skdice._engines.module import planned_module

    plan = named_plan(coef, intercept, score_func, shaping)
    if plan is None and not isinstance(score_func, str):
        raise ValueError(
            f"score_func is {score_func!r}: only the named scores become a torch module"
        )
    if plan is None:
        raise ValueError(
            f"shaping is {shaping!r}: only those of skdice.shaping become a torch module"
        )
    module = planned_module(plan, threshold=float("nan") if threshold is None else threshold)
    return module.eval()
