"""Measure classifiers that may say "unknown": is the promise kept, and what is caught?

    python benchmarks/open_set.py [--splits 20] [--output FILE]

Three classifiers of scikit-learn, each on 20 random splits. A half of the rows of known classes is
given to fit, of which OpenSetClassifier sets a fifth apart to calibrate. The other half and all
unknown rows judge.

* digits, linear: LogisticRegression on the standardised pixels of the digits 0 to 7 of
  scikit-learn. The digits 8 and 9 are unknown.
* digits, MLP: the hidden units of an MLPClassifier for the same digits.
* text: LogisticRegression on TF-IDF, SVD and normalisation of the docstrings of six subpackages of
  SciPy. The docstrings of four other subpackages of SciPy are unknown ("near"), and so are the
  topics of the help of Python ("far"). All texts come with the installed packages.

Every method uses the same fitted classifier. All but the last are calibrated on the same rows with
the same promise: of the rows of known classes at most 5 % are called unknown. The last takes no
calibration: it calls a row unknown if its largest probability is below 0.5.

The columns, in percent, are means over the splits, with the standard deviation over the splits in
brackets: rows of known classes called unknown ("flagged"), unknown rows called unknown ("caught"),
right rows among those of known classes that were accepted ("accuracy"), and the areas under the
OSCR curve (all unknown rows) and under the risk-coverage curve. Nothing is tuned.
"""

import argparse
import inspect
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import scipy
import sklearn
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import IsolationForest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skdice import DICEDetector, FDBDDetector, OpenSetClassifier, ViMDetector
from skdice.metrics import aurc, oscr_auc

N_SPLITS = 20
CONTAMINATION = 0.05
UNKNOWN = "unknown"
KNOWN_SUBPACKAGES = ("linalg", "ndimage", "optimize", "signal", "special", "stats")
NEAR_SUBPACKAGES = ("fft", "integrate", "interpolate", "sparse")


@dataclass(frozen=True)
class Problem:
    """Rows of known classes, sets of unknown rows, and the classifier to fit for a seed."""

    name: str
    rows: np.ndarray
    labels: np.ndarray
    unknown: dict[str, np.ndarray]
    classifier: Callable[[int], Any]


def docstrings(subpackages: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct docstrings of subpackages of SciPy, and the name of each subpackage."""
    subpackage_of: dict[str, str] = {}
    for name in subpackages:
        module = import_module(f"scipy.{name}")
        for public in sorted(module.__all__):
            text = inspect.getdoc(getattr(module, public))
            if callable(getattr(module, public)) and text:
                subpackage_of.setdefault(text, name)
    return np.array(list(subpackage_of), dtype=object), np.array(list(subpackage_of.values()))


def problems() -> list[Problem]:
    """Return the three problems."""
    pixels, digits = load_digits(return_X_y=True)
    known = digits < 8
    of_digits = pixels[known], digits[known].astype(str), {"8 and 9": pixels[~known]}
    texts, names = docstrings(KNOWN_SUBPACKAGES)
    unknown_texts = {
        "near": docstrings(NEAR_SUBPACKAGES)[0],
        "far": np.array(list(topics.topics.values()), dtype=object),
    }

    def linear(seed: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def network(seed: int) -> Any:
        return make_pipeline(
            StandardScaler(), MLPClassifier((128,), max_iter=300, random_state=seed)
        )

    def of_text(seed: int) -> Any:
        return make_pipeline(
            TfidfVectorizer(stop_words="english", sublinear_tf=True),
            TruncatedSVD(100, random_state=seed),
            Normalizer(),
            LogisticRegression(C=10, max_iter=1000),
        )

    return [
        Problem("digits, linear", *of_digits, linear),
        Problem("digits, MLP", *of_digits, network),
        Problem("text", texts, names, unknown_texts, of_text),
    ]


def detectors(seed: int) -> dict[str, Any]:
    """Return the detectors of the table by name; None is the default of OpenSetClassifier."""
    return {
        "OpenSetClassifier": None,
        "largest probability": DICEDetector(None, sparsity=0, score_func="msp"),
        "IsolationForest": IsolationForest(random_state=seed),
        "energy": DICEDetector(None, sparsity=0),
        "DICE 0.1": DICEDetector(None, sparsity=0.1),
        "DICE 0.7": DICEDetector(None, sparsity=0.7),
        "fDBD": FDBDDetector(None),
        "ViM": ViMDetector(None),
    }


def measure_split(problem: Problem, seed: int) -> dict[str, dict[str, float]]:
    """Return the values of the columns by the name of the method for one split."""
    train, test, train_labels, test_labels = train_test_split(
        problem.rows, problem.labels, test_size=0.5, stratify=problem.labels, random_state=seed
    )
    unknown_rows = np.concatenate(list(problem.unknown.values()))
    all_labels = np.concatenate([test_labels, np.full(len(unknown_rows), UNKNOWN)])
    estimator = problem.classifier(seed)
    found = {}
    for name, detector in detectors(seed).items():
        model = OpenSetClassifier(
            estimator,
            detector,
            unknown_label=UNKNOWN,
            contamination=CONTAMINATION,
            random_state=seed,
        ).fit(train, train_labels)
        # The other methods use the classifier of the first. The same seed sets the same rows apart.
        estimator = FrozenEstimator(model.estimator_)
        judged = {"known": test, **problem.unknown}
        flags = {each: model.is_unknown(rows) for each, rows in judged.items()}
        classes = model.predict_known(test)
        scores = np.concatenate([model.score_samples(rows) for rows in (test, unknown_rows)])
        all_classes = np.concatenate([classes, model.predict_known(unknown_rows)])
        found[name] = {
            **shares(flags, classes == test_labels),
            "OSCR": oscr_auc(all_labels, all_classes, scores, unknown_label=UNKNOWN),
            "AURC": aurc(all_labels, all_classes, scores),
        }
    flags = {each: model.predict_proba(rows).max(axis=1) < 0.5 for each, rows in judged.items()}
    found["probability < 0.5"] = shares(flags, classes == test_labels)
    return found


def shares(flags: dict[str, np.ndarray], is_right: np.ndarray) -> dict[str, float]:
    """Return the shares of rows flagged, and the accuracy on the known rows that are accepted."""
    known, *unknown = flags
    return {
        "flagged": float(flags[known].mean()),
        **{f"caught {name}": float(flags[name].mean()) for name in unknown},
        "accuracy": float(is_right[~flags[known]].mean()),
    }


def format_table(problem: Problem, splits: list[dict[str, dict[str, float]]]) -> str:
    """Return the table of a problem: means, and standard deviations in brackets."""
    columns = list(splits[0]["OpenSetClassifier"])
    sizes = ", ".join(f"{len(rows)} unknown ({name})" for name, rows in problem.unknown.items())
    n_classes = len(set(problem.labels))
    lines = [
        f"{problem.name}: {len(problem.rows)} rows of {n_classes} known classes, {sizes}",
        f"{'':<22}" + "".join(f"{column:>16}" for column in columns),
    ]
    for method in splits[0]:
        cells = ""
        for column in columns:
            values = [100 * found[method][column] for found in splits if column in found[method]]
            shown = f"{np.mean(values):.1f} ({np.std(values):.1f})" if values else ""
            cells += f"{shown:>16}"
        lines.append(f"{method:<22}{cells}".rstrip())
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--splits", type=int, default=N_SPLITS, help="random splits")
    parser.add_argument("--output", type=Path, help="file to write the tables to")
    arguments = parser.parse_args()
    # The texts are those of the installed versions.
    versions = f"Python {platform.python_version()}, SciPy {scipy.__version__}"
    tables = [f"{arguments.splits} splits, {versions}, scikit-learn {sklearn.__version__}\n"]
    for problem in problems():
        splits = [measure_split(problem, seed) for seed in range(arguments.splits)]
        tables.append(format_table(problem, splits))
        print(tables[-1], flush=True)
    if arguments.output is not None:
        arguments.output.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
