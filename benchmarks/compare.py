"""skdice against the other ways to compute a DICE score, on identical arrays, in one process.

    python benchmarks/compare.py --output results [--quick]

Over heads of several shapes, sparsities, one and two threads, float32 and float64. All forms are
checked to agree first, and are then timed in turn, round by round; a ratio is the median of the
ratios of the rounds. Forms that would take too long are timed on the first rows, and their time is
scaled to all. In the same run: the machine's own rate of matrix products and of reading memory,
and each result as a share of these. Writes compare.txt, compare.json and compare.png.

``(a)`` pytorch-ood  broadcast product, by pytorch-ood's own detector (see peers.py)
``(a)`` broadcast    the same form as the authors' code and OpenOOD have it
``(b)`` torch        linear + logsumexp in one call
``(c)`` numpy        product, scipy.special.logsumexp
``(d)`` csr          scipy.sparse
"""

import argparse
import json
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from matplotlib.figure import Figure
from scipy import sparse
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from skdice import DICEDetector, LinearHead

SHAPES = [
    (20_000, 2048, 1000),
    (200_000, 342, 10),
    (200_000, 342, 100),
    (50_000, 512, 100),
    (5_000, 2048, 21_841),
]
SPARSITIES = [0.0, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99]
# Bytes of the (n, C, m) temporary of a broadcast product.
TEMPORARY = 1 << 29
GOALS = {0.7: 1.2, 0.9: 3.0, 0.95: 4.5}


def seconds(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def limits(dtype: str, n_threads: int) -> dict[str, float]:
    """Return the machine's rate of matrix products, in Gflop/s, and of reading, in GB/s."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3000, 3000)).astype(dtype)
    big = torch.from_numpy(np.ones(1 << 28, np.uint8).view(np.float32))
    return {
        "Gflop/s": 2 * 3000**3 / min(seconds(np.matmul, A, A) for _ in range(5)) / 1e9,
        "read GB/s": (1 << 28) / min(seconds(torch.sum, big) for _ in range(7)) / 1e9,
    }


def forms(detector: DICEDetector, dtype: str) -> dict[str, Any]:
    """Return the name and the function from rows to scores of each form."""
    coef = detector.coef_.astype(dtype)
    bias = detector.intercept_.astype(dtype)
    compressed = sparse.csr_array(coef)
    return {
        "skdice": detector.score_samples,
        "torch": lambda X: peers.torch_linear(X, coef, bias),
        "numpy": lambda X: peers.numpy_scipy(X, coef, bias),
        "csr": lambda X: peers.scipy_csr(X, compressed, bias),
        "pytorch-ood": lambda X: peers.pytorch_ood_scores(X, coef, bias),
        "broadcast": lambda X: peers.torch_broadcast(X, coef, bias),
    }


def check_agreement(functions: dict[str, Any], detector: DICEDetector, X: Any) -> dict[str, float]:
    """Return the largest relative difference of each form from float64, on a few rows."""
    rows = X[:8]
    # All rows by skdice, whose engine depends on their number.
    found = {
        name: function(X)[:8] if name == "skdice" else function(rows)
        for name, function in functions.items()
    }
    logits = rows.astype(np.float64) @ detector.coef_.T.astype(np.float64) + detector.intercept_
    expected = logsumexp(logits, axis=1)
    tolerance = 1e-5 if X.dtype == np.float32 else 1e-12
    off = {name: float(np.max(np.abs(each / expected - 1))) for name, each in found.items()}
    for name, each in off.items():
        assert each < tolerance, f"{name} differs by {each}"
    return off


def measure(
    shape: tuple[int, int, int], sparsity: float, X: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the times of one cell of the grid, in seconds for all rows."""
    n_rows, n_features, n_classes = shape
    rng = np.random.default_rng(1)
    head = LinearHead(
        rng.standard_normal((n_classes, n_features)).astype(X.dtype),
        rng.standard_normal(n_classes).astype(X.dtype),
    )
    detector = DICEDetector(head, sparsity=sparsity).partial_fit(X[:1000])
    functions = forms(detector, X.dtype.name)
    largest_difference = check_agreement(functions, detector, X)
    batch = max(1, TEMPORARY // (X.itemsize * n_features * n_classes))
    rows: dict[str, int] = {}
    for name, function in functions.items():
        # Of the slow ones, as many rows as take about a second.
        rows[name] = n_rows
        if name in ("pytorch-ood", "broadcast"):
            rows[name] = min(n_rows, batch)
        elif name not in ("skdice", "torch"):
            probe = min(n_rows, 256)
            rate = probe / seconds(function, X[:probe])
            rows[name] = int(min(n_rows, max(probe, rate * arguments.seconds)))
        if name in ("skdice", "torch"):
            function(X)  # once before it counts
    taken: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for n in range(arguments.rounds):
        # None always comes after the same other; and the threads of a BLAS wait for more work in
        # a busy loop before they sleep.
        for name in names[n % len(names) :] + names[: n % len(names)]:
            function = functions[name]
            time.sleep(0.05)
            each = seconds(function, X[: rows[name]])
            taken[name].append(each * n_rows / rows[name])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    detector.score_samples(X)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return {
        "rows": n_rows,
        "features": n_features,
        "classes": n_classes,
        "dtype": X.dtype.name,
        "sparsity": sparsity,
        "kept": int(detector.mask_.sum()),
        "seconds": {name: statistics.median(each) for name, each in taken.items()},
        "ratio": {
            name: statistics.median(np.array(each) / taken["skdice"])
            for name, each in taken.items()
            if name != "skdice"
        },
        "rows timed": rows,
        "largest difference": largest_difference,
        "peak MB beyond input": peak / 1e6,
        "masked head MB": detector.coef_.nbytes / 1e6,
    }


def table(cells: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the results as text: how many times longer each form takes than skdice."""
    lines = []
    group = None
    for cell in cells:
        key = (cell["rows"], cell["features"], cell["classes"], cell["dtype"], cell["threads"])
        if key != group:
            group = key
            limit = machine[f"{cell['dtype']}, {cell['threads']} threads"]
            lines += [
                "",
                "{} rows x {} features, {} classes, {}, threads: {}".format(*key),
                f"limits: {limit['Gflop/s']:.0f} Gflop/s, {limit['read GB/s']:.1f} GB/s read",
                f"{'':>9}{'skdice':>10}{'% of':>9}{'% of':>6}{'times longer than skdice':>60}",
                f"{'sparsity':>9}{'s':>10}{'product':>9}{'read':>6}"
                + "".join(f"{each:>12}" for each in cell["ratio"])
                + f"{'MB':>8}",
            ]
        mine = cell["seconds"]["skdice"]
        n_values = cell["rows"] * cell["features"]
        product = 2 * cell["rows"] * cell["kept"] / mine / 1e9 / limit["Gflop/s"]
        read = n_values * np.dtype(cell["dtype"]).itemsize / mine / 1e9 / limit["read GB/s"]
        lines.append(
            f"{cell['sparsity']:9g}{mine:10.4f}{100 * product:8.0f}{100 * read:7.1f}"
            + "".join(f"{each:12.2f}" for each in cell["ratio"].values())
            + f"{cell['peak MB beyond input']:8.1f}"
        )
    return "\n".join(lines).strip()


def goals(cells: list[dict[str, Any]]) -> str:
    """Return which goals are met and which are not."""
    lines = []
    slower = [cell for cell in cells if cell["ratio"]["torch"] < 1]
    lines.append(
        f"never slower than (b): {len(cells) - len(slower)} of {len(cells)} cells"
        + "".join(
            "\n  {:.2f} at {} x {} x {}, {}, threads {}, sparsity {:g}".format(
                cell["ratio"]["torch"],
                *(cell[each] for each in ("rows", "features", "classes", "dtype", "threads")),
                cell["sparsity"],
            )
            for cell in slower
        )
    )
    for cell in cells:
        where = f"{cell['dtype']}, threads {cell['threads']}, sparsity {cell['sparsity']:g}"
        beyond = cell["peak MB beyond input"] - cell["masked head MB"]
        if beyond > 64:
            lines.append(
                f"MISSED  {beyond:.0f} MB beyond the input and the masked head: "
                f"{cell['classes']} classes, {where}"
            )
        if (cell["features"], cell["classes"]) != (2048, 1000):
            continue
        if cell["sparsity"] in GOALS:
            goal, found = GOALS[cell["sparsity"]], cell["ratio"]["torch"]
            lines.append(
                f"{'met' if found >= goal else 'MISSED':<8}{found:6.2f} x (b), goal {goal}: {where}"
            )
        if cell["ratio"]["pytorch-ood"] < 100:
            lines.append(f"MISSED  {cell['ratio']['pytorch-ood']:6.1f} x (a), goal 100: {where}")
    return "\n".join(lines)


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Draw the speed against torch over the sparsities, for each head."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles = zip(("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"), "os^Dv", strict=True)
    marks = dict(zip(SHAPES, styles, strict=True))
    most = max(cell["threads"] for cell in cells)
    for ax, dtype in zip(axes, ("float32", "float64"), strict=True):
        for shape, (colour, marker) in marks.items():
            points = [
                (cell["sparsity"], cell["ratio"]["torch"])
                for cell in cells
                if (cell["features"], cell["classes"]) == shape[1:]
                and (cell["dtype"], cell["threads"]) == (dtype, most)
            ]
            if points:
                label = "{} x {}, {} classes".format(*shape)
                ax.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
        ax.axhline(1, color="black", linewidth=1)
        ax.set(title=f"{dtype}, {most} threads", xlabel="sparsity", yscale="log")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("times faster than torch linear + logsumexp")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each slow form")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--shapes", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    cells: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    for n_threads in arguments.threads:
        torch.set_num_threads(n_threads)
        with threadpool_limits(n_threads):
            for dtype in arguments.dtypes:
                machine[f"{dtype}, {n_threads} threads"] = limits(dtype, n_threads)
                for shape in (SHAPES[n] for n in arguments.shapes):
                    if arguments.quick:
                        shape = (shape[0] // 100, *shape[1:])
                    X = np.random.default_rng(0).standard_normal(shape[:2], np.dtype(dtype))
                    np.abs(X, out=X)
                    for sparsity in SPARSITIES:
                        cell = measure(shape, sparsity, X, arguments)
                        cells.append(cell | {"threads": n_threads})
                        ratio = cell["ratio"]["torch"]
                        print(f"{n_threads} {dtype} {shape} {sparsity}: {ratio:.2f}", flush=True)
                        results = {"machine": machine, "cells": cells}
                        # After each, as the whole takes most of an hour.
                        (arguments.output / "compare.json").write_text(
                            json.dumps(results, indent=1)
                        )
    text = f"{table(cells, machine)}\n\n{goals(cells)}\n"
    print(text)
    (arguments.output / "compare.txt").write_text(text)
    draw(cells, arguments.output / "compare.png")


if __name__ == "__main__":
    main()
