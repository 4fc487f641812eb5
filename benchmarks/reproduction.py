"""The parts that both reproductions of the paper's tables share.

The first half turns images into feature files, and the second half turns feature files into tables.
A folder of features has the files ``head.npz``, ``mean_activation.npy``, ``id_train.npy``,
``id_test.npy`` and an ``ood_NAME.npy`` for each OOD set.
"""

import argparse
import hashlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from skdice import DICEDetector, LinearHead
from skdice._sparsify import contribution, threshold_masks
from skdice.extraction import extract_features
from skdice.io import open_features, save_features
from skdice.io._head_files import write_weight_and_bias
from skdice.metrics import compare
from skdice.metrics._report import DetectorResult
from skdice.shaping import ReAct

# The sparsities of the paper's ablation.
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
# The rankings of the paper's ablation, by their label in the table.
RANKINGS = {
    "contribution (DICE)": "contribution",
    "magnitude of the weight": "magnitude",
    "mean activation of the unit": "unit_activation",
    "at random": "random",
}
# The table shows the mean of the random ranking over these seeds.
SEEDS = range(5)


@dataclass(frozen=True)
class Experiment:
    """One of the paper's tables, with the paper's settings.

    Every setting is given here, because the defaults of skdice are others.

    Parameters
    ----------
    title : str
        The title of the table.
    sets : mapping of str to int
        The names of the paper's OOD sets, and the number of images of each.
    n_test : int
        The number of in-distribution test images.
    sparsity : float
        The sparsity of DICE alone.
    sparsity_with_react : float
        The sparsity of DICE + ReAct.
    clip : ReAct
        The clipping of ReAct and of DICE + ReAct. It may be unfitted.
    published : mapping
        The published FPR95 and AUROC in percent, by method and OOD set. The key ``mean`` stands
        for the mean over the OOD sets.
    note : str
        A remark for the reader of the table.
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
    """The contents of a folder of features.

    Parameters
    ----------
    head : LinearHead
        The last linear layer of the network.
    mean : ndarray of shape (n_features,)
        The mean in-distribution activation, without clipping.
    id_train, id_test : source of rows
        The features of the in-distribution training and test images.
    ood : mapping of str to source of rows
        The features of each OOD set.
    """

    head: LinearHead
    mean: np.ndarray
    id_train: Any
    id_test: Any
    ood: Mapping[str, Any]


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that both scripts share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--checkpoint", type=Path, help="state dict of the network")
    options.add_argument("--data", type=Path, help="folder of the images")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="path of an OOD set that is not at its usual place in --data",
    )
    options.add_argument(
        "--features",
        type=Path,
        help="folder of feature files; --data writes it, and without --data it is only read",
    )
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--device", help="device that runs the network, such as cuda")
    options.add_argument("--output", type=Path, help="write the tables to this file, too")
    return options


def parse(options: argparse.ArgumentParser, features: Path | None = None) -> argparse.Namespace:
    """Return the arguments, or exit with a message if one is missing.

    Parameters
    ----------
    options : ArgumentParser
        The parser that `parser` returned.
    features : Path or None
        The folder to read if the command names neither --features nor --data. It is never
        written to.
    """
    arguments = options.parse_args()
    if (arguments.checkpoint is None) != (arguments.data is None):
        options.error("images need both --checkpoint and --data")
    if arguments.features is None and arguments.data is None:
        arguments.features = features
    if arguments.features is None:
        options.error("name the folder of features: --features FOLDER")
    return arguments


def load_state(path: Path) -> dict[str, Any]:
    """Read a state dict, which may be nested in a checkpoint. No code in the file is run."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    # torch.nn.DataParallel, with which the authors trained, puts "module." before each name.
    return {key.removeprefix("module."): value for key, value in state.items()}


def places(data: Path, standard: Mapping[str, str], named: Iterable[str]) -> dict[str, Path]:
    """Return the path of each OOD set. A missing set is left out, with a printed line.

    Parameters
    ----------
    data : Path
        The folder of the images.
    standard : mapping of str to str
        The usual place of each OOD set in that folder.
    named : iterable of str
        The values of the option --set, NAME=PATH.
    """
    chosen = {name: data / place for name, place in standard.items()}
    for option in named:
        name, _, path = option.partition("=")
        if name not in standard or not path:
            raise ValueError(
                f"--set is {option!r}, expected NAME=PATH with NAME one of {', '.join(standard)}"
            )
        if not Path(path).exists():
            raise FileNotFoundError(f"--set {option}: there is no {path}")
        chosen[name] = Path(path)
    for name, path in chosen.items():
        if not path.exists():
            print(f"left out: {name}, because there is no {path}")
    return {name: path for name, path in chosen.items() if path.exists()}


def check_archives(folder: Path, md5: Mapping[str, str]) -> None:
    """Compare the archives in a folder with their known MD5 checksums.

    Raises
    ------
    ValueError
        An archive has another checksum.
    """
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
    """Write the head, the features and the mean activation. Existing feature files are kept.

    Parameters
    ----------
    network : torch.nn.Module
        The network, whose classification layer is ``fc``.
    sources : mapping of str to callable
        For the name of each feature file, a function that returns batches of images.
    folder : Path
        The folder of the files.
    device : str, default=None
        The device that runs the network.

    Raises
    ------
    ValueError
        The folder has the head of another network.
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
    # The mean is that of the features without clipping, because DICE + ReAct, too, ranks the
    # weights by the mean before clipping.
    mean = DICEDetector(head, sparsity=0).partial_fit(train).mean_activation_
    save_features(folder / "mean_activation.npy", mean)


def read(folder: Path, experiment: Experiment) -> Features:
    """Read a folder of features: the OOD sets of the paper first, then the other OOD sets."""
    # An OOD set that came in one folder per class has a file of labels beside its features.
    files = [path for path in sorted(folder.glob("ood_*.npy")) if ".labels" not in path.suffixes]
    found = [path.stem.removeprefix("ood_") for path in files]
    names = [name for name in experiment.sets if name in found]
    names += [name for name in found if name not in experiment.sets]
    if not names:
        raise FileNotFoundError(f"{folder} has no ood_*.npy; --help says how to make them")
    return Features(
        LinearHead.from_file(folder / "head.npz"),
        np.load(folder / "mean_activation.npy"),
        open_features(folder / "id_train.npy"),
        open_features(folder / "id_test.npy"),
        {name: open_features(folder / f"ood_{name}.npy") for name in names},
    )


def methods(features: Features, experiment: Experiment) -> dict[str, DICEDetector]:
    """Return the fitted detectors of the paper's methods, by the label of the method."""
    clip = experiment.clip
    # The detectors are fitted on the mean activation alone, from which ReAct cannot learn a
    # quantile.
    if clip.threshold is None:
        clip = ReAct(threshold=clip.fit(features.id_train).threshold_)
    p, with_react = experiment.sparsity, experiment.sparsity_with_react
    detectors = {
        "MSP": DICEDetector(features.head, sparsity=0, score_func="msp"),
        "MaxLogit": DICEDetector(features.head, sparsity=0, score_func="max_logit"),
        "Energy": DICEDetector(features.head, sparsity=0),
        "ReAct": DICEDetector(features.head, sparsity=0, shaping=clip),
        "DICE": DICEDetector(features.head, sparsity=p),
        "DICE + ReAct": DICEDetector(features.head, sparsity=with_react, shaping=clip),
    }
    for detector in detectors.values():
        detector.partial_fit(features.mean[None])
    return detectors


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
            # The committed tables were made with the numbers of RandomState.
            return np.random.RandomState(seed).uniform(size=weight.shape)
    raise ValueError(
        "ranking must be 'contribution', 'magnitude', 'unit_activation' or 'random', "
        f"got {ranking!r}"
    )


def masked(features: Features, ranking: str, sparsity: float, seed: int = 0) -> DICEDetector:
    """Return a detector with the energy score of the head that a ranking of the paper prunes."""
    head = features.head
    values = ranking_values(head.weight, features.mean, ranking, seed)
    ((mask, _),) = threshold_masks(values, [sparsity])
    kept = LinearHead(head.weight * mask, head.bias)
    return DICEDetector(kept, sparsity=0).partial_fit(features.mean[None])


def percent(result: DetectorResult, name: str) -> tuple[float, float]:
    """Return FPR95 and AUROC on one OOD set, in percent."""
    rates = result.sets[name]
    return 100 * rates.fpr95, 100 * rates.auroc


def measure(features: Features, detectors: Mapping[str, Any]) -> dict[str, DetectorResult]:
    """Return the results of each detector on all OOD sets."""
    return dict(compare(detectors, features.id_test, features.ood).results)


def ablation(features: Features) -> dict[tuple[str, float], dict[str, tuple[float, float]]]:
    """Return FPR95 and AUROC in percent by ranking and sparsity, and by OOD set.

    The random ranking has the mean over all seeds.
    """
    rates = {}
    for label, ranking in RANKINGS.items():
        for sparsity in SPARSITIES:
            seeds = SEEDS if ranking == "random" else [0]
            detectors = {str(seed): masked(features, ranking, sparsity, seed) for seed in seeds}
            results = measure(features, detectors).values()
            rates[label, sparsity] = {
                name: tuple(np.mean([percent(result, name) for result in results], axis=0))
                for name in features.ood
            }
    return rates


def is_whole(features: Features, experiment: Experiment) -> bool:
    """Return whether all OOD sets of the paper are complete, so that the mean is comparable."""
    return all(
        name in features.ood and features.ood[name].shape[0] == n
        for name, n in experiment.sets.items()
    )


def cell(rates: Sequence[float] | None, digits: int = 2) -> str:
    """Return the text of a cell with two rates, empty for None."""
    return "" if rates is None else f"{rates[0]:.{digits}f} / {rates[1]:.{digits}f}"


def rst_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a simple table in reStructuredText."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([rule, text[0], rule, *text[1:], rule])


def heading(text: str, underline: str) -> str:
    """Return a heading in reStructuredText."""
    return f"{text}\n{underline * len(text)}"


def count(features: Features, experiment: Experiment, name: str) -> str:
    """Return the number of images of an OOD set, and the paper's number if it differs."""
    if name not in features.ood:
        return ""
    n = features.ood[name].shape[0]
    expected = experiment.sets.get(name, n)
    return f"{n:,}" if n == expected else f"{n:,} of {expected:,}"


def method_table(features: Features, experiment: Experiment) -> str:
    """Return a table of FPR95 / AUROC by method, with the published values below."""
    others = [name for name in features.ood if name not in experiment.sets]
    columns = [*experiment.sets, "mean", *others]
    rows = [["images", *(count(features, experiment, name) for name in columns)]]
    for label, result in measure(features, methods(features, experiment)).items():
        rates = {name: percent(result, name) for name in features.ood}
        if is_whole(features, experiment):
            rates["mean"] = mean_of(rates, experiment.sets)
        rows.append([label, *(cell(rates.get(name)) for name in columns)])
        if label in experiment.published:
            published = experiment.published[label]
            rows.append(["  published", *(cell(published.get(name)) for name in columns)])
    # A set that is neither at hand nor published would be a column of blanks.
    is_filled = [any(texts) for texts in zip(*rows, strict=True)]
    return rst_table(
        list(compress(["method", *columns], is_filled)),
        [list(compress(row, is_filled)) for row in rows],
    )


def mean_of(rates: Mapping[str, tuple[float, float]], names: Iterable[str]) -> tuple[float, float]:
    """Return the means over OOD sets, in which each set counts the same."""
    fpr95, auroc = np.mean([rates[name] for name in names], axis=0)
    return float(fpr95), float(auroc)


def settings(features: Features, experiment: Experiment) -> str:
    """Return a list of the settings that the table was made with."""
    clip = experiment.clip
    if clip.threshold is not None:
        threshold = f"{clip.threshold:g}"
    else:
        threshold = f"the {clip.quantile:g} quantile of the features in id_train.npy"
    n_train, n_test = features.id_train.shape[0], features.id_test.shape[0]
    p, with_react = experiment.sparsity, experiment.sparsity_with_react
    lines = [
        f"""{features.head!r}. In-distribution: {n_test:,} of {experiment.n_test:,} test images;
        {n_train:,} rows of training images.""",
        f"DICE p = {p:g}; DICE + ReAct p = {with_react:g}; ReAct clips at {threshold}.",
        "The contribution is computed from mean_activation.npy, which is the mean before clipping.",
        """FPR95 / AUROC in percent; in-distribution is positive. The threshold follows the authors'
        rule: the score at place round(0.05 n) of the sorted in-distribution scores.""",
        """The mean is over the paper's OOD sets, each counting the same. It is missing unless all
        of these sets are complete.""",
        experiment.note,
    ]
    return "\n".join(
        textwrap.fill(" ".join(line.split()), 99, initial_indent="* ", subsequent_indent="  ")
        for line in lines
        if line
    )


def ablation_tables(features: Features, experiment: Experiment) -> str:
    """Return a table for each OOD set, with the paper's rankings and sparsities."""
    rates = ablation(features)
    groups = {name: [name] for name in features.ood}
    if is_whole(features, experiment):
        groups = {"mean over the paper's sets": list(experiment.sets), **groups}
    parts = []
    for title, names in groups.items():
        rows = [
            [label] + [cell(mean_of(rates[label, sparsity], names), 1) for sparsity in SPARSITIES]
            for label in RANKINGS
        ]
        table = rst_table(["kept by", *(f"p = {each:g}" for each in SPARSITIES)], rows)
        parts += [f"{title}:", "", table, ""]
    return "\n".join(parts).rstrip()


def publish(text: str, output: Path | None) -> None:
    """Print the tables, and write them to the file if one is given."""
    print(text)
    if output is not None:
        output.write_text(text + "\n")
