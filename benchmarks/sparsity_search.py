"""DICEDetectorCV against GridSearchCV over the same sparsities and folds, in one run.

python benchmarks/sparsity_search.py [--rows 20000] [--features 2048] [--classes 1000]
"""

import argparse
import time

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from skdice import DICEDetector, DICEDetectorCV, LinearHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--outliers", type=float, default=0.2, help="share of the rows")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(arguments.classes, arguments.features)).astype(np.float32))
    X = np.abs(rng.standard_normal((arguments.rows, arguments.features), np.float32))
    y = np.where(rng.uniform(size=len(X)) < arguments.outliers, -1, 1)
    X[y == -1] *= 0.99
    sparsities = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    started = time.perf_counter()
    path = DICEDetectorCV(head, sparsities=sparsities, cv=folds).fit(X, y)
    path_seconds = time.perf_counter() - started
    started = time.perf_counter()
    grid = GridSearchCV(
        DICEDetector(head), {"sparsity": sparsities}, scoring="roc_auc", cv=folds
    ).fit(X, y)
    grid_seconds = time.perf_counter() - started
    difference = np.abs(
        path.cv_results_["mean_test_score"] - grid.cv_results_["mean_test_score"]
    ).max()
    print(f"{len(sparsities)} sparsities x 5 folds, {X.shape} against {len(head.weight)} classes")
    print(f"GridSearchCV    {grid_seconds:7.1f} s")
    print(f"DICEDetectorCV  {path_seconds:7.1f} s   {grid_seconds / path_seconds:.1f} times faster")
    print(f"largest difference between mean scores: {difference:.1e}")


if __name__ == "__main__":
    main()
