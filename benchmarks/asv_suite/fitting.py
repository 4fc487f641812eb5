"""Fitting, the selection of the threshold, and the search over sparsities."""

import numpy as np

from skdice import DICEDetector, DICEDetectorCV, LinearHead
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import auroc


class Fit:
    params = ([(20_000, 2048, 1000), (100_000, 342, 10)], [True, False])
    param_names = ("shape", "with negative values")

    def setup(self, shape: tuple[int, int, int], signed: bool) -> None:
        n_rows, n_features, n_classes = shape
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((n_classes, n_features), np.float32)
        self.detector = DICEDetector(LinearHead(weight))
        self.X = rng.standard_normal((n_rows, n_features), np.float32)
        if not signed:
            np.abs(self.X, out=self.X)

    def time_fit(self, shape: tuple[int, int, int], signed: bool) -> None:
        self.detector.fit(self.X)

    def time_partial_fit(self, shape: tuple[int, int, int], signed: bool) -> None:
        self.detector.partial_fit(self.X)

    def peakmem_fit(self, shape: tuple[int, int, int], signed: bool) -> None:
        self.detector.fit(self.X)


class LargeHead:
    """ImageNet-21k: the threshold is selected among 44.7 million contributions."""

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        self.head = LinearHead(rng.standard_normal((21_841, 2048), np.float32))
        self.mean = np.abs(rng.standard_normal((1, 2048)))

    def time_mask(self) -> None:
        DICEDetector(self.head).partial_fit(self.mean)

    def peakmem_mask(self) -> None:
        DICEDetector(self.head).partial_fit(self.mean)


class Search:
    """On the embedded features."""

    def setup(self) -> None:
        self.data = load_fashion_mnist_ood()
        self.outliers = self.data.ood["mnist"][:500]

    def time_search(self) -> None:
        DICEDetectorCV(self.data.head).fit(self.data.id_train, outliers=self.outliers)

    def track_auroc(self) -> float:
        """Of the detector that is chosen, on outliers that had no part in it."""
        detector = DICEDetectorCV(self.data.head).fit(self.data.id_train, outliers=self.outliers)
        rows = np.concatenate([self.data.id_test, self.data.ood["mnist"][500:]])
        labels = np.ones(len(rows), int)
        labels[len(self.data.id_test) :] = -1
        return auroc(labels, detector.score_samples(rows))
