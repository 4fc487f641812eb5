"""Time of an ensemble's scoring against the bare matrix products that it needs.

    OMP_NUM_THREADS=1 python benchmarks/ensemble.py [--shape 20000,2048,1000] [--repeats 5]

The products are those of the rows with the head, with the masked head and with the residual
components of ViM, each in one call of NumPy. Ensemble and products alternate in one process, and
the medians are printed. The last columns are the medians of ViMDetector and FDBDDetector alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from skdice import LinearHead, make_ensemble

SHAPES = [(20_000, 2048, 1000), (200_000, 342, 10), (50_000, 768, 150)]
# The rows of fit; their number changes nothing in the time of a score.
FITTED_ROWS = 4096


def measure(shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Return the median seconds of the products, the ensemble and two members at one shape."""
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
    functions: dict[str, Callable[[], Any]] = {
        "products": lambda: [X @ each.T for each in operands],
        "ensemble": lambda: ensemble.score_samples(X),
        "ViM": lambda: vim.score_samples(X),
        "fDBD": lambda: fdbd.score_samples(X),
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
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    given = [tuple(map(int, each.split(","))) for each in arguments.shape or []]
    print(
        f"{'rows x features x classes':<26}{'products':>10}{'ensemble':>10}{'ratio':>7}"
        f"{'ViM':>9}{'fDBD':>9}"
    )
    for shape in given or SHAPES:
        found = measure(shape, arguments.repeats)
        ratio = found["ensemble"] / found["products"]
        print(
            f"{' x '.join(f'{each:,}' for each in shape):<26}{found['products']:>8.2f} s"
            f"{found['ensemble']:>8.2f} s{ratio:>7.2f}"
            f"{found['ViM']:>7.2f} s{found['fDBD']:>7.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
