"""What reproducing the paper's tables has in common: images to features, features to tables.

Features lie in a folder: ``head.npz``, ``mean_activation.npy``, ``id_train.npy``, ``id_test.npy``
and an ``ood_NAME.npy`` for each set.
"""

from __future__ import annotations

import argparse
import hashlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skdice import DICEDetector, LinearHead
from skdice._sparsify import contribution, threshold_mask
from skdice.extraction import extract_features
from skdice.io import open_features, save_features
from skdice.io._head_files import write_weight_and_bias
from skdice.metrics import compare
from skdice.metrics._report import DetectorResult
from skdice.shaping import ReAct

SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
RANKINGS = {
    "contribution (DICE)": "contribution",
    "magnitude of the weight": "magnitude",
    "mean activation of the unit": "unit_activation",
    "at random": "random",
}
SEEDS = range(5)


@dataclass(frozen=True)
class Experiment:
    """One of the paper's tables.

    Parameters
    ----------
    title : str
        Of the table.
    sets : mapping of str to int
        The paper's OOD sets, and how many images each has.
    n_test : int
        In-distribution test images.
    sparsity, sparsity_with_react : float
        Of DICE alone and of DICE + ReAct.
    clip : ReAct
        Unfitted where its threshold is a quantile.
    published : mapping
        By method and set, FPR95 and AUROC in percent; the mean under ``mean``.
    note : str
        What a reader of the table has to know besides.
    """

    title: str
    sets: Mapping[str, int]
    n_test: int
    sparsity: float
    sparsity_with_react: float
    clip: ReAct
    published: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Features:
    """What the second half starts from."""

    head: LinearHead
    mean: np.ndarray
    id_train: Any
    id_test: Any
    ood: Mapping[str, Any]


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that both scripts have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--checkpoint", type=Path, help="state dict of the network")
    options.add_argument("--data", type=Path, help="folder of the image sets")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where an OOD set lies, if not at its place in --data",
    )
    options.add_argument(
        "--features",
        type=Path,
        help="folder of feature files: written from images with --data, read without",
    )
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--device", help="where the network runs, such as cuda")
    options.add_argument("--output", type=Path, help="write the tables here too")
    return options


def parse(options: argparse.ArgumentParser, features: Path | None = None) -> argparse.Namespace:
    """Return the arguments, after looking whether they are enough.

    Parameters
    ----------
    options : ArgumentParser
        What `parser` made.
    features : Path or None
        Folder that is read where none is named. It is never written to.
    """
    arguments = options.parse_args()
    if (arguments.checkpoint is None) != (arguments.data is None):
        options.error("images need both, --checkpoint and --data")
    if arguments.features is None and arguments.data is None:
        arguments.features = features
    if arguments.features is None:
        options.error("name the folder of features: --features FOLDER")
    return arguments


def load_state(path: Path) -> dict[str, Any]:
    """Read a state dict, which may lie in a checkpoint; nothing but tensors is built."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    return {key.removeprefix("module."): value for key, value in state.items()}


def places(data: Path, standard: Mapping[str, str], named: Iterable[str]) -> dict[str, Path]:
    """Return where each OOD set lies; one that is not there is left out, and said so."""
    chosen = {name: data / place for name, place in standard.items()}
    for each in named:
        name, _, path = each.partition("=")
        if name not in standard or not path:
            raise ValueError(
                f"--set is {each!r}, expected NAME=PATH, NAME of {', '.join(standard)}"
            )
        if not Path(path).exists():
            raise FileNotFoundError(f"--set {each}: there is no {path}")
        chosen[name] = Path(path)
    for name, path in chosen.items():
        if not path.exists():
            print(f"left out: {name}, as there is no {path}")
    return {name: path for name, path in chosen.items() if path.exists()}


def check_archives(folder: Path, md5: Mapping[str, str]) -> None:
    """Compare the archives that lie in a folder with the checksums that are known."""
    for name, expected in md5.items():
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != expected:
                raise ValueError(f"{folder / name} has the MD5 {found}, expected {expected}")
            print(f"checked: {name}")


def extract(
    network: Any,
    sources: Mapping[str, Callable[[], Iterable[Any]]],
    folder: Path,
    device: str | None = None,
) -> None:
    """Write head, features and mean activation; files that are there already are kept.

    Parameters
    ----------
    network : torch.nn.Module
        With the classification layer ``fc``.
    sources : mapping of str to callable
        By the name of the file, what gives batches of images.
    folder : Path
        Where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = LinearHead.from_torch(network.fc)
    path = folder / "head.npz"
    if path.exists() and LinearHead.from_file(path) != head:
        raise ValueError(f"{folder} holds features of another network: name an empty folder")
    write_weight_and_bias(path, head.weight, head.bias)
    for name, batches in sources.items():
        path = folder / f"{name}.npy"
        if path.exists():
            print(f"kept: {path.name}")
            continue
        extract_features(network, batches(), layer="fc", out=path, device=device, verbose=1)
    train = open_features(folder / "id_train.npy")
    # Of the features as they are: DICE + ReAct, too, ranks by the mean before clipping.
    mean = DICEDetector(head, sparsity=0).partial_fit(train).mean_activation_
    save_features(folder / "mean_activation.npy", mean)


def read(folder: Path, experiment: Experiment) -> Features:
    """Read a folder of features: the paper's sets first, then what else lies there."""
    # Where images lie in folders of classes, their labels are in a file beside.
    files = [path for path in sorted(folder.glob("ood_*.npy")) if ".labels" not in path.suffixes]
    found = [path.stem.removeprefix("ood_") for path in files]
    names = [name for name in experiment.sets if name in found]
    names += [name for name in found if name not in experiment.sets]
    if not names:
        raise FileNotFoundError(f"{folder} has no ood_*.npy; see --help for what makes them")
    return Features(
        LinearHead.from_file(folder / "head.npz"),
        np.load(folder / "mean_activation.npy"),
        open_features(folder / "id_train.npy"),
        open_features(folder / "id_test.npy"),
        {name: open_features(folder / f"ood_{name}.npy") for name in names},
    )


def methods(features: Features, experiment: Experiment) -> dict[str, DICEDetector]:
    """Return the paper's methods, fitted, by label."""
    clip = experiment.clip
    if clip.threshold is None:
        clip = ReAct(threshold=clip.fit(features.id_train).threshold_)
    p, with_react = experiment.sparsity, experiment.sparsity_with_react
    found = {
        "MSP": DICEDetector(features.head, sparsity=0, score_func="msp"),
        "MaxLogit": DICEDetector(features.head, sparsity=0, score_func="max_logit"),
        "Energy": DICEDetector(features.head, sparsity=0),
        "ReAct": DICEDetector(features.head, sparsity=0, shaping=clip),
        "DICE": DICEDetector(features.head, sparsity=p),
        "DICE + ReAct": DICEDetector(features.head, sparsity=with_react, shaping=clip),
    }
    for each in found.values():
        each.partial_fit(features.mean[None])
    return found


def ranking_values(
    weight: np.ndarray, mean_activation: np.ndarray, ranking: str, seed: int = 0
) -> np.ndarray:
    """Return the values by which a ranking of the paper orders the weights; the largest are kept.

    Parameters
    ----------
    weight : ndarray of shape (n_classes, n_features)
        Weight of the last linear layer.
    mean_activation : ndarray of shape (n_features,)
        Mean in-distribution activation of each penultimate unit.
    ranking : {"contribution", "magnitude", "unit_activation", "random"}
        ``"contribution"`` is DICE. The others are the ablations of the paper: the absolute
        weight, the mean activation of the unit alone, and chance.
    seed : int, default=0
        The seed of the ``"random"`` ranking.

    Returns
    -------
    ndarray of shape (n_classes, n_features), float64
    """
    match ranking:
        case "contribution":
            return contribution(weight, mean_activation)
        case "magnitude":
            return np.abs(weight, dtype=np.float64)
        case "unit_activation":
            return np.broadcast_to(mean_activation, weight.shape)
        case "random":
            # RandomState, whose numbers the committed tables were made with.
            return np.random.RandomState(seed).uniform(size=weight.shape)
    raise ValueError(
        "ranking must be 'contribution', 'magnitude', 'unit_activation' or 'random', "
        f"got {ranking!r}"
    )


def masked(features: Features, ranking: str, sparsity: float, seed: int = 0) -> DICEDetector:
    """Return a detector with the energy score of the head that a ranking of the paper prunes."""
    head = features.head
    mask, _ = threshold_mask(ranking_values(head.weight, features.mean, ranking, seed), sparsity)
    kept = LinearHead(head.weight * mask, head.bias)
    return DICEDetector(kept, sparsity=0).partial_fit(features.mean[None])


def percent(result: DetectorResult, name: str) -> tuple[float, float]:
    """Return FPR95 and AUROC on one set, in percent."""
    found = result.sets[name]
    return 100 * found.fpr95, 100 * found.auroc


def measure(features: Features, detectors: Mapping[str, Any]) -> dict[str, DetectorResult]:
    """Return the results of each detector on all sets."""
    return dict(compare(detectors, features.id_test, features.ood).results)


def ablation(features: Features) -> dict[tuple[str, float], dict[str, tuple[float, float]]]:
    """Return FPR95 and AUROC by ranking and sparsity, and by set; chance is a mean over seeds."""
    found = {}
    for label, ranking in RANKINGS.items():
        for sparsity in SPARSITIES:
            seeds = SEEDS if ranking == "random" else [0]
            detectors = {str(seed): masked(features, ranking, sparsity, seed) for seed in seeds}
            results = measure(features, detectors).values()
            found[label, sparsity] = {
                name: tuple(np.mean([percent(each, name) for each in results], axis=0))
                for name in features.ood
            }
    return found


def is_whole(features: Features, experiment: Experiment) -> bool:
    """Tell whether all of the paper's sets are there in full, so that a mean is its mean."""
    return all(
        name in features.ood and features.ood[name].shape[0] == n
        for name, n in experiment.sets.items()
    )


def cell(rates: Sequence[float] | None, digits: int = 2) -> str:
    return "" if rates is None else f"{rates[0]:.{digits}f} / {rates[1]:.{digits}f}"


def rst_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a simple table in reStructuredText."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = [
        "  ".join(each.ljust(width) for each, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([rule, text[0], rule, *text[1:], rule])


def heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}"


def count(features: Features, experiment: Experiment, name: str) -> str:
    """Return how many images a set has, and of how many."""
    if name not in features.ood:
        return ""
    n = features.ood[name].shape[0]
    expected = experiment.sets.get(name, n)
    return f"{n:,}" if n == expected else f"{n:,} of {expected:,}"


def method_table(features: Features, experiment: Experiment) -> str:
    """Return the methods' FPR95 / AUROC, with what was published below each."""
    others = [name for name in features.ood if name not in experiment.sets]
    columns = [*experiment.sets, "mean", *others]
    rows = [["images", *(count(features, experiment, name) for name in columns)]]
    for label, result in measure(features, methods(features, experiment)).items():
        found = {name: percent(result, name) for name in features.ood}
        if is_whole(features, experiment):
            found["mean"] = mean_of(found, experiment.sets)
        rows.append([label, *(cell(found.get(name)) for name in columns)])
        if label in experiment.published:
            published = experiment.published[label]
            rows.append(["  published", *(cell(published.get(name)) for name in columns)])
    return rst_table(["method", *columns], rows)


def mean_of(rates: Mapping[str, tuple[float, float]], names: Iterable[str]) -> tuple[float, float]:
    """Return the means over sets, each counting the same."""
    fpr95, auroc = np.mean([rates[name] for name in names], axis=0)
    return float(fpr95), float(auroc)


def settings(features: Features, experiment: Experiment) -> str:
    """Say what the table was made with."""
    clip = experiment.clip
    if clip.threshold is not None:
        what = f"{clip.threshold:g}"
    else:
        what = f"the {clip.quantile:g} quantile of the features in id_train.npy"
    n_train, n_test = features.id_train.shape[0], features.id_test.shape[0]
    p, with_react = experiment.sparsity, experiment.sparsity_with_react
    lines = [
        f"""{features.head!r}. In-distribution: {n_test:,} of {experiment.n_test:,} test images;
        {n_train:,} rows of training images.""",
        f"DICE p = {p:g}; DICE + ReAct p = {with_react:g}; clip: {what}.",
        "The contribution is measured with mean_activation.npy, before any clipping.",
        """FPR95 / AUROC in percent; in-distribution is positive, the threshold is the authors' (the
        score at place round(0.05 n) of the sorted in-distribution ones).""",
        """Means are over the paper's OOD sets, each counting the same, and are left empty where not
        all of them are there in full. An empty cell could not be had.""",
        experiment.note,
    ]
    return "\n".join(
        textwrap.fill(" ".join(each.split()), 99, initial_indent="* ", subsequent_indent="  ")
        for each in lines
        if each
    )


def ablation_tables(features: Features, experiment: Experiment) -> str:
    """Return a table per set: the paper's rankings over its sparsities."""
    found = ablation(features)
    groups = {name: [name] for name in features.ood}
    if is_whole(features, experiment):
        groups = {"mean over the paper's sets": list(experiment.sets), **groups}
    parts = []
    for title, names in groups.items():
        rows = [
            [label] + [cell(mean_of(found[label, sparsity], names), 1) for sparsity in SPARSITIES]
            for label in RANKINGS
        ]
        table = rst_table(["kept by", *(f"p = {each:g}" for each in SPARSITIES)], rows)
        parts += [f"{title}:", "", table, ""]
    return "\n".join(parts).rstrip()


def publish(text: str, output: Path | None) -> None:
    """Print the tables, and write them where asked to."""
    print(text)
    if output is not None:
        output.write_text(text + "\n")
