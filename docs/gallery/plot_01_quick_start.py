"""
From features to flagged rows
=============================

This example fits a detector on in-distribution features, sets the threshold on unseen rows, and
looks at the scores.

The features come with the package. A small ResNet that was trained on Fashion-MNIST computed them,
for its own images and for three sets of other images.
"""

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.plotting import ScoreHistogramDisplay

data = load_fashion_mnist_ood()
data.head

# %%
# A detector needs the last linear layer, which is the head, and the features that enter it.
detector = DICEDetector(data.head).fit(data.id_train)

# %%
# Networks are surer of their training data than of other inputs. The threshold is therefore set on
# rows that the network has not seen. By default 5 % of these rows fall below it.
detector.calibrate(data.id_test[:2000])

# %%
# On other unseen rows the share is about the same. Of the other images far more are flagged.
unseen = data.id_test[2000:]
for name, features in {"fashion (unseen)": unseen, **data.ood}.items():
    print(f"{name:<17} {(detector.predict(features) == -1).mean():6.1%} flagged")

# %%
# The plot shows why. Most scores of digits lie left of the threshold, and the scores of textures
# lie on both sides. Higher scores are more in-distribution.
ScoreHistogramDisplay.from_estimator(detector, unseen, data.ood)
