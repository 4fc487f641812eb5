"""The paper's formula in plain float64 NumPy, written apart from skdice."""

import numpy as np


def dice_scores(weight, bias, mean_activation, features, percent, clip=np.inf):
    """Score rows by DICE, and by DICE + ReAct where `clip` is finite; percent is 0 to 100."""
    weight, features = np.float64(weight), np.float64(features)
    mask = np.ones(weight.shape)
    if percent > 0:
        contributions = np.float64(mean_activation)[None, :] * weight
        mask = contributions > np.percentile(contributions, percent)
    logits = np.minimum(features, clip) @ (mask * weight).T + np.float64(bias)
    return np.logaddexp.reduce(logits, axis=1)
