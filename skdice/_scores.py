"""Scores of a row from its logits: higher = more in-distribution.

Pure functions on logits of shape (n_samples, n_classes) of any library with the array API, float32
or float64. They return (n_samples,) in the same dtype. With ``overwrite=True`` they may use the
memory of NumPy's logits for their intermediate results, which saves a second array of that size.

Code that cannot call these functions repeats the formulas: the kernels
(`skdice._engines.kernels.vectors.finish_tile` and `skdice._engines.kernels.summaries`, whose sums
`skdice._engines.kernels.fused` and `skdice._engines.summarized_geometry` make scores of), the torch
modules (`skdice._engines.module`) and the ONNX files (`skdice._export.scores`). The tests
`tests/engines/test_agreement_of_scores.py` and `tests/export/test_export.py` hold them equal.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skdice._compat.arrays import namespace_of

GEN_GAMMA = 0.1
GEN_TOP_CLASSES = 100


def energy(logits: Any, *, overwrite: bool = False) -> Any:
    """Negative free energy, ``logsumexp(logits)`` (Liu et al., NeurIPS 2020, arXiv:2010.03759).

    >>> import numpy as np
    >>> energy(np.array([[0.0, 0.0], [1e4, -1e4]]))
    array([6.93147181e-01, 1.00000000e+04])
    """
    xp, exponentials, maximum = _exp_below_maximum(logits, overwrite)
    return xp.log(xp.sum(exponentials, axis=1)) + maximum[:, 0]


def max_logit(logits: Any, *, overwrite: bool = False) -> Any:
    """Largest logit (Hendrycks et al., ICML 2022, arXiv:1911.11132).

    >>> import numpy as np
    >>> max_logit(np.array([[1.0, 3.0]]))
    array([3.])
    """
    return namespace_of(logits).max(logits, axis=1)


def msp(logits: Any, *, overwrite: bool = False) -> Any:
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136).

    In float32 the probability of a very confident row rounds to 1, so that rows tie. The relative
    error of a probability is the absolute error of the logits, which in float32 is about 1e-7 of
    the terms that they sum: engines agree to 1e-5 for logits below 50, and to 1e-4 for logits of
    500, and no formula for the score can restore the digits. Give float64 features where ties or
    digits matter.

    >>> import numpy as np
    >>> msp(np.array([[0.0, 0.0], [1e4, -1e4]]))
    array([0.5, 1. ])
    """
    xp, exponentials, _ = _exp_below_maximum(logits, overwrite)
    return 1 / xp.sum(exponentials, axis=1)


def gen(logits: Any, *, overwrite: bool = False) -> Any:
    """Generalised entropy (Liu, Lochman & Zach, CVPR 2023).

    ``-sum(p**g * (1 - p)**g)`` over the softmax probabilities p of the M most likely
    classes, with the authors' g = 0.1 and M = 100 (all classes where there are fewer).
    Both factors are computed through their logarithms, so that neither a p that
    underflows nor a 1 - p that cancels costs precision. In float32 the relative error is 0.4
    times the absolute error of the logits at most, for the reason that `msp` gives. A row with a
    logit that is not finite scores NaN.

    >>> import numpy as np
    >>> gen(np.array([[0.0, 0.0]])).round(6)
    array([-1.741101])
    """
    xp, n_classes = namespace_of(logits), logits.shape[1]
    # Without this check a logit that is not finite would look like a certain class.
    is_finite = xp.all(xp.isfinite(logits), axis=1)
    nan = xp.full_like(logits[:, 0], xp.nan)
    if n_classes == 1:
        # The one class has probability 1, and so no entropy, whatever its logit.
        return xp.where(is_finite, xp.zeros_like(nan), nan)
    n_top = min(GEN_TOP_CLASSES, n_classes)
    # The largest logit comes last, and the next n_top - 1 come before it.
    ordered = partitioned(logits, (n_classes - n_top, n_classes - 1), overwrite=overwrite)
    top = ordered[:, -1:]
    log_p = ordered[:, n_classes - n_top : -1] - top
    # 1 - p of the top class is the sum over the other classes, which does not cancel.
    _, others, second = _exp_below_maximum(ordered[:, :-1], overwrite=True)
    rest = xp.log(xp.sum(others, axis=1, keepdims=True)) + (second - top)
    log_total = xp.log1p(xp.exp(rest))
    log_p = log_p - log_total
    # No class but the top one can exceed 1/2, so their 1 - p is exact enough.
    entropy = xp.sum(xp.exp(GEN_GAMMA * (log_p + xp.log1p(-xp.exp(log_p)))), axis=1)
    entropy = entropy + xp.exp(GEN_GAMMA * (rest - 2 * log_total))[:, 0]
    return xp.where(is_finite, -entropy, nan)


SCORES: dict[str, Callable[..., Any]] = {
    "energy": energy,
    "max_logit": max_logit,
    "msp": msp,
    "gen": gen,
}


def partitioned(values: Any, places: Sequence[int], *, overwrite: bool = False) -> Any:
    """Return each row with the entries of the given places where sorting would put them.

    NumPy partitions, which is several times faster than sorting; the array API only sorts.

    Parameters
    ----------
    values : array of shape (n_samples, n_columns)
        Rows.
    places : sequence of int
        Columns that must hold the same entries as if each row were sorted.
    overwrite : bool
        True if the memory of `values` may be used.
    """
    if not isinstance(values, np.ndarray):
        return namespace_of(values).sort(values, axis=1)
    ordered = values if overwrite else values.copy()
    ordered.partition(sorted(set(places)), axis=1)
    return ordered


def _exp_below_maximum(logits: Any, overwrite: bool) -> tuple[Any, Any, Any]:
    """Return the namespace, exp(logits - row maximum), and the row maximum (n_samples, 1)."""
    if not isinstance(logits, np.ndarray):
        xp = namespace_of(logits)
        maximum = xp.max(logits, axis=1, keepdims=True)
        return xp, xp.exp(logits - maximum), maximum
    maximum = logits.max(axis=1, keepdims=True)
    below = np.subtract(logits, maximum, out=logits if overwrite else None)
    return np, np.exp(below, out=below), maximum
