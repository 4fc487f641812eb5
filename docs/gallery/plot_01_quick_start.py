"""
From features to flagged rows
=============================

Fit on in-distribution features, set the threshold on unseen ones, look at the scores.

The features are those of a small ResNet trained on Fashion-MNIST, for its own images and for three
sets of other images. They come with the package.
"""

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.plotting import ScoreHistogramDisplay

data = load_fashion_mnist_ood()
data.head

# %%
# A detector needs the last linear layer, and the features that enter it.
detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)

# %%
# Networks are surer of what they were trained on. So the threshold is set on rows that the network
# has not seen: 5 % of them are to fall below it.
detector.calibrate(data.id_test[:2000])

# %%
# On other unseen rows the share is about the same; of the other images far more are flagged.
unseen = data.id_test[2000:]
for name, features in {"fashion (unseen)": unseen, **data.ood}.items():
    print(f"{name:<17} {(detector.predict(features) == -1).mean():6.1%} flagged")

# %%
# The picture shows why: the scores of digits lie left of the threshold, those of textures on both
# sides. Higher scores are more in-distribution.
ScoreHistogramDisplay.from_estimator(detector, unseen, data.ood)
