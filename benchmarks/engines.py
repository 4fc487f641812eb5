"""The engines of the CPU side by side, over heads, sparsities, dtypes and threads.

    python benchmarks/engines.py [--shape 20000,2048,1000] [--sparsities 0.7 0.9] [--threads 1]
        [--repeats 5] [--constants]

Energy scores of rows in memory, by NumPy's matrix products and log-sum-exp, by the sparse
engine and by the one for few classes (packing of the head included, compilation not), in turn in
one process; the smallest time of each counts. The kept weights lie at random, so that no unit is
without one.
With ``--constants``, those of the cost model of `skdice._engines.choice` are fitted to the times
of this run with one thread, which others on the machine disturb least, and printed.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits

from skdice._engines import costs
from skdice._engines.dense import dense_engine
from skdice._engines.few import MOST_WEIGHT_BYTES, FewClassesLayer
from skdice._engines.layer import MaskedLayer
from skdice._engines.sparse import SparseLayer
from skdice._rows.sources import NumpyRows

SHAPES = [
    (20_000, 2048, 1000),
    (200_000, 342, 10),
    (200_000, 342, 100),
    (50_000, 512, 100),
    (5_000, 2048, 21_841),
]
SPARSITIES = [0, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99]


def dense_scores(X, coef, intercept, slices, n_threads):
    score = dense_engine(MaskedLayer(coef, intercept), X.dtype, reuses_memory=True)
    return np.concatenate([score(X[row_slice]) for row_slice in slices])


def kernel_scores(layer_type, X, coef, intercept, slices, n_threads):
    layer = layer_type(coef, intercept)
    with ThreadPoolExecutor(n_threads) as pool:
        return np.concatenate(list(pool.map(lambda rows: layer.scores(X[rows], "energy"), slices)))


ENGINES = {
    "dense": dense_scores,
    "sparse": partial(kernel_scores, SparseLayer),
    "few": partial(kernel_scores, FewClassesLayer),
}


def timed(function, *arguments):
    # The threads of a BLAS wait for more work in a busy loop before they sleep, 0.1 s or so.
    time.sleep(0.3)
    started = time.perf_counter()
    scores = function(*arguments)
    return time.perf_counter() - started, scores


def print_constants(measured) -> None:
    """Fit the cost model to measured times, by their relative errors."""
    for name, counts in (
        ("dense", lambda p: costs.dense_counts(*p[:3], p[5])),
        ("sparse", lambda p: costs.sparse_counts(*p[:4], p[5])),
        ("few", lambda p: costs.few_counts(*p[:3], p[5])),
    ):
        for size in (4, 8):
            chosen = [
                each for each in measured if each[0][4:] == (f"f{size}", 1) and name in each[1]
            ]
            seconds = np.array([each[1][name] for each in chosen])
            table = np.array([counts(each[0]) for each in chosen]) / seconds[:, np.newaxis]
            constants, _ = nnls(table * 1e-9, np.ones(len(chosen)))
            error = np.abs(table * 1e-9 @ constants - 1)
            numbers = ", ".join(f"{each:.3g}" for each in constants)
            print(
                f"{name.upper()}[{size}] = ({numbers})  "
                f"relative error {np.median(error):.2f}, at most {error.max():.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="rows,features,classes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--constants", action="store_true")
    arguments = parser.parse_args()
    shapes = [tuple(map(int, each.split(","))) for each in arguments.shape or []] or SHAPES

    rng = np.random.default_rng(0)
    measured = []
    worst = 0.0
    print(
        "rows      features classes  dtype   threads sparsity   dense s  sparse s     few s  chosen"
    )
    for n_rows, n_features, n_classes in shapes:
        uniform = rng.random((n_classes, n_features), dtype=np.float32)
        for dtype in (np.float32, np.float64):
            X = np.maximum(rng.standard_normal((n_rows, n_features), dtype=np.float32), 0)
            X, intercept = X.astype(dtype), np.zeros(n_classes, dtype)
            row_bytes = (n_features + n_classes) * X.itemsize
            slices = NumpyRows(X).slices(row_bytes=row_bytes)
            for n_threads in arguments.threads:
                for sparsity in arguments.sparsities:
                    coef = (uniform - dtype(0.5)) * (uniform >= sparsity) / dtype(20)
                    spent = {name: [] for name in ENGINES}
                    if coef.nbytes > MOST_WEIGHT_BYTES:
                        del spent["few"]
                    with threadpool_limits(n_threads):
                        for _ in range(arguments.repeats):
                            results = []
                            for name, times in spent.items():
                                each, scores = timed(
                                    ENGINES[name], X, coef, intercept, slices, n_threads
                                )
                                times.append(each)
                                results.append(scores)
                            for scores in results[1:]:
                                np.testing.assert_allclose(scores, results[0], rtol=1e-5)
                    seconds = {name: min(times) for name, times in spent.items()}
                    n_kept = np.count_nonzero(coef)
                    problem = (n_rows, n_features, n_classes, n_kept, np.dtype(dtype), n_threads)
                    choice = costs.cheapest(*problem)
                    behind = seconds[choice] / min(seconds.values())
                    worst = max(worst, behind)
                    measured.append((problem, seconds))
                    print(
                        f"{n_rows:<9} {n_features:<8} {n_classes:<8} {np.dtype(dtype)} "
                        f"{n_threads:>7} {sparsity:>8} "
                        + " ".join(f"{seconds.get(name, np.nan):9.4f}" for name in ENGINES)
                        + f"  {choice}"
                        + (f" ({behind:.2f} times the fastest)" if behind > 1 else ""),
                        flush=True,
                    )
    print(f"the chosen engine's time is at most {worst:.2f} times the smaller one")
    if arguments.constants:
        print_constants(measured)


if __name__ == "__main__":
    main()
