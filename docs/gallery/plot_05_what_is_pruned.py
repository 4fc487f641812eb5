"""
What DICE prunes
================

DICE prunes a weight if, on average over in-distribution rows, it adds little to the logit of its
class or lowers the logit.
"""

import matplotlib.pyplot as plt
import numpy as np

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.plotting import UnitContributionDisplay

data = load_fashion_mnist_ood()
detector = DICEDetector(data.head, sparsity=0.7).fit(data.id_train)

# %%
# The contribution of a unit to a class is the weight times the unit's mean activation. Weights with
# a contribution above the threshold are kept. One threshold serves all classes and units.
contribution = detector.mean_activation_ * data.head.weight
figure, ax = plt.subplots(layout="constrained")
ax.hist(contribution.ravel(), 80, color="0.6")
ax.axvline(detector.contribution_threshold_, color="C3", label="threshold at sparsity 0.7")
ax.set(xlabel="contribution", ylabel="weights", yscale="log")
ax.legend()

# %%
# A few units per class are kept. The number of kept units differs between the classes.
figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
order = np.argsort(detector.mean_activation_)[::-1]
ax.imshow(detector.mask_[:, order], aspect="auto", cmap="binary", interpolation="none")
_ = ax.set(xlabel="unit, by its mean activation", ylabel="class", title="weights kept (black)")

# %%
# The last plot shows the units of one class, trousers, before and after pruning. In the paper's
# figure the outliers' terms vary widely at units that contribute little in-distribution, and
# pruning makes the outliers' logits vary less. On this network the digits' terms at these units are
# small and mostly negative. Without these terms the digits' logits rise by more than the logits of
# good rows, so this much pruning hurts.
trousers = data.id_test[data.id_test_labels == 1]
UnitContributionDisplay.from_estimator(
    detector, trousers, {"mnist": data.ood["mnist"]}, class_index=1
)
