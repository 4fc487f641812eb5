"""
With a scikit-learn classifier
==============================

skdice works with any classifier that has a linear last layer. This example trains a network of
scikit-learn on the digits 0 to 7. The digits 8 and 9 are out-of-distribution for it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skdice import DICEDetector, LinearHead
from skdice.metrics import compare

images, labels = load_digits(return_X_y=True)
images /= 16
is_known = labels < 8
X_train, X_test, y_train, y_test = train_test_split(
    images[is_known], labels[is_known], test_size=0.4, random_state=0
)
unknown = images[~is_known]

# %%
# The head of an `MLPClassifier` is its output layer. The features are the activations of its last
# hidden layer, which scikit-learn does not return, so `hidden` computes them.
network = MLPClassifier((64,), max_iter=150, tol=1e-3, random_state=0).fit(X_train, y_train)


def hidden(rows):
    return np.maximum(rows @ network.coefs_[0] + network.intercepts_[0], 0)


head = LinearHead.from_estimator(network)
logits = hidden(X_test) @ head.weight.T + head.bias
is_same = network.classes_[logits.argmax(axis=1)] == network.predict(X_test)
print(f"accuracy {network.score(X_test, y_test):.1%}")
print(f"features and head give the predictions of the network: {is_same.all()}")

# %%
# A linear classifier consists of a head alone. Its features are its inputs.
linear = LogisticRegression(max_iter=1000).fit(X_train, y_train)
linear_head = LinearHead.from_estimator(linear)

# %%
# The unknown digits are much like the known ones, so they are hard to detect. Measure whether
# pruning helps:
of_network = {
    f"network, sparsity {p:g}": DICEDetector(head, sparsity=p).fit(hidden(X_train))
    for p in (0, 0.1, 0.7)
}
compare(of_network, hidden(X_test), {"digits 8 and 9": hidden(unknown)})

# %%
of_linear = {
    f"linear, sparsity {p:g}": DICEDetector(linear_head, sparsity=p).fit(X_train)
    for p in (0, 0.1, 0.7)
}
compare(of_linear, X_test, {"digits 8 and 9": unknown})

# %%
# On both classifiers pruning hurts, and on the linear one even a tenth of the weights is too much.
# Where the features are few or the weights were fitted to raw inputs, negative contributions are
# evidence, and pruning removes them first. Give ``sparsity=0`` for such classifiers.
#
# The plot shows the unknown images with the lowest scores, and the unknown images with the highest
# scores, which the network takes for known digits:
scores = of_network["network, sparsity 0"].score_samples(hidden(unknown))
order = np.argsort(scores)
figure, axes = plt.subplots(2, 8, figsize=(8, 2.4), layout="constrained")
for row, (places, title) in zip(
    axes, ((order[:8], "lowest scores"), (order[-8:], "highest scores")), strict=True
):
    row[0].set_title(title, loc="left")
    for ax, place in zip(row, places, strict=True):
        ax.imshow(unknown[place].reshape(8, 8), cmap="binary")
        ax.set_axis_off()
