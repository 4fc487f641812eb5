"""
Choosing the sparsity by cross-validation
=========================================

How much pruning helps depends on the network: measure it, with 0 (nothing pruned) among the
candidates.

This takes known outliers: inputs of the kind that the network will meet and must not trust.
Without any, take ``sparsity=0``; see :doc:`/user_guide/choosing_sparsity`.
"""

import numpy as np

from skdice import DICEDetector, DICEDetectorCV
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import compare, neg_fpr95_scorer
from skdice.plotting import SparsityCurveDisplay

data = load_fashion_mnist_ood()
known = np.concatenate([rows[::2] for rows in data.ood.values()])
others = {name: rows[1::2] for name, rows in data.ood.items()}

# %%
# Half of each set of other images helps to choose. The metric is FPR95: the share of outliers that
# passes where 95 % of the in-distribution rows do.
search = DICEDetectorCV(data.head, scoring=neg_fpr95_scorer).fit(data.id_train, outliers=known)
print(f"chosen: {search.sparsity_}")

# %%
# The curve tells more than its best place. Here little pruning helps a little and much of it
# hurts. The bands are one standard deviation over the folds.
SparsityCurveDisplay.from_estimator(search, negate_score=True, score_name="FPR95")

# %%
# The other half, which had no part in the choice, judges it. The default of 0.7 is the paper's for
# ImageNet, and worse than no pruning on this network.
detectors = {
    "energy (nothing pruned)": DICEDetector(data.head, sparsity=0),
    f"chosen: {search.sparsity_}": DICEDetector(data.head, sparsity=search.sparsity_),
    "default: 0.7": DICEDetector(data.head),
}
fitted = {name: each.fit(data.id_train) for name, each in detectors.items()}
compare(fitted, data.id_test, others)
