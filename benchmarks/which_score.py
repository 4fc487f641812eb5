"""Measure which score to take when nothing is known about the outliers.

    SKDICE_DATA=... python benchmarks/which_score.py [FOLDER ...] [--digits] [--output PREFIX]

Each FOLDER is a network: a head file (head.npz, head.safetensors, ...), id_train.npy, id_test.npy
and ood_NAME.npy, all of them penultimate features. Without folders the networks are the embedded
Fashion-MNIST ResNet and SKDICE_DATA/cifar10-densenet. Every score is fitted on id_train with the
same settings on every network. A third of id_test calibrates the threshold (conformal, 5 %), and
another third is compared with the OOD sets.

The table has mean AUROC and FPR95 over the OOD sets of each network (percent; the paper's rule,
in-distribution positive), the mean over the networks, and the worst case. In brackets are 95 %
bootstrap intervals of the means: the judged in-distribution rows and the rows of every OOD set are
resampled, and the fitted detectors stay as they are. --output writes PREFIX.txt and PREFIX.png, a
plot of the regret of each score: how far it is from the best score of the network in hindsight.

--digits measures two classifiers of scikit-learn instead: a LogisticRegression on the pixels of the
digits 0 to 7 and the hidden units of an MLPClassifier for them. The digits 8 and 9 are the
outliers, and the values are means over 10 random splits.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skdice import DICEDetector, FDBDDetector, LinearHead, ViMDetector, make_ensemble
from skdice.datasets import load_fashion_mnist_ood
from skdice.metrics import auroc, fpr_at_tpr
from skdice.shaping import ReAct

CONTAMINATION = 0.05
N_RESAMPLES = 300
N_SPLITS = 10


@dataclass(frozen=True)
class Network:
    """The head of one network and its features."""

    name: str
    head: LinearHead
    id_train: np.ndarray
    id_test: np.ndarray
    ood: dict[str, np.ndarray]


@dataclass(frozen=True)
class Quality:
    """Mean AUROC and FPR95 over OOD sets, and the share of ID rows flagged, as fractions."""

    auroc: float
    fpr95: float
    flagged: float
    auroc_interval: tuple[float, float] | None = None
    fpr95_interval: tuple[float, float] | None = None


def detectors(head: LinearHead) -> dict[str, object]:
    """Return the unfitted detectors of the table by name; nothing is tuned."""
    react = ReAct(quantile=0.99)
    return {
        "energy": DICEDetector(head, sparsity=0),
        "energy + ReAct 0.99": DICEDetector(head, sparsity=0, shaping=react),
        "DICE 0.7": DICEDetector(head, sparsity=0.7),
        "DICE 0.7 + ReAct 0.99": DICEDetector(head, sparsity=0.7, shaping=react),
        "DICE 0.1": DICEDetector(head, sparsity=0.1),
        "DICE 0.1 + ReAct 0.99": DICEDetector(head, sparsity=0.1, shaping=react),
        "fDBD": FDBDDetector(head),
        "ViM": ViMDetector(head),
        "ensemble": make_ensemble(head),
        "ensemble, min": make_ensemble(head, combination="min"),
    }


def read_network(folder: Path) -> Network:
    """Return the network of a folder."""
    heads = sorted(folder.glob("head.*"))
    sets = {path.stem.removeprefix("ood_"): path for path in sorted(folder.glob("ood_*.npy"))}
    if len(heads) != 1 or not sets:
        raise ValueError(
            f"{folder} has {len(heads)} files head.* and {len(sets)} files ood_*.npy, expected one "
            "head and at least one OOD set"
        )
    train, test = (np.load(folder / f"id_{part}.npy") for part in ("train", "test"))
    ood = {name: np.load(path) for name, path in sets.items()}
    return Network(folder.name, LinearHead.from_file(heads[0]), train, test, ood)


def networks(folders: list[Path]) -> Iterator[Network]:
    """Yield the networks of the folders, or those at hand if no folders are given."""
    if folders:
        yield from map(read_network, folders)
        return
    data = load_fashion_mnist_ood()
    yield Network("fashion-resnet", data.head, data.id_train, data.id_test, data.ood)
    if "SKDICE_DATA" in os.environ:
        yield read_network(Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet")


def digit_classifiers(seed: int) -> Iterator[Network]:
    """Yield two classifiers of scikit-learn for the digits 0 to 7; 8 and 9 are the outliers."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels / 16
    known = digits < 8
    train, test, train_digits, _ = train_test_split(
        pixels[known], digits[known], test_size=0.5, random_state=seed, stratify=digits[known]
    )
    outliers = {"digits 8 and 9": pixels[~known]}
    linear = LogisticRegression(max_iter=2000).fit(train, train_digits)
    yield Network("pixels", LinearHead(linear.coef_, linear.intercept_), train, test, outliers)
    network = MLPClassifier((128,), max_iter=300, random_state=seed).fit(train, train_digits)

    def hidden(rows: np.ndarray) -> np.ndarray:
        return np.maximum(rows @ network.coefs_[0] + network.intercepts_[0], 0)

    head = LinearHead(network.coefs_[1].T, network.intercepts_[1])
    ood = {name: hidden(rows) for name, rows in outliers.items()}
    yield Network("MLP", head, hidden(train), hidden(test), ood)


def means(inside: np.ndarray, outside: list[np.ndarray]) -> tuple[float, float]:
    """Return mean AUROC and mean FPR95 of scores over the OOD sets."""
    values = []
    for scores in outside:
        labels = np.repeat([1, -1], [len(inside), len(scores)])
        both = np.concatenate([inside, scores])
        values.append((auroc(labels, both), fpr_at_tpr(labels, both)))
    mean_auroc, mean_fpr95 = np.mean(values, axis=0)
    return float(mean_auroc), float(mean_fpr95)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def measure(network: Network, *, seed: int = 0, n_resamples: int = 0) -> dict[str, Quality]:
    """Return the quality of every score on one network.

    Parameters
    ----------
    network : Network
        The network.
    seed : int
        The seed of the split of id_test and of the resamples.
    n_resamples : int
        The number of bootstrap resamples; 0 leaves the intervals out.
    """
    order = np.random.default_rng(seed).permutation(len(network.id_test))
    third = len(order) // 3
    calibration, judged = network.id_test[order[:third]], network.id_test[order[third : 2 * third]]
    found = {}
    for name, detector in detectors(network.head).items():
        detector.fit(network.id_train)
        detector.calibrate(calibration, contamination=CONTAMINATION, method="conformal")
        inside = detector.score_samples(judged)
        outside = [detector.score_samples(rows) for rows in network.ood.values()]
        flagged = float(np.mean(inside < detector.offset_))
        intervals = []
        if n_resamples:
            # The same resamples for every score, so that the scores differ by themselves alone.
            rng = np.random.default_rng(seed)
            resampled = [means(*_resample(inside, outside, rng)) for _ in range(n_resamples)]
            intervals = [interval(column) for column in np.transpose(resampled)]
        found[name] = Quality(*means(inside, outside), flagged, *intervals)
    return found


def _resample(
    inside: np.ndarray, outside: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    drawn = [scores[rng.integers(0, len(scores), len(scores))] for scores in (inside, *outside)]
    return drawn[0], drawn[1:]


def measure_digits() -> dict[str, dict[str, Quality]]:
    """Return the quality of every score on the classifiers of digits, as means over splits."""
    splits: dict[str, list[dict[str, Quality]]] = {}
    for seed in range(N_SPLITS):
        for network in digit_classifiers(seed):
            splits.setdefault(network.name, []).append(measure(network, seed=seed))
    return {
        name: {
            score: Quality(
                *np.mean([[q.auroc, q.fpr95, q.flagged] for q in (s[score] for s in found)], axis=0)
            )
            for score in found[0]
        }
        for name, found in splits.items()
    }


def regrets(results: dict[str, dict[str, Quality]], metric: str) -> dict[str, np.ndarray]:
    """Return how far each score is from the best of each network, in percentage points."""
    table = np.array([[getattr(q, metric) for q in found.values()] for found in results.values()])
    best = table.max(axis=1) if metric == "auroc" else table.min(axis=1)
    columns = 100 * np.abs(table - best[:, None]).T
    return dict(zip(next(iter(results.values())), columns, strict=True))


def format_table(results: dict[str, dict[str, Quality]]) -> str:
    """Return the table of scores and networks."""
    scores = list(next(iter(results.values())))
    tables = [list(found.values()) for found in results.values()]
    lines = []
    titles = "".join(f"{name:>24}" for name in results)
    for metric, title in (("auroc", "AUROC"), ("fpr95", "FPR95")):
        worst_of = min if metric == "auroc" else max
        regret = regrets(results, metric)
        lines.append(f"{title:<22}{titles}{'mean':>8}{'worst':>8}{'most lost':>11}")
        for place, score in enumerate(scores):
            qualities = [table[place] for table in tables]
            values = [100 * getattr(quality, metric) for quality in qualities]
            cells = ""
            for value, quality in zip(values, qualities, strict=True):
                bounds = getattr(quality, f"{metric}_interval")
                shown = f"{value:.1f}"
                if bounds is not None:
                    shown += f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
                cells += f"{shown:>24}"
            lines.append(
                f"{score:<22}{cells}{np.mean(values):8.1f}{worst_of(values):8.1f}"
                f"{regret[score].max():11.1f}"
            )
        lines.append("")
    lines.append(f"{'ID rows flagged':<22}{titles}")
    for place, score in enumerate(scores):
        cells = "".join(f"{100 * table[place].flagged:>24.1f}" for table in tables)
        lines.append(f"{score:<22}{cells}")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, Quality]], path: Path) -> None:
    """Write a plot of the regret of every score on every network."""
    from skdice.plotting._style import COLOURS, bare_figure, hide_open_spines

    figure = bare_figure(9, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, metric in zip(panels, ("auroc", "fpr95"), strict=True):
        regret = regrets(results, metric)
        places = np.arange(len(regret))
        values = np.array(list(regret.values()))
        panel.barh(places, values.max(axis=1), height=0.06, color="0.75")
        for n, name in enumerate(results):
            panel.plot(
                values[:, n],
                places,
                "osD^vP"[n % 6],
                color=COLOURS[n % 6],
                markersize=7,
                label=name,
                clip_on=False,
            )
        panel.set(
            yticks=places,
            yticklabels=list(regret),
            xlabel="percentage points",
            title=f"{'AUROC' if metric == 'auroc' else 'FPR95'} lost to the best in hindsight",
            xlim=(0, None),
        )
        hide_open_spines(panel)
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="a network each")
    parser.add_argument("--digits", action="store_true", help="classifiers of digits instead")
    parser.add_argument("--output", type=Path, help="prefix of the files to write")
    arguments = parser.parse_args()
    if arguments.digits:
        results = measure_digits()
    else:
        results = {
            network.name: measure(network, n_resamples=N_RESAMPLES)
            for network in networks(arguments.folders)
        }
    table = format_table(results)
    print(table)
    if arguments.output is not None:
        arguments.output.with_suffix(".txt").write_text(table)
        draw(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
