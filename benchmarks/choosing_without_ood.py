"""How far pseudo-outliers lead from the best sparsity, on real features and real OOD sets.

    SKDICE_DATA=... python benchmarks/choosing_without_ood.py

For each network and each kind of pseudo-outliers, `DICEDetectorCV` chooses a sparsity from
in-distribution rows alone. The detector is then measured on real OOD sets, beside the energy
score (sparsity 0), the default (0.7), the choice that half of each real set would have made, and
the best sparsities in hindsight. AUROC and FPR95 (papers' rule, in-distribution positive) are
means over the sets, in percent, on the other half of the rows; what is lost is counted from the
best of each.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from skdice import DICEDetector, DICEDetectorCV, LinearHead, sparsity_path
from skdice._search import SPARSITIES
from skdice._trials import PSEUDO_OUTLIERS
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import auroc, compare, fpr_at_tpr
from skdice.metrics._rates import labelled
from skdice.shaping import ReAct


def problems():
    """Yield name, head, fitted rows, unseen rows, and OOD sets of each network."""
    data = load_fashion_mnist_ood()
    yield "Fashion-MNIST ResNet", data.head, data.id_train, data.id_test, data.ood
    if "SKDICE_DATA" in os.environ:
        folder = Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet"
        head = LinearHead.from_file(folder / "head.npz")
        names = ("textures", "fashion_mnist", "cifar100")
        sets = {name: np.load(folder / f"ood_{name}.npy") for name in names}
        rows = (np.load(folder / f"id_{name}.npy") for name in ("train", "test"))
        yield "CIFAR-10 DenseNet", head, *rows, sets


def by_real_sets(head, train, inside, sets, shaping, metric=auroc) -> float:
    """Return the sparsity with the best mean metric on rows of the real sets."""
    inner = sparsity_path(head, train, inside, SPARSITIES, shaping=shaping)
    outer = [sparsity_path(head, train, rows, SPARSITIES, shaping=shaping) for rows in sets]
    means = [
        np.mean([metric(*labelled(inner[n], each[n])) for each in outer])
        for n in range(len(SPARSITIES))
    ]
    return SPARSITIES[int(np.argmax(means))]


def neg_fpr(y_true, y_score) -> float:
    return -fpr_at_tpr(y_true, y_score)


def main() -> None:
    for name, head, train, test, sets in problems():
        for shaping in (None, ReAct()):
            validation = {each: rows[::2] for each, rows in sets.items()}
            held_out = {each: rows[1::2] for each, rows in sets.items()}
            chosen = {
                f"outliers={generator!r}": DICEDetectorCV(head, outliers=generator, shaping=shaping)
                .fit(test[::2])
                .sparsity_
                for generator in PSEUDO_OUTLIERS
            }
            chosen["energy"] = 0.0
            chosen["the default"] = 0.7
            chosen["half of the real sets"] = by_real_sets(
                head, train, test[::2], validation.values(), shaping
            )
            hindsight = (head, train, test[1::2], held_out.values(), shaping)
            chosen["best AUROC in hindsight"] = by_real_sets(*hindsight)
            chosen["best FPR95 in hindsight"] = by_real_sets(*hindsight, neg_fpr)
            detectors = {
                label: DICEDetector(head, sparsity=sparsity, shaping=shaping).fit(train)
                for label, sparsity in chosen.items()
            }
            report = compare(detectors, test[1::2], held_out)
            best_auroc = report.results["best AUROC in hindsight"].mean.auroc
            best_fpr95 = report.results["best FPR95 in hindsight"].mean.fpr95
            print(f"\n{name}{'' if shaping is None else ' + ReAct'}: {', '.join(sets)}")
            titles = f"{'FPR95':>7}{'lost':>6}{'AUROC':>7}{'lost':>6}"
            print(f"{'chosen by':<32}{'sparsity':>9}{titles}")
            for label, result in report.results.items():
                mean = result.mean
                print(
                    f"{label:<32}{chosen[label]:9g}{100 * mean.fpr95:7.1f}"
                    f"{100 * (mean.fpr95 - best_fpr95):6.1f}{100 * mean.auroc:7.1f}"
                    f"{100 * (best_auroc - mean.auroc):6.1f}"
                )


if __name__ == "__main__":
    main()
