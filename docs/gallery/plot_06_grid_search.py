"""
Searching over anything: GridSearchCV and pipelines
===================================================

The detector is a scikit-learn estimator, so `GridSearchCV` can search over its parameters and over
the parameters of its shaping.

Known outliers are labelled -1. They are left out of every fit, and they count when a fold is
scored.
"""

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import compare
from skdice.plotting import SparsityCurveDisplay
from skdice.shaping import ReAct

data = load_fashion_mnist_ood()
outliers = np.concatenate([rows[::2] for rows in data.ood.values()])
X = np.concatenate([data.id_train, outliers])
y = np.concatenate([np.ones(len(data.id_train)), np.full(len(outliers), -1)])

# %%
# The rows are sorted by label, so the folds must be shuffled.
folds = StratifiedKFold(3, shuffle=True, random_state=0)
search = GridSearchCV(
    DICEDetector(data.head, shaping=ReAct()),
    {"sparsity": [0, 0.1, 0.5], "shaping__quantile": [0.8, 0.9, 0.99]},
    scoring="roc_auc",
    cv=folds,
).fit(X, y)
search.best_params_

# %%
# A shaping may also be a step of a pipeline. That is another method: the pipeline measures the
# contribution on the clipped features, but the paper measures it on the features before clipping.
pipeline = make_pipeline(ReAct(0.9), DICEDetector(data.head, sparsity=0.1)).fit(data.id_train)
detectors = {
    "chosen by the search": search.best_estimator_,
    "pipeline": pipeline,
    "energy": DICEDetector(data.head, sparsity=0).fit(data.id_train),
}
compare(detectors, data.id_test, {name: rows[1::2] for name, rows in data.ood.items()})

# %%
# The plot shows the results of the search: a curve for each quantile, with bands of one standard
# deviation over the folds. Strong clipping, at lower quantiles, and pruning go together badly.
SparsityCurveDisplay.from_estimator(search)
