"""Compare the scores of skdice with those of other implementations of DICE, on the same features.

    pip install --no-deps pytorch-ood==0.4.0
    [SKDICE_DATA=...] python benchmarks/agreement.py [--output agreement.rst]

The script runs pytorch-ood's own detector. The authors' code and OpenOOD cannot be installed as
packages, so the script has its own version of the few lines that make their mask and score. They
follow ``models/route.py`` of deeplearning-wisc/dice and
``openood/postprocessors/dice_postprocessor.py`` of Jingkang50/OpenOOD. The tables say which code
was run.
"""

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from reproduction import heading, rst_table

from skdice import DICEDetector, FDBDDetector, LinearHead, ViMDetector
from skdice.datasets import load_fashion_mnist_ood

SPARSITIES = (0.1, 0.5, 0.7, 0.9)
# Few rows are scored, because the other implementations hold a value per row, class and unit.
SCORED = 2000
# torch.quantile refuses more elements than this.
LARGEST_QUANTILE = 1 << 24


def authors_weight(head: LinearHead, train: Any, percent: float) -> np.ndarray:
    """Return the masked weight by the authors' rule, with a float64 mean and a percentage."""
    contribution = train.astype(np.float64).mean(0)[None, :] * head.weight
    return head.weight * (contribution > np.percentile(contribution, percent))


def openood_weight(head: LinearHead, train: Any, percent: float) -> np.ndarray:
    """Return the masked weight by OpenOOD's rule, with a mean in the dtype of the features."""
    contribution = train.mean(0)[None, :] * head.weight
    return head.weight * (contribution > np.percentile(contribution, percent))


def pytorch_ood_fitted(head: LinearHead, train: Any, fraction: float) -> Any:
    """Return pytorch-ood's own detector, fitted on the rows."""
    detector = peers.pytorch_ood_detector(np.array(head.weight), np.array(head.bias), fraction)
    features = torch.from_numpy(np.array(train))
    return detector.fit_features(features, torch.zeros(len(features), dtype=torch.long))


def scores(head: LinearHead, train: Any, X: Any, sparsity: float) -> dict[str, Any]:
    """Return the masked weight and the scores of each implementation, higher = in-distribution."""
    results = {}
    for name, rule in {"authors": authors_weight, "OpenOOD": openood_weight}.items():
        coef = rule(head, train, 100 * sparsity)
        results[name] = coef, peers.torch_broadcast(X, coef, np.array(head.bias))
    detector = pytorch_ood_fitted(head, train, sparsity)
    outlier_scores = detector.predict_features(torch.from_numpy(np.array(X)))
    results["pytorch-ood"] = detector.masked_w.numpy(), -outlier_scores.numpy()
    with warnings.catch_warnings():
        # At sparsity 0.9, skdice warns of classes that lose all their weights.
        warnings.simplefilter("ignore", UserWarning)
        own = DICEDetector(head, sparsity=sparsity).partial_fit(train)
    results["skdice"] = own.coef_, own.score_samples(X)
    return results


def problems() -> Iterator[tuple[str, LinearHead, Any, Any]]:
    """Yield a title, a head, rows to fit and rows to score."""
    rng = np.random.default_rng(0)
    head = _random_head(rng, 100, 512)
    X = np.maximum(rng.standard_normal((5000, 512)), 0).astype(np.float32)
    yield "random, 100 x 512", head, X[:3000], X[3000:]
    data = load_fashion_mnist_ood()
    X = np.concatenate([data.id_test[:1000], data.ood["mnist"]])[:SCORED]
    yield "Fashion-MNIST ResNet", data.head, data.id_train.astype("f4"), X.astype("f4")
    if "SKDICE_DATA" in os.environ:
        folder = Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet"
        rows = [np.load(folder / f"{name}.npy") for name in ("id_test", "ood_textures")]
        X = np.concatenate([part[: SCORED // 2] for part in rows])
        head = LinearHead.from_file(folder / "head.npz")
        yield "CIFAR-10 DenseNet", head, np.load(folder / "id_train.npy"), X


def _random_head(rng: np.random.Generator, n_classes: int, n_features: int) -> LinearHead:
    weight = rng.standard_normal((n_classes, n_features)).astype(np.float32)
    return LinearHead(weight, rng.standard_normal(n_classes).astype(np.float32))


def agreement_table() -> str:
    """Return a table of the differences of each implementation from skdice."""
    rows = []
    for title, head, train, X in problems():
        for sparsity in SPARSITIES:
            results = scores(head, train, X, sparsity)
            own_weight, own_scores = results.pop("skdice")
            line = [f"{title}, p = {sparsity:g}", f"{np.count_nonzero(own_weight):,}"]
            for coef, other in results.values():
                differing = np.count_nonzero((coef != 0) != (own_weight != 0))
                relative = np.max(np.abs(other - own_scores) / np.abs(own_scores))
                line.append(f"{differing} / {relative:.0e}")
            rows.append(line)
    return rst_table(["features", "kept", "authors", "OpenOOD", "pytorch-ood"], rows)


def paper_vim(head: LinearHead, train: Any, X: Any, n_components: int) -> np.ndarray:
    """Return the scores of ViM by the paper's formula, in double precision."""
    weight, bias = head.weight.astype(float), head.bias.astype(float)
    origin = -np.linalg.pinv(weight) @ bias
    centred = train.astype(float) - origin
    residual = np.linalg.eigh(centred.T @ centred)[1][:, : -n_components or None]
    norm = np.linalg.norm(centred @ residual, axis=1).mean()
    alpha = (train @ weight.T + bias).max(axis=1).mean() / norm
    energy = np.logaddexp.reduce(X @ weight.T + bias, axis=1)
    return energy - alpha * np.linalg.norm((X - origin) @ residual, axis=1)


def geometric_table() -> str:
    """Return a table of the differences of pytorch-ood's ViM and fDBD from ours."""
    rows = []
    for title, head, train, X in problems():
        line = [title]
        for name, detector in (("ViM", ViMDetector(head)), ("fDBD", FDBDDetector(head))):
            own = detector.fit(train).score_samples(X)
            n_components = getattr(detector, "n_components_", 0)
            arrays = np.array(head.weight), np.array(head.bias), np.array(train)
            other = peers.pytorch_ood_geometric(name, *arrays, n_components)
            scores = -other.predict_features(torch.from_numpy(np.array(X))).detach().numpy()
            line.append(f"{np.max(np.abs(scores - own)) / np.std(own):.0e}")
            if name == "ViM":
                scores = paper_vim(head, train, X, n_components)
                line.append(f"{np.max(np.abs(scores - own)) / np.std(own):.0e}")
        rows.append(line)
    return rst_table(["features", "ViM", "ViM in float64", "fDBD"], rows)


def answer_of(function: Any, *arguments: Any) -> str:
    """Return the first line of the error that a call raises, or "accepted"."""
    try:
        function(*arguments)
    # The table shows the error, so every kind of error is caught.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "accepted"


def differences() -> list[tuple[str, str, str, str]]:
    """Return the differences: the topic, the others, skdice, and how we found the difference."""
    rng = np.random.default_rng(0)
    head = _random_head(rng, 5, 12)
    train = np.maximum(rng.standard_normal((50, 12)), 0).astype("f4")
    silent = np.zeros_like(train)
    wide = LinearHead(rng.standard_normal((4097, 4096), np.float32))
    others = pytorch_ood_fitted(head, train, 0.5)
    own = DICEDetector(head, sparsity=0.5).partial_fit(train)
    kept = [
        np.count_nonzero(coef)
        for coef in (
            authors_weight(head, train, 0),
            openood_weight(head, train, 0),
            pytorch_ood_fitted(head, train, 0.0).masked_w.numpy(),
            DICEDetector(head, sparsity=0).partial_fit(train).coef_,
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tied = DICEDetector(head, sparsity=0.5).partial_fit(silent)
        large = DICEDetector(wide, sparsity=0.5).partial_fit(np.ones((1, 4096), "f4"))
    sign = np.corrcoef(
        others.predict_features(torch.from_numpy(train)).numpy(), own.score_samples(train)
    )[0, 1]
    silent_kept = [
        np.count_nonzero(coef)
        for coef in (
            authors_weight(head, silent, 50),
            openood_weight(head, silent, 50),
            pytorch_ood_fitted(head, silent, 0.5).masked_w.numpy(),
        )
    ]
    their_dtype = str(others.mean_activation.dtype).removeprefix("torch.")
    run, read = "running all", "reading the code"
    partly = "running pytorch-ood and skdice, reading the others"
    return [
        (
            "Unit of the sparsity",
            f"""The authors and OpenOOD take a percentage and call np.percentile with it.
            pytorch-ood takes a fraction, and answers 70 with
            {answer_of(pytorch_ood_fitted, head, train, 70)}""",
            f"""skdice takes a fraction, and answers 70 with
            {answer_of(DICEDetector(head, sparsity=70).partial_fit, train)}""",
            partly,
        ),
        (
            "Sparsity 0",
            f"""The strict comparison drops the smallest contribution: {kept[0]}, {kept[1]} and
            {kept[2]} of {head.weight.size} weights are kept by the authors' rule, by OpenOOD's and
            by pytorch-ood. The authors' code takes p=None for no mask""",
            f"There is no mask: {kept[3]} weights are kept, which gives exactly the energy score",
            run,
        ),
        (
            "All contributions tie (a mean activation of zero)",
            f"""{silent_kept[0]}, {silent_kept[1]} and {silent_kept[2]} weights are kept by the
            authors' rule, by OpenOOD's and by pytorch-ood, so that all rows have one score""",
            f"""The weights with the largest contribution are kept: {int(tied.mask_.sum())} of
            {head.weight.size}""",
            run,
        ),
        (
            f"""A head of {wide.weight.size:,} weights, where torch.quantile takes at most
            {LARGEST_QUANTILE:,} values""",
            f"""pytorch-ood raises
            {answer_of(pytorch_ood_fitted, wide, np.ones((1, 4096), np.float32), 0.5)}""",
            f"skdice fits it, and keeps a share of {large.mask_.mean():.2f} of the weights",
            "running pytorch-ood and skdice",
        ),
        (
            "Dtype of the mean activation",
            f"""pytorch-ood has {their_dtype}, OpenOOD the dtype of the features, the authors
            float64""",
            f"""skdice has {own.mean_activation_.dtype} for features of every dtype, with the same
            result for every split of the rows""",
            partly,
        ),
        (
            "Sign",
            f"""Higher is out-of-distribution in pytorch-ood (correlation with skdice's scores
            {sign:.2f}). Higher is in-distribution for the authors and OpenOOD""",
            "Higher is in-distribution, as in scikit-learn",
            partly,
        ),
        (
            "A head without bias",
            f"""The authors' layer adds no bias. OpenOOD adds the bias that net.get_fc() returns.
            pytorch-ood raises {answer_of(lambda: _without_bias(head))}""",
            f"The bias is zero; LinearHead(weight) is {answer_of(LinearHead, head.weight)}",
            partly,
        ),
        (
            "Changing the sparsity after the mask was made",
            """OpenOOD's set_hyperparam sets p, but OpenOOD keeps a mask that exists, so all scores
            of a sweep use the first mask. pytorch-ood documents that it needs a new fit""",
            "skdice needs a new fit, or sparsity_path, which computes the mean once",
            read,
        ),
        (
            "Memory while scoring",
            """The authors, OpenOOD and pytorch-ood compute x[:, None, :] * weight, which has a
            value for each row, class and unit""",
            "skdice computes a matrix product in blocks of rows",
            "reading the code; compare.py measures the time",
        ),
    ]


def _without_bias(head: LinearHead) -> Any:
    from pytorch_ood.detector import DICE

    return DICE(None, torch.from_numpy(np.array(head.weight)), None, 0.5)


def list_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a list-table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        for n, text in enumerate(row):
            lines.append(f"   {'*' if n == 0 else ' '} - {' '.join(text.split())}")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--output", type=Path, help="write the tables to this file, too")
    arguments = options.parse_args()
    text = "\n\n".join(
        [
            heading("Agreement with other implementations of DICE", "="),
            (
                "Each cell has the number of weights that are masked in one implementation and not "
                "in the other, and\nthe largest relative difference of a score. The features are "
                "float32. pytorch-ood 0.4.0 is run; the\nauthors' and OpenOOD's rules are our "
                "versions of their source."
            ),
            agreement_table(),
            heading("ViM and fDBD", "-"),
            (
                "The largest difference of a score from ours, over the standard deviation of the "
                "scores: of\npytorch-ood 0.4.0, and for ViM of the paper's formula in double "
                "precision. pytorch-ood computes the\nsubspace in single precision, which cannot "
                "tell directions of nearly equal variance apart."
            ),
            geometric_table(),
            heading("Differences, and how we found them", "-"),
            list_table(("topic", "others", "skdice", "found by"), differences()),
        ]
    )
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
