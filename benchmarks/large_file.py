"""Peak memory of fit, quantile, calibrate and score on a .npy file larger than memory.

    python benchmarks/large_file.py [--rows 2560000] [--features 2048] [--classes 100]
        [--detector dice|ensemble]

The file is sparse: it takes no disk, reads as zeros but for a few rows, and is mapped and
scored like any other. The peak is the operating system's figure for the process; what is
printed is beyond the figure after the imports.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from skdice import ConformalEnsemble, DICEDetector, LinearHead, make_ensemble
from skdice.io import open_features, save_scores
from skdice.shaping import ReAct

# The ensemble also holds second moments, the largest activations, and the scores of all members.
LIMIT_MIB = {"dice": 600, "ensemble": 700}


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def sparse_npy(path: Path, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Write a float32 .npy file of zeros, with 4,096 rows of numbers at its start."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        filled = min(shape[0], 4096)
        file.write(np.abs(rng.standard_normal((filled, shape[1]), dtype=np.float32)).data)
        file.truncate(start + 4 * shape[0] * shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_560_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--detector", choices=["dice", "ensemble"], default="dice")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    head = LinearHead(rng.uniform(0, 1, (arguments.classes, arguments.features)).astype("f4"))
    detector: DICEDetector | ConformalEnsemble
    if arguments.detector == "ensemble":
        detector = make_ensemble(head)
    else:
        detector = DICEDetector(head, sparsity=0.7, shaping=ReAct(quantile=0.999))
    baseline = peak_mib()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "features.npy"
        sparse_npy(path, (arguments.rows, arguments.features), rng)
        size = path.stat().st_size
        print(f"{size / 2**30:.1f} GiB, {arguments.rows:,} x {arguments.features} float32")

        def measured(name: str, function: Callable[[], object]) -> None:
            started = time.perf_counter()
            function()
            seconds = time.perf_counter() - started
            print(
                f"{name:<44}{seconds:8.1f} s   peak memory + {peak_mib() - baseline:5.0f} MiB",
                flush=True,
            )

        rows = open_features(path)
        measured("partial_fit (the mean alone)", lambda: DICEDetector(head).partial_fit(rows))
        measured("fit (everything and the threshold)", lambda: detector.fit(rows))
        measured("calibrate", lambda: detector.calibrate(rows))
        scores = Path(folder) / "scores.npy"
        measured("score to a file", lambda: save_scores(scores, detector, rows))
    beyond = peak_mib() - baseline
    limit = LIMIT_MIB[arguments.detector]
    print(f"peak memory beyond the interpreter's: {beyond:.0f} MiB, limit {limit} MiB")
    if beyond > limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
