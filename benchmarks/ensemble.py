"""Time of an ensemble's scoring against the bare matrix products that it needs.

    OMP_NUM_THREADS=1 python benchmarks/ensemble.py [--shape 20000,2048,1000] [--repeats 7]

The products are those of the rows with the head, with the masked head and with the residual
components of ViM: each in one call of NumPy, and again ("reused") into memory that was written
before. The other columns are the ensemble, ViMDetector and FDBDDetector alone, and the detectors of
pytorch-ood with these names; see peers.py for how to install it. All alternate in one process, and
the medians are printed. The scores of pytorch-ood must be those of skdice.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import peers
import torch

from skdice import LinearHead, make_ensemble

SHAPES = [(20_000, 2048, 1000), (200_000, 342, 10), (50_000, 768, 150)]
# The rows of fit; their number changes nothing in the time of a score.
FITTED_ROWS = 4096
# pytorch-ood finds the subspace of ViM in single precision, which for noise, whose variance is the
# same in all directions, is not the same subspace. The scores differ by this many of their standard
# deviations at most.
TOLERANCE = 0.05


def measure(shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Return the median seconds of each function at one shape."""
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.05, (n_classes, n_features)).astype(np.float32)
    head = LinearHead(weight, np.zeros(n_classes, np.float32))
    X = np.maximum(rng.standard_normal((n_rows, n_features), np.float32), 0)
    ensemble = make_ensemble(head).fit(X[:FITTED_ROWS])
    members = ensemble.named_estimators_
    vim, fdbd = members["vim"], members["fdbd"]
    operands = [
        np.ascontiguousarray(each, np.float32)
        for each in (weight, members["dice"].coef_, vim.residual_components_)
    ]
    outputs = [np.zeros((n_rows, len(each)), np.float32) for each in operands]
    rows = torch.from_numpy(X)
    rivals: dict[str, Callable[[], Any]] = {}
    for name, own in (("ViM", vim), ("fDBD", fdbd)):
        fitted = (np.array(weight), np.array(head.bias), X[:FITTED_ROWS])
        other = peers.pytorch_ood_geometric(name, *fitted, vim.n_components_)
        rivals[f"their {name}"] = partial(other.predict_features, rows)
        scores, theirs = own.score_samples(X), -other.predict_features(rows).detach().numpy()
        difference = np.max(np.abs(scores - theirs)) / np.std(scores)
        assert difference < TOLERANCE, (name, shape, difference)
    functions: dict[str, Callable[[], Any]] = {
        "products": lambda: [X @ each.T for each in operands],
        "reused": lambda: [
            np.matmul(X, each.T, out=out) for each, out in zip(operands, outputs, strict=True)
        ],
        "ensemble": lambda: ensemble.score_samples(X),
        "ViM": lambda: vim.score_samples(X),
        "fDBD": lambda: fdbd.score_samples(X),
        **rivals,
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="rows,features,classes")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    given = [tuple(map(int, each.split(","))) for each in arguments.shape or []]
    print(
        f"{'rows x features x classes':<26}{'products':>10}{'reused':>10}{'ensemble':>10}"
        f"{'ratios':>13}"
        f"{'ViM':>9}{'theirs':>9}{'fDBD':>9}{'theirs':>9}"
    )
    for shape in given or SHAPES:
        found = measure(shape, arguments.repeats)
        ratios = [found["ensemble"] / found[name] for name in ("products", "reused")]
        print(
            f"{' x '.join(f'{each:,}' for each in shape):<26}{found['products']:>8.2f} s"
            f"{found['reused']:>8.2f} s{found['ensemble']:>8.2f} s"
            f"{ratios[0]:>7.2f}{ratios[1]:>6.2f}"
            f"{found['ViM']:>7.2f} s{found['their ViM']:>7.2f} s"
            f"{found['fDBD']:>7.2f} s{found['their fDBD']:>7.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
