"""Throughput of the mean in `partial_fit` on a file in the page cache, against NumPy's own sum.

    python benchmarks/fit_throughput.py [--rows 500000] [--features 2048]

The two alternate in one process over the same memmap; the ratio of medians is printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from skdice import DICEDetector, LinearHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--signed", action="store_true", help="with negative values, too")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    head = LinearHead(rng.uniform(0, 1, (10, arguments.features)))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "features.npy"
        shape = (arguments.rows, arguments.features)
        mapped = np.lib.format.open_memmap(path, "w+", arguments.dtype, shape)
        for start in range(0, arguments.rows, 10_000):
            block = rng.standard_normal((len(mapped[start : start + 10_000]), shape[1]), np.float32)
            mapped[start : start + 10_000] = block if arguments.signed else np.abs(block)
        del mapped
        X = np.load(path, mmap_mode="r")
        seconds: dict[str, list[float]] = {"np.add.reduce": [], "partial_fit": []}
        for _ in range(arguments.repeats + 1):
            for name, function in (
                ("np.add.reduce", lambda: np.add.reduce(X, axis=0, dtype=np.float64)),
                ("partial_fit", lambda: DICEDetector(head).partial_fit(X)),
            ):
                started = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
        for name, median in medians.items():
            print(f"{name:<16}{median:7.3f} s   {X.nbytes / median / 1e9:6.2f} GB/s")
        ratio = medians["np.add.reduce"] / medians["partial_fit"]
        print(f"throughput of partial_fit / np.add.reduce: {ratio:.2f}")


if __name__ == "__main__":
    main()
