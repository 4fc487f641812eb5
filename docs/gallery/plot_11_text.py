"""
Text: a class, or unknown
=========================

A linear classifier of texts sorts every text into one of its classes, even a text about something
else. `OpenSetClassifier` may say "unknown", and the share of good texts that it calls unknown is
promised. The texts of this example come with the installed packages: the docstrings of functions
of SciPy. Their classes are the subpackages of SciPy. Nothing is downloaded, and torch is not
needed.
"""

import inspect
from importlib import import_module

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from skdice import DICEDetector, OpenSetClassifier
from skdice.metrics import open_set_report
from skdice.plotting import OpenSetDisplay, RiskCoverageDisplay


def docstrings(subpackages):
    """Return the docstrings of the functions of subpackages of SciPy, and their subpackages."""
    labels = {}
    for subpackage in subpackages:
        module = import_module(f"scipy.{subpackage}")
        for name in sorted(module.__all__):
            text = inspect.getdoc(getattr(module, name))
            if callable(getattr(module, name)) and text:
                labels.setdefault(text, subpackage)
    return list(labels), list(labels.values())


# %%
# Six subpackages are the known classes. The texts of four other subpackages are unknown, and they
# are near to the known ones: ``interpolate`` is much like ``signal``.
texts, labels = docstrings(["linalg", "ndimage", "optimize", "signal", "special", "stats"])
train, test, train_labels, test_labels = train_test_split(
    texts, labels, test_size=0.4, stratify=labels, random_state=0
)
unknown, _ = docstrings(["fft", "integrate", "interpolate", "sparse"])
judged = test + unknown
judged_labels = test_labels + ["unknown"] * len(unknown)
print(f"{len(train)} texts to fit on, {len(test)} of known classes and {len(unknown)} unknown")

# %%
# The classifier is a pipeline. The detector sees what enters its last step, the features that
# `Normalizer` returns. The unknown label is a text because the classes are texts.
pipeline = make_pipeline(
    TfidfVectorizer(stop_words="english", sublinear_tf=True),
    TruncatedSVD(100, random_state=0),
    Normalizer(),
    LogisticRegression(C=10, max_iter=1000),
)
model = OpenSetClassifier(pipeline, unknown_label="unknown", random_state=0)
model.fit(train, train_labels)
print(model.detector_.calibration_)

# %%
# The table counts what happens to the texts of each class. The last line is that of the unknown
# texts. The promise is at most 5 % of the texts of all known classes, on average over the draw of
# the calibration texts; a single draw of 126 texts gives a little more or less.
report = open_set_report(judged_labels, model.predict(judged), unknown_label="unknown")
print(f"{model.is_unknown(test).mean():.1%} of the texts of known classes are called unknown")
report

# %%
# Compare the default, an ensemble of four detectors, with DICE alone and with the largest
# probability of the classifier. `FrozenEstimator` keeps the classifier that is fitted already, and
# the same ``random_state`` sets the same texts apart, which this classifier has not seen.
frozen = FrozenEstimator(model.estimator_)
others = {
    "DICE": DICEDetector(None, sparsity=0.1),
    "largest probability": DICEDetector(None, sparsity=0, score_func="msp"),
}
models = {"ensemble": model} | {
    name: OpenSetClassifier(frozen, detector, unknown_label="unknown", random_state=0).fit(
        train, train_labels
    )
    for name, detector in others.items()
}

# %%
# All three keep their promise, because the promise does not depend on how good the score is. They
# differ in what they catch. The curve on the left has the share of texts of known classes that are
# accepted with the right class, for each share of unknown texts that are accepted. The curve on
# the right has the share of errors among all texts that are accepted; an unknown text is an error.
# The marks are the thresholds.
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for name, each in models.items():
    OpenSetDisplay.from_estimator(each, judged, judged_labels, name=name, ax=axes[0])
    RiskCoverageDisplay.from_estimator(each, judged, judged_labels, name=name, ax=axes[1])

# %%
# DICE is out of its depth here, and catches nothing. The features of SVD are signed, and a negative
# contribution is evidence against a class. DICE prunes the most negative contributions first, so
# that a text without any sign of a class gets a high score. The texts of known classes do not show
# the failure, because the pruned layer nearly always gives them the same class:
dice = models["DICE"]
pruned = dice.classes_[dice.detector_.logits(dice.features(test)).argmax(axis=1)]
print(f"DICE keeps the class of {np.mean(pruned == model.predict_known(test)):.1%} of the texts")

# %%
# The ensemble is not out of its depth at its threshold, although DICE is one of its four members.
# On this set a single score, the largest probability, orders the texts better. Without unknown
# texts nobody could have known that, and on other classifiers it is the other way round:
# :doc:`/user_guide/embeddings` has the numbers.
