"""
Calibration with a guarantee
============================

A threshold from few rows is a matter of luck. The conformal threshold bounds the expected share of
future in-distribution rows that it flags, for any number of rows. P-values say how unusual a row
is.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood

data = load_fashion_mnist_ood()
detector = DICEDetector(data.head, sparsity=0).fit(data.id_train)

# %%
# The threshold of `fit` comes from the training rows, and the network is surer of these than of
# other rows. On unseen rows this threshold flags more than the 5 % that were asked for:
print(f"{(detector.predict(data.id_test) == -1).mean():.1%} of unseen rows flagged")

# %%
# Therefore calibrate on unseen rows. The loop takes 50 of them at random, many times, and counts
# what each threshold flags among the rest. At this size the two methods differ by one row of the
# 50.
rng = np.random.default_rng(0)
flagged = {"quantile": [], "conformal": []}
for _ in range(100):
    order = rng.permutation(len(data.id_test))
    few, rest = data.id_test[order[:50]], data.id_test[order[50:]]
    for method, shares in flagged.items():
        detector.calibrate(few, method=method)
        shares.append((detector.predict(rest) == -1).mean())
for method, shares in flagged.items():
    spread = f"{min(shares):.1%} to {max(shares):.1%}"
    print(f"{method:<9} mean {np.mean(shares):.1%}, of single draws {spread}")

# %%
# The guarantee is on the mean over draws. A single draw of 50 rows may do much worse. Calibrate
# with hundreds or thousands of rows if you have them.
figure, ax = plt.subplots(layout="constrained")
for method, style in (("quantile", "-"), ("conformal", "--")):
    ax.ecdf(flagged[method], label=method, linestyle=style)
ax.axvline(0.05, color="0.5", linewidth=1)
ax.set(xlabel="share of future rows flagged", ylabel="share of the draws")
ax.legend()

# %%
# P-values of in-distribution rows are uniform, and p-values of outliers are small. For an
# in-distribution row the probability of a p-value of at most a is at most a, for any scores.
detector.calibrate(data.id_test[:1500], method="conformal")
figure, ax = plt.subplots(layout="constrained")
bins = np.linspace(0, 1, 21)
ax.hist(
    detector.pvalues(data.id_test[1500:]), bins, density=True, histtype="step", label="unseen rows"
)
ax.hist(
    detector.pvalues(data.ood["textures"]),
    bins,
    density=True,
    histtype="step",
    linestyle="--",
    label="textures",
)
ax.set(xlabel="conformal p-value", ylabel="density")
ax.legend()
