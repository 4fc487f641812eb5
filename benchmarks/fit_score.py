"""Time and peak memory of fit and score_samples beyond the input, in one process.

    python benchmarks/fit_score.py [--rows 100000] [--features 2048] [--classes 1000]

The peak is the operating system's figure for the process (maximum resident set).
"""

import argparse
import resource
import sys
import time

import numpy as np

from skdice import DICEDetector, LinearHead


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--sparsity", type=float, default=0.7)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    X = rng.standard_normal((arguments.rows, arguments.features), dtype=np.float32)
    np.maximum(X, 0, out=X)
    shape = (arguments.classes, arguments.features)
    head = LinearHead(rng.standard_normal(shape, dtype=np.float32) / 20)
    print(f"{X.shape} float32, {X.nbytes / 2**20:.0f} MiB, {arguments.classes} classes")
    detector = DICEDetector(head, sparsity=arguments.sparsity)

    def measured(name: str, function) -> float:
        before, started = peak_mib(), time.perf_counter()
        function()
        seconds = time.perf_counter() - started
        print(f"{name:<32}{seconds:8.2f} s   peak memory + {peak_mib() - before:6.0f} MiB")
        return seconds

    measured("fit (mean, mask, threshold)", lambda: detector.fit(X))
    scoring = measured("score_samples", lambda: detector.score_samples(X))
    product = measured(
        "the matrix products alone",
        lambda: [X[i : i + 1024] @ detector.coef_.T for i in range(0, len(X), 1024)],
    )
    print(f"score_samples / matrix products: {scoring / product:.2f}")


if __name__ == "__main__":
    main()
