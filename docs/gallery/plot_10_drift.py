"""
Watching a stream for drift
===========================

One flagged row says little: 5 % of good rows are flagged. The share of flagged rows over a window
says when the inputs have changed.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binom

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood

data = load_fashion_mnist_ood()
detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
detector.calibrate(data.id_test[:1500], method="conformal")

# %%
# A stream of 6,000 rows: from row 3,000 on, a growing share of them are textures.
rng = np.random.default_rng(0)
n_rows, starts_at = 6000, 3000
share = np.clip((np.arange(n_rows) - starts_at) / starts_at, 0, 1) * 0.4
is_other = rng.random(n_rows) < share
stream = data.id_test[1500:][rng.integers(0, 1500, n_rows)]
textures = data.ood["textures"]
stream[is_other] = textures[rng.integers(0, len(textures), is_other.sum())]

# %%
# The share of rows with a p-value of at most 5 %, in windows of 200. If nothing has changed, their
# number is close to binomial, so that a limit follows from how often a false alarm may be
# tolerated: here one window in a thousand. The limit takes the 5 % for exact; with few rows of
# calibration it is not.
window = 200
low = (detector.pvalues(stream) <= 0.05).reshape(-1, window)
limit = binom.ppf(0.999, window, 0.05) / window
first = int(np.flatnonzero(low.mean(axis=1) > limit)[0])
print(f"first alarm after row {(first + 1) * window}; the drift begins at row {starts_at}")
print(f"in that window {is_other[first * window : (first + 1) * window].mean():.0%} are textures")

# %%
figure, ax = plt.subplots(figsize=(8, 3.5), layout="constrained")
ends = np.arange(1, len(low) + 1) * window
ax.plot(ends, low.mean(axis=1), "o-", markersize=4, label="p-value at most 5 %")
ax.plot(np.arange(n_rows), share, color="0.6", linestyle=":", label="true share of textures")
ax.axhline(limit, color="C3", linestyle="--", label="limit")
ax.axvline(starts_at, color="0.8")
ax.set(xlabel="row of the stream", ylabel="share")
ax.legend()
