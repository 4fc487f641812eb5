"""Scores of a row from its logits: higher = more in-distribution.

Pure functions on logits of shape (n_samples, n_classes), float32 or float64,
returning (n_samples,) in the same dtype. With ``overwrite=True`` they may use the
memory of the logits for their intermediate results, so that scoring a block needs
no second one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

GEN_GAMMA = 0.1
GEN_TOP_CLASSES = 100


def _exp_below_max(logits: FloatArray, overwrite: bool) -> tuple[FloatArray, FloatArray]:
    """Return exp(logits - row maximum) and the row maximum (n_samples, 1)."""
    maximum = logits.max(axis=1, keepdims=True)
    shifted = np.subtract(logits, maximum, out=logits if overwrite else None)
    return np.exp(shifted, out=shifted), maximum


def energy(logits: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Negative free energy, ``logsumexp(logits)`` (Liu et al., NeurIPS 2020, arXiv:2010.03759).

    >>> import numpy as np
    >>> energy(np.array([[0.0, 0.0], [1e4, -1e4]]))
    array([6.93147181e-01, 1.00000000e+04])
    """
    exponentials, maximum = _exp_below_max(logits, overwrite)
    total: FloatArray = exponentials.sum(axis=1)
    return np.log(total) + maximum[:, 0]


def max_logit(logits: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Largest logit (Hendrycks et al., ICML 2022, arXiv:1911.11132).

    >>> import numpy as np
    >>> max_logit(np.array([[1.0, 3.0]]))
    array([3.])
    """
    largest: FloatArray = logits.max(axis=1)
    return largest


def msp(logits: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136).

    In float32 the probability of a very confident row rounds to 1, so that rows tie;
    score float64 features where that matters.

    >>> import numpy as np
    >>> msp(np.array([[0.0, 0.0], [1e4, -1e4]]))
    array([0.5, 1. ])
    """
    exponentials, _ = _exp_below_max(logits, overwrite)
    total: FloatArray = exponentials.sum(axis=1)
    return 1 / total


def gen(logits: FloatArray, *, overwrite: bool = False) -> FloatArray:
    """Generalised entropy (Liu, Lochman & Zach, CVPR 2023).

    ``-sum(p**g * (1 - p)**g)`` over the softmax probabilities p of the M most likely
    classes, with the authors' g = 0.1 and M = 100 (all classes where there are fewer).
    Both factors are taken through their logarithms, so that neither a p that
    underflows nor a 1 - p that cancels costs precision. NaN for a row with a logit that is
    not finite.

    >>> import numpy as np
    >>> gen(np.array([[0.0, 0.0]])).round(6)
    array([-1.741101])
    """
    n_classes = logits.shape[1]
    # What is not finite would come out as if it were certain.
    spoilt = ~np.isfinite(logits).all(axis=1)
    if n_classes == 1:
        # The one class has probability 1: no entropy, whatever the logit.
        scores = np.zeros(len(logits), dtype=logits.dtype)
        scores[spoilt] = np.nan
        return scores
    ordered = logits if overwrite else logits.copy()
    n_top = min(GEN_TOP_CLASSES, n_classes)
    ordered.partition(sorted({n_classes - n_top, n_classes - 2}), axis=1)
    top, second = ordered[:, -1:].copy(), ordered[:, -2:-1].copy()
    others = ordered[:, :-1]
    log_p = others[:, n_classes - n_top :] - top
    # With the maximum last, its complement is the sum over the others, without cancellation;
    # taken in place, as the logits are not needed any more.
    others -= second
    np.exp(others, out=others)
    rest = np.log(others.sum(axis=1, keepdims=True)) + (second - top)
    log_total = np.log1p(np.exp(rest))
    log_p -= log_total
    # No class but the first can exceed 1/2, so 1 - p is exact enough there.
    entropy: FloatArray = np.exp(GEN_GAMMA * (log_p + np.log1p(-np.exp(log_p)))).sum(axis=1)
    entropy += np.exp(GEN_GAMMA * (rest - 2 * log_total))[:, 0]
    entropy[spoilt] = np.nan
    return -entropy


SCORES: dict[str, Callable[..., FloatArray]] = {
    "energy": energy,
    "max_logit": max_logit,
    "msp": msp,
    "gen": gen,
}
