"""The same features scored by skdice and by the other implementations of DICE: what agrees.

    pip install --no-deps pytorch-ood==0.4.0
    [SKDICE_DATA=...] python benchmarks/agreement.py [--output agreement.rst]

pytorch-ood's detector is run. The authors' code is no package, and OpenOOD was not to be had as
one: the few lines that make their mask and score are written here anew, from their source
(``models/route.py`` of deeplearning-wisc/dice; ``openood/postprocessors/dice_postprocessor.py`` of
Jingkang50/OpenOOD), and the table says so.
"""

from __future__ import annotations

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

from skdice import DICEDetector, LinearHead
from skdice.datasets import load_fashion_mnist_ood

SPARSITIES = (0.1, 0.5, 0.7, 0.9)
# Rows that are scored: the others' temporary has a value per row, class and unit.
SCORED = 2000
# torch.quantile takes no more.
LARGEST_QUANTILE = 1 << 24


def authors_weight(head: LinearHead, train: Any, percent: float) -> np.ndarray:
    """Return the masked weight by the authors' rule: a float64 mean, percent, strictly above."""
    contribution = train.astype(np.float64).mean(0)[None, :] * head.weight
    return head.weight * (contribution > np.percentile(contribution, percent))


def openood_weight(head: LinearHead, train: Any, percent: float) -> np.ndarray:
    """Return the masked weight by OpenOOD's rule: the mean in the features' dtype."""
    contribution = train.mean(0)[None, :] * head.weight
    return head.weight * (contribution > np.percentile(contribution, percent))


def pytorch_ood_fitted(head: LinearHead, train: Any, fraction: float) -> Any:
    """Return pytorch-ood's own detector, fitted."""
    detector = peers.pytorch_ood_detector(np.array(head.weight), np.array(head.bias), fraction)
    features = torch.from_numpy(np.array(train))
    return detector.fit_features(features, torch.zeros(len(features), dtype=torch.long))


def scores(head: LinearHead, train: Any, X: Any, sparsity: float) -> dict[str, Any]:
    """Return the masked weight and the scores of each implementation, higher = in-distribution."""
    found = {}
    for name, rule in {"authors": authors_weight, "OpenOOD": openood_weight}.items():
        coef = rule(head, train, 100 * sparsity)
        found[name] = coef, peers.torch_broadcast(X, coef, np.array(head.bias))
    detector = pytorch_ood_fitted(head, train, sparsity)
    outlier_scores = detector.predict_features(torch.from_numpy(np.array(X)))
    found["pytorch-ood"] = detector.masked_w.numpy(), -outlier_scores.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes without a weight, at 0.9
        own = DICEDetector(head, sparsity=sparsity).partial_fit(train)
    found["skdice"] = own.coef_, own.score_samples(X)
    return found


def problems() -> Iterator[tuple[str, LinearHead, Any, Any]]:
    """Yield a name, a head, rows to fit and rows to score."""
    rng = np.random.default_rng(0)
    head = LinearHead(*(rng.standard_normal(s).astype("f4") for s in ((100, 512), 100)))
    X = np.maximum(rng.standard_normal((5000, 512)), 0).astype(np.float32)
    yield "made up, 100 x 512", head, X[:3000], X[3000:]
    data = load_fashion_mnist_ood()
    X = np.concatenate([data.id_test[:1000], data.ood["mnist"]])[:SCORED]
    yield "Fashion-MNIST ResNet", data.head, data.id_train.astype("f4"), X.astype("f4")
    if "SKDICE_DATA" in os.environ:
        folder = Path(os.environ["SKDICE_DATA"]) / "cifar10-densenet"
        rows = [np.load(folder / f"{name}.npy") for name in ("id_test", "ood_textures")]
        X = np.concatenate([each[: SCORED // 2] for each in rows])
        head = LinearHead.from_file(folder / "head.npz")
        yield "CIFAR-10 DenseNet", head, np.load(folder / "id_train.npy"), X


def agreement_table() -> str:
    """Return how far each implementation lies from skdice, by problem and sparsity."""
    rows = []
    for title, head, train, X in problems():
        for sparsity in SPARSITIES:
            found = scores(head, train, X, sparsity)
            own_weight, own_scores = found.pop("skdice")
            line = [f"{title}, p = {sparsity:g}", f"{np.count_nonzero(own_weight):,}"]
            for coef, other in found.values():
                differing = np.count_nonzero((coef != 0) != (own_weight != 0))
                relative = np.max(np.abs(other - own_scores) / np.abs(own_scores))
                line.append(f"{differing} / {relative:.0e}")
            rows.append(line)
    return rst_table(["features", "kept", "authors", "OpenOOD", "pytorch-ood"], rows)


def answer_of(function: Any, *arguments: Any) -> str:
    """Return the first line of what a call raises, or that it takes it."""
    try:
        function(*arguments)
    except Exception as error:  # whichever kind: it is shown
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "taken"


def differences() -> list[tuple[str, str, str, str]]:
    """Return what differs: topic, the others, skdice, and how it was found."""
    rng = np.random.default_rng(0)
    head = LinearHead(*(rng.standard_normal(s).astype("f4") for s in ((5, 12), 5)))
    train = np.maximum(rng.standard_normal((50, 12)), 0).astype("f4")
    silent = np.zeros_like(train)
    wide = LinearHead(rng.standard_normal((4097, 4096), np.float32))
    others = pytorch_ood_fitted(head, train, 0.5)
    own = DICEDetector(head, sparsity=0.5).partial_fit(train)
    kept = [
        np.count_nonzero(each)
        for each in (
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
        np.count_nonzero(each)
        for each in (
            authors_weight(head, silent, 50),
            openood_weight(head, silent, 50),
            pytorch_ood_fitted(head, silent, 0.5).masked_w.numpy(),
        )
    ]
    their_dtype = str(others.mean_activation.dtype).removeprefix("torch.")
    run, partly, read = "run", "pytorch-ood and skdice run, the others read", "read"
    return [
        (
            "Unit of the sparsity",
            f"""A percent for the authors and OpenOOD, which call np.percentile with it; a fraction
            for pytorch-ood, which answers 70 with
            {answer_of(pytorch_ood_fitted, head, train, 70)}""",
            f"""A fraction; it answers 70 with
            {answer_of(DICEDetector(head, sparsity=70).partial_fit, train)}""",
            partly,
        ),
        (
            "Sparsity 0",
            f"""The strict comparison drops the smallest contribution: {kept[0]}, {kept[1]} and
            {kept[2]} of {head.weight.size} weights are kept by the authors' rule, by OpenOOD's and
            by pytorch-ood. The authors' code has p=None for no mask at all""",
            f"No mask: {kept[3]} kept, which is exactly the energy score",
            run,
        ),
        (
            "All contributions tie (a mean activation of zero)",
            f"""{silent_kept[0]}, {silent_kept[1]} and {silent_kept[2]} weights are kept by the
            authors' rule, by OpenOOD's and by pytorch-ood, so that all rows have one score""",
            f"The largest stay: {int(tied.mask_.sum())} of {head.weight.size}",
            run,
        ),
        (
            f"A head of {wide.weight.size:,} weights; torch.quantile takes {LARGEST_QUANTILE:,}",
            f"""pytorch-ood:
            {answer_of(pytorch_ood_fitted, wide, np.ones((1, 4096), np.float32), 0.5)}""",
            f"Fitted, with {large.mask_.mean():.2f} of the weights kept",
            run,
        ),
        (
            "Dtype of the mean activation",
            f"""{their_dtype} for pytorch-ood, that of the features for OpenOOD, float64 for the
            authors""",
            f"{own.mean_activation_.dtype}, whatever the dtype and however the rows are split",
            partly,
        ),
        (
            "Sign",
            f"""pytorch-ood: higher is out-of-distribution (correlation with skdice's scores
            {sign:.2f}). The authors and OpenOOD: higher is in-distribution""",
            "Higher is in-distribution, scikit-learn's sign",
            partly,
        ),
        (
            "A head without bias",
            f"""The authors' layer adds none; OpenOOD adds what net.get_fc() gives; pytorch-ood:
            {answer_of(lambda: _without_bias(head))}""",
            f"A bias of zero where none is given: {answer_of(LinearHead, head.weight, None)}",
            partly,
        ),
        (
            "Changing the sparsity after the mask was made",
            """OpenOOD's set_hyperparam sets p, but the mask is made only where there is none, so
            that a sweep scores with the first one. pytorch-ood documents that it needs a new
            fit""",
            "A new fit, or sparsity_path, which measures the mean once",
            read,
        ),
        (
            "Memory while scoring",
            """The authors, OpenOOD and pytorch-ood form x[:, None, :] * weight: a value for each
            row, class and unit""",
            "A matrix product, in blocks of rows",
            "read; timed by compare.py",
        ),
    ]


def _without_bias(head: LinearHead) -> Any:
    from pytorch_ood.detector import DICE

    return DICE(None, torch.from_numpy(np.array(head.weight)), None, 0.5)


def list_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        for n, text in enumerate(row):
            lines.append(f"   {'*' if n == 0 else ' '} - {' '.join(text.split())}")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--output", type=Path, help="write the tables here too")
    arguments = options.parse_args()
    text = "\n\n".join(
        [
            heading("Agreement with other implementations of DICE", "="),
            (
                "Each cell: how many weights are masked otherwise than by skdice, and the largest "
                "relative\ndifference of a score. float32 features; pytorch-ood 0.4.0 is run, the "
                "authors' and OpenOOD's\nrules are written anew from their source."
            ),
            agreement_table(),
            heading("What differs, and how that was found", "-"),
            list_table(("what", "others", "skdice", "found by"), differences()),
        ]
    )
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
