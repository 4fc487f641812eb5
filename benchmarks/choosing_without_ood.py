"""Measure whether artificial outliers find the best sparsity, on real features and OOD sets.

    SKDICE_DATA=... python benchmarks/choosing_without_ood.py

For each network and each kind of artificial outliers, the sparsity is chosen by 5-fold
cross-validation from in-distribution rows alone. A detector with this sparsity is then measured
on real OOD sets, beside detectors whose sparsity is 0 (the energy score), 0.1 (the default), 0.7
(the paper's for ImageNet), the choice by half of each real OOD set, and the best choices in
hindsight. AUROC and FPR95 (the paper's rule, in-distribution positive) are means over the OOD sets,
in percent, on the other half of the rows. The columns "lost" are differences from the best value in
hindsight.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from skdice import DICEDetector, LinearHead, sparsity_path
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import auroc, compare, fpr_at_tpr
from skdice.shaping import ReAct

SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
# Leaving out every class of a network with a thousand would take a thousand searches.
MAX_CLASSES_LEFT_OUT = 10

Comparison = tuple[LinearHead, np.ndarray, np.ndarray, np.ndarray]


def predicted_classes(head: LinearHead, features: np.ndarray) -> np.ndarray:
    """Return the class that the head predicts for each row."""
    return (features @ head.weight.T + head.bias).argmax(axis=1)


def permuted(features: np.ndarray, head: LinearHead, rng: np.random.Generator) -> np.ndarray:
    """Return the features with each column permuted by itself, which breaks their correlation."""
    return rng.permuted(features, axis=0)


def mixed(features: np.ndarray, head: LinearHead, rng: np.random.Generator) -> np.ndarray:
    """Return means of two rows for which the head predicts different classes."""
    classes = predicted_classes(head, features)
    if (classes == classes[0]).all():
        raise ValueError(
            f"the head predicts class {classes[0]} for all {len(features)} rows, expected rows of "
            "two classes to mix"
        )
    partner = rng.integers(0, len(features), len(features))
    while len(same_class := np.flatnonzero(classes[partner] == classes)):
        partner[same_class] = rng.integers(0, len(features), len(same_class))
    return (features + features[partner]) / 2


def noise(features: np.ndarray, head: LinearHead, rng: np.random.Generator) -> np.ndarray:
    """Return normal noise with the mean and variance of each column, clipped to its range."""
    mean, deviation = (
        features.mean(axis=0, dtype=np.float64),
        features.std(axis=0, dtype=np.float64),
    )
    values = rng.normal(mean, deviation, features.shape)
    return np.clip(values, features.min(axis=0), features.max(axis=0)).astype(features.dtype)


GENERATORS: dict[str, Callable[[np.ndarray, LinearHead, np.random.Generator], np.ndarray]] = {
    "permutation": permuted,
    "mixture": mixed,
    "noise": noise,
}
KINDS = (*GENERATORS, "leave-one-class-out")


def comparisons(
    kind: str, head: LinearHead, fitted: np.ndarray, held_out: np.ndarray
) -> Iterator[Comparison]:
    """Yield what the candidates of one fold are compared on.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    head : LinearHead
        The last linear layer.
    fitted, held_out : ndarray
        The in-distribution rows of the fold.

    Yields
    ------
    head, fitted rows, scored rows, labels of the scored rows (+1 in-distribution, -1 outlier)
    """
    rng = np.random.default_rng(0)
    if kind in GENERATORS:
        outliers = GENERATORS[kind](held_out, head, rng)
        labels = np.repeat([1, -1], [len(held_out), len(outliers)])
        yield head, fitted, np.concatenate([held_out, outliers]), labels
        return
    fitted_classes, classes = (predicted_classes(head, rows) for rows in (fitted, held_out))
    candidates = np.unique(classes)
    if len(candidates) > MAX_CLASSES_LEFT_OUT:
        candidates = np.sort(rng.choice(candidates, MAX_CLASSES_LEFT_OUT, replace=False))
    for left_out in candidates:
        rest = LinearHead(np.delete(head.weight, left_out, axis=0), np.delete(head.bias, left_out))
        labels = np.where(classes == left_out, -1, 1)
        yield rest, fitted[fitted_classes != left_out], held_out, labels


def choose(kind: str, head: LinearHead, rows: np.ndarray, shaping: ReAct | None) -> float:
    """Return the sparsity with the best mean AUROC against one kind of artificial outliers."""
    means = []
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(rows, np.ones(len(rows)))
    for train, test in folds:
        aurocs = [
            [
                auroc(labels, scores)
                for scores in sparsity_path(fold_head, fitted, scored, SPARSITIES, shaping=shaping)
            ]
            for fold_head, fitted, scored, labels in comparisons(
                kind, head, rows[train], rows[test]
            )
        ]
        means.append(np.mean(aurocs, axis=0))
    return SPARSITIES[int(np.mean(means, axis=0).argmax())]


def problems() -> Iterator[tuple]:
    """Yield name, head, training rows, test rows and OOD sets of each network."""
    data = load_fashion_mnist_ood()
    yield "Fashion-MNIST ResNet", data.head, data.id_train, data.id_test, data.ood
    if "SKDICE_DATA" in os.environ:
        folder = Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet"
        head = LinearHead.from_file(folder / "head.npz")
        names = ("textures", "fashion_mnist", "cifar100")
        sets = {name: np.load(folder / f"ood_{name}.npy") for name in names}
        rows = (np.load(folder / f"id_{name}.npy") for name in ("train", "test"))
        yield "CIFAR-10 DenseNet", head, *rows, sets


def choose_by_real_sets(head, train, inside, sets, shaping, metric=auroc) -> float:
    """Return the sparsity with the best mean metric on rows of the real OOD sets."""
    inside_scores = sparsity_path(head, train, inside, SPARSITIES, shaping=shaping)
    means = np.zeros(len(SPARSITIES))
    for rows in sets:
        labels = np.repeat([1, -1], [len(inside), len(rows)])
        paths = sparsity_path(head, train, rows, SPARSITIES, shaping=shaping)
        for place, scores in enumerate(np.concatenate([inside_scores, paths], axis=1)):
            means[place] += metric(labels, scores) / len(sets)
    return SPARSITIES[int(means.argmax())]


def negative_fpr95(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Return minus the FPR95, because the choice takes the largest value."""
    return -fpr_at_tpr(y_true, y_score)


def main() -> None:
    for name, head, train, test, sets in problems():
        for shaping in (None, ReAct(0.9)):
            validation = [rows[::2] for rows in sets.values()]
            held_out = {set_name: rows[1::2] for set_name, rows in sets.items()}
            hindsight = (head, train, test[1::2], list(held_out.values()), shaping)
            chosen = {
                **{kind: choose(kind, head, test[::2], shaping) for kind in KINDS},
                "0: the energy": 0.0,
                "0.1: the default": 0.1,
                "0.7: the paper's for ImageNet": 0.7,
                "half of the real sets": choose_by_real_sets(
                    head, train, test[::2], validation, shaping
                ),
                "best AUROC in hindsight": choose_by_real_sets(*hindsight),
                "best FPR95 in hindsight": choose_by_real_sets(*hindsight, negative_fpr95),
            }
            detectors = {
                label: DICEDetector(head, sparsity=sparsity, shaping=shaping).fit(train)
                for label, sparsity in chosen.items()
            }
            report = compare(detectors, test[1::2], held_out)
            best_auroc = report.results["best AUROC in hindsight"].mean.auroc
            best_fpr95 = report.results["best FPR95 in hindsight"].mean.fpr95
            print(f"\n{name}{'' if shaping is None else ' + ReAct 0.9'}: {', '.join(sets)}")
            titles = f"{'FPR95':>7}{'lost':>6}{'AUROC':>7}{'lost':>6}"
            print(f"{'choice':<29}{'sparsity':>9}{titles}")
            for label, result in report.results.items():
                mean = result.mean
                print(
                    f"{label:<29}{chosen[label]:9g}{100 * mean.fpr95:7.1f}"
                    f"{100 * (mean.fpr95 - best_fpr95):6.1f}{100 * mean.auroc:7.1f}"
                    f"{100 * (best_auroc - mean.auroc):6.1f}"
                )


if __name__ == "__main__":
    main()
