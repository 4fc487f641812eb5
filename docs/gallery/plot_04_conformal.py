"""
Calibration with a guarantee
============================

A threshold from few rows is a matter of luck. The conformal threshold bounds the expected share of
future in-distribution rows that it flags, for any number of rows; p-values say how unusual a row
is.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood

data = load_fashion_mnist_ood()
detector = DICEDetector(data.head, sparsity=0).fit(data.id_train)

# %%
# The threshold of `fit` comes from the training rows, of which the network is surer than of
# others. On unseen rows it flags more than the 5 % asked for:
print(f"{(detector.predict(data.id_test) == -1).mean():.1%} of unseen rows flagged")

# %%
# So calibrate on unseen rows. Take 50 of them, at random, many times, and see what the thresholds
# flag among the rest. At this size the two methods differ by one row of the 50.
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
# The guarantee is on the mean over draws. A single draw of 50 rows may do much worse: calibrate
# with hundreds or thousands where there are some.
figure, ax = plt.subplots(layout="constrained")
for method, style in (("quantile", "-"), ("conformal", "--")):
    ax.ecdf(flagged[method], label=method, linestyle=style)
ax.axvline(0.05, color="0.5", linewidth=1)
ax.set(xlabel="share of future rows flagged", ylabel="share of the draws")
ax.legend()

# %%
# P-values of in-distribution rows are uniform, those of outliers are small. Each is at most a with
# probability a for an in-distribution row, whatever the scores look like.
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
