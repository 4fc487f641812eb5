"""
A file larger than memory
=========================

skdice opens a feature file without reading it, and fits, calibrates and scores block by block. The
file of this example is small. A file of 20 GB needs the same code.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.io import open_features, save_features, save_scores

data = load_fashion_mnist_ood()
folder = Path(tempfile.mkdtemp())
save_features(folder / "train.npy", data.id_train)
save_features(folder / "heldout.npz", data.id_test, labels=data.id_test_labels)

# %%
# An open file has a shape, a dtype and slices of rows. Every method takes it in place of an array.
train = open_features(folder / "train.npy")
print(train.shape, train.dtype)
detector = DICEDetector(data.head, sparsity=0.1, batch_size=500).fit(train)

# %%
# If the rows come from a loop of your own, `partial_fit` takes one block at a time. The mean is the
# same to rounding, however the rows are split, and so is the mask. `partial_fit` sets no threshold,
# so `calibrate` follows.
streamed = DICEDetector(data.head, sparsity=0.1)
for start in range(0, len(data.id_train), 700):
    streamed.partial_fit(data.id_train[start : start + 700])
print(np.abs(streamed.mean_activation_ - detector.mean_activation_).max())
streamed.calibrate(open_features(folder / "heldout.npz"))

# %%
# `save_scores` writes scores while it computes them, so they need not fit in memory. The file gets
# its name when it is complete.
save_features(folder / "new.npy", np.concatenate([data.ood["mnist"], data.id_test]))
print(save_scores(folder / "scores.npy", streamed, open_features(folder / "new.npy")), "rows")

# %%
# The plot shows one score for each row. The digits come first.
scores = np.load(folder / "scores.npy", mmap_mode="r")
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.plot(scores, ".", markersize=1.5)
ax.axhline(streamed.offset_, color="C3", label="threshold")
ax.set(xlabel="row of the file", ylabel="score")
ax.legend(loc="lower right")
