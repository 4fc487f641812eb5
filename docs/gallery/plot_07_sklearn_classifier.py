"""
With a scikit-learn classifier
==============================

Any classifier with a linear last layer will do: here a network of scikit-learn, trained on the
digits 0 to 7. The digits 8 and 9 are what it does not know.
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
# The features of `MLPClassifier` are what leaves its last hidden layer, and its head is its last
# layer. scikit-learn stores weights as (inputs, outputs), the head takes them as torch does:
# transposed.
network = MLPClassifier((64,), max_iter=150, tol=1e-3, random_state=0).fit(X_train, y_train)


def hidden(rows):
    return np.maximum(rows @ network.coefs_[0] + network.intercepts_[0], 0)


head = LinearHead(network.coefs_[1].T, network.intercepts_[1])
logits = hidden(X_test) @ head.weight.T + head.bias
is_same = network.classes_[logits.argmax(axis=1)] == network.predict(X_test)
print(f"accuracy {network.score(X_test, y_test):.1%}")
print(f"features and head give the predictions of the network: {is_same.all()}")

# %%
# A linear classifier is all head: its features are its inputs.
linear = LogisticRegression(max_iter=1000).fit(X_train, y_train)
linear_head = LinearHead.from_estimator(linear)

# %%
# The unknown digits are much like the known ones, which is hard. Pruning is measured, not assumed:
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
# The unknown images that the network is surest of, and those it is least sure of:
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
