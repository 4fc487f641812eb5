"""Scoring, at the heads and sparsities of ``benchmarks/compare.py``, with fewer rows."""

import numpy as np

from skdice import DICEDetector, LinearHead

SHAPES = {
    "1000 classes": (4_000, 2048, 1000),
    "10 classes": (50_000, 342, 10),
    "100 classes": (50_000, 342, 100),
}


def fitted(shape: tuple[int, int, int], sparsity: float, dtype: str):
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(0)
    head = LinearHead(rng.standard_normal((n_classes, n_features)).astype(dtype))
    X = np.abs(rng.standard_normal((n_rows, n_features), np.dtype(dtype)))
    return DICEDetector(head, sparsity=sparsity).fit(X), X


class Score:
    """Of many rows."""

    params = (list(SHAPES), [0.0, 0.7, 0.9, 0.95], ["float32", "float64"])
    param_names = ("head", "sparsity", "dtype")

    def setup(self, head: str, sparsity: float, dtype: str) -> None:
        self.detector, self.X = fitted(SHAPES[head], sparsity, dtype)
        self.detector.score_samples(self.X)  # compiles

    def time_score_samples(self, head: str, sparsity: float, dtype: str) -> None:
        self.detector.score_samples(self.X)

    def peakmem_score_samples(self, head: str, sparsity: float, dtype: str) -> None:
        self.detector.score_samples(self.X)


class OneRow:
    """As in a service."""

    params = (list(SHAPES),)
    param_names = ("head",)

    def setup(self, head: str) -> None:
        _, n_features, n_classes = SHAPES[head]
        self.detector, X = fitted((500, n_features, n_classes), 0.7, "float32")
        self.row = X[:1]

    def time_predict(self, head: str) -> None:
        self.detector.predict(self.row)
