"""A fitted detector as a torch module."""

from __future__ import annotations

from typing import Any

import numpy as np

from skdice._extras import import_extra
from skdice.shaping import ASH, VRA, ReAct, Scale


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
    torch = import_extra("torch", "torch")
    from skdice.engines._module import DetectorModule

    if not isinstance(score_func, str):
        raise ValueError(
            f"score_func is {score_func!r}: only the named scores become a torch module"
        )
    options: dict[str, Any] = {}
    match shaping:
        case None:
            pass
        case ReAct():
            options = {"high": getattr(shaping, "threshold_", shaping.threshold)}
        case VRA():
            options = {"low": shaping.alpha_, "high": shaping.beta_}
        case ASH() | Scale():
            options = {"n_pruned": shaping.n_pruned(coef.shape[1])}
        case _:
            raise ValueError(
                f"shaping is {shaping!r}: only those of skdice.shaping become a torch module"
            )
    module = DetectorModule(
        torch.from_numpy(np.array(coef)),
        torch.from_numpy(np.array(intercept)),
        float("nan") if threshold is None else threshold,
        score_func,
        "" if shaping is None else type(shaping).__name__,
        **options,
    )
    return module.eval()
