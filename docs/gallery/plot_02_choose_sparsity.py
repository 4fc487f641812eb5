"""
Choosing the sparsity by cross-validation
=========================================

How much pruning helps depends on the network. Measure it, with 0 (nothing pruned) among the
candidates.

The search needs known outliers: inputs of the kind that the network will meet and must not trust.
:doc:`/user_guide/choosing` says what to do without them.
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
# Half of each set of other images serves as known outliers for the choice. The metric is FPR95 by
# the paper's rule: the share of outliers that passes where 95 % of the in-distribution rows pass.
search = DICEDetectorCV(data.head, scoring=neg_fpr95_scorer).fit(data.id_train, outliers=known)
print(f"chosen: {search.sparsity_}")

# %%
# The curve tells more than the best sparsity alone. On this network a little pruning helps a
# little, and much pruning hurts. The bands are one standard deviation over the folds.
SparsityCurveDisplay.from_estimator(search, negate_score=True)

# %%
# The other half had no part in the choice, so it can judge the choice. The paper's 0.7 for ImageNet
# is worse than no pruning on this network.
detectors = {
    "energy (nothing pruned)": DICEDetector(data.head, sparsity=0),
    f"chosen: {search.sparsity_}": DICEDetector(data.head, sparsity=search.sparsity_),
    "the paper's for ImageNet: 0.7": DICEDetector(data.head, sparsity=0.7),
}
fitted = {name: detector.fit(data.id_train) for name, detector in detectors.items()}
compare(fitted, data.id_test, others)
