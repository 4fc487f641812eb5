"""
Comparing scores: MSP, energy, ReAct, DICE
==========================================

The common post-hoc scores are parameters of one detector, so you can compare them on the same rows.
"""

import matplotlib.pyplot as plt

from skdice import DICEDetector
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import compare
from skdice.plotting import OODRocCurveDisplay
from skdice.shaping import ASH, ReAct, Scale

data = load_fashion_mnist_ood()
detectors = {
    "MSP": DICEDetector(data.head, sparsity=0, score_func="msp"),
    "MaxLogit": DICEDetector(data.head, sparsity=0, score_func="max_logit"),
    "GEN": DICEDetector(data.head, sparsity=0, score_func="gen"),
    "energy": DICEDetector(data.head, sparsity=0),
    "ReAct": DICEDetector(data.head, sparsity=0, shaping=ReAct()),
    "ASH": DICEDetector(data.head, sparsity=0, shaping=ASH()),
    "SCALE": DICEDetector(data.head, sparsity=0, shaping=Scale()),
    "DICE 0.1": DICEDetector(data.head, sparsity=0.1),
    "DICE 0.7": DICEDetector(data.head, sparsity=0.7),
    "DICE 0.1 + ReAct": DICEDetector(data.head, sparsity=0.1, shaping=ReAct()),
}
for detector in detectors.values():
    detector.fit(data.id_train)

# %%
# The table shows FPR95 by the paper's rule and AUROC, in percent, with the in-distribution rows as
# the positive class. A lower FPR95 and a higher AUROC are better.
compare(detectors, data.id_test, data.ood)

# %%
# On this network DICE with a sparsity of 0.1 has the lowest FPR95 on every set, and ReAct changes
# little. ASH and SCALE were made for networks with many more features. On this network SCALE is not
# much better than chance, and ASH ranks outliers above good rows, so that its AUROC is far below 50
# %. On another network the order may be another one. The plot shows the curves of three scores:
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
for ax, name in zip(axes, ("MSP", "energy", "DICE 0.1 + ReAct"), strict=True):
    OODRocCurveDisplay.from_estimator(detectors[name], data.id_test, data.ood, ax=ax)
    ax.set_title(name)
