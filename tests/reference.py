"""The paper's formula in plain float64 NumPy, written apart from skdice."""

import numpy as np


def dice_scores(weight, bias, mean_activation, features, percent, clip=np.inf):
    """Score rows by DICE, and by DICE + ReAct where `clip` is finite; percent is 0 to 100."""
    weight, features = np.asarray(weight, float), np.asarray(features, float)
    mask = np.ones(weight.shape)
    if percent > 0:
        contributions = np.asarray(mean_activation, float)[None, :] * weight
        mask = contributions > np.percentile(contributions, percent)
    logits = np.minimum(features, clip) @ (mask * weight).T + np.asarray(bias, float)
    return np.logaddexp.reduce(logits, axis=1)
