"""What one row costs beyond its matrix product, as in an online service.

python benchmarks/latency.py [--rounds 30]

Medians of calls, a hundred of each kind in turn, round by round in one run: the product itself, the
whole of `score_samples` and `predict` on a float32 row, `predict` on the same row as a list (which
takes the way through scikit-learn's validation), and that validation alone.
"""

import argparse
import statistics
import time

import numpy as np
from sklearn.utils.validation import validate_data

from skdice import DICEDetector, LinearHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    print(f"{'microseconds':<28}{'10 x 342':>12}{'1000 x 2048':>14}")
    columns = []
    for shape in ((10, 342), (1000, 2048)):
        head = LinearHead(rng.standard_normal(shape, np.float32))
        X = np.abs(rng.standard_normal((2000, shape[1]), np.float32))
        detector = DICEDetector(head).fit(X)
        listed = X[:1].tolist()
        coef, intercept = detector.coef_, detector.intercept_
        functions = {
            "product": lambda row, c=coef, b=intercept: row @ c.T + b,
            "score_samples": lambda row, d=detector: d.score_samples(row),
            "predict": lambda row, d=detector: d.predict(row),
            "predict, from a list": lambda row, d=detector, x=listed: d.predict(x),
            "scikit-learn's validation": lambda row, d=detector: validate_data(d, row, reset=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                for n in range(100):
                    started = time.perf_counter()
                    function(X[n : n + 1])
                    seconds[name].append(time.perf_counter() - started)
        columns.append({name: 1e6 * statistics.median(each) for name, each in seconds.items()})
    for name in columns[0]:
        print(f"{name:<28}{columns[0][name]:12.1f}{columns[1][name]:14.1f}")
    beyond = [each["predict"] - each["product"] for each in columns]
    print(f"{'predict beyond the product':<28}{beyond[0]:12.1f}{beyond[1]:14.1f}")


if __name__ == "__main__":
    main()
