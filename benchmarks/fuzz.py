"""Mutated feature and detector files must give a clean error or the right answer.

    python benchmarks/fuzz.py [--count 10000] [--seed 0] [--format .npy ...]

Valid files of each built-in format are mutated at random (bits, bytes, numbers, cuts,
repeats, splices), and half of the detector files in their values, with a digest that fits.
Each is opened and scored, or loaded, in a process whose address space may grow by 1 GB and
whose every step may take ten seconds. Anything but a ValueError or an OSError is a failure:
another exception, a crash, a hang, a MemoryError, or scores of the wrong shape. The file
that was at work when a process died is kept. Needs Linux.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import skdice
from skdice import DICEDetector, LinearHead, _persistence
from skdice.io import _safetensors, open_features, save_features
from skdice.shaping import ReAct

FORMATS = (".npy", ".npz", ".safetensors", "detector")
MEMORY = 1 << 30
SECONDS_EACH = 10
NUMBERS = (0, 1, 6, 7, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)


def seeds(kind: str, folder: Path) -> list[bytes]:
    """Return the valid files that are mutated."""
    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(size=(40, 6)))
    path = folder / f"seed{kind if kind != 'detector' else '.safetensors'}"
    contents = []
    if kind == "detector":
        head = LinearHead(rng.uniform(size=(3, 6)))
        for shaping in (None, ReAct(quantile=0.5)):
            skdice.save(DICEDetector(head, sparsity=0.3, shaping=shaping).fit(X), path)
            contents.append(path.read_bytes())
        return contents
    for features in (X, X.astype(np.float16), np.asfortranarray(X.astype(">f4"))):
        save_features(path, features)
        contents.append(path.read_bytes())
    if kind == ".npz":
        for features in (X, np.asfortranarray(X)):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, features=features, labels=X[:, 0])
            contents.append(buffer.getvalue())
    if kind == ".npy":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asfortranarray(X), version=(2, 0))
        contents.append(buffer.getvalue())
    return contents


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return the content with one to three random changes, most of them near its start."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        end = len(data) if rng.random() < 0.4 else min(len(data), 160)
        position = rng.randrange(end)
        match rng.randrange(8):
            case 0:
                data[position] ^= 1 << rng.randrange(8)
            case 1:
                data[position] = rng.randrange(256)
            case 2:
                number = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
                data[position : position + len(number)] = number
            case 3:
                del data[position:]
            case 4:
                del data[position : position + rng.randint(1, 30)]
            case 5:
                data[position:position] = data[position : position + rng.randint(1, 60)]
            case 6:
                other = rng.choice(others)
                data[position:] = other[rng.randrange(len(other)) :]
            case 7:  # digits of a shape, an offset or a JSON number
                digits = [i for i in range(end) if chr(data[i]).isdigit()]
                if digits:
                    where = rng.choice(digits)
                    data[where : where + 1] = rng.choice((b"0", b"9", b"-1", b"99999999999999"))
    return bytes(data)


def redigested(content: bytes, rng: random.Random) -> bytes:
    """Return a detector file with one value of its document changed and a digest that fits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.safetensors"
        path.write_bytes(content)
        document, arrays = _persistence._read(path)
        place: object = document
        while isinstance(place, dict) and place:
            parent, key = place, rng.choice(list(place))
            place = place[key]
        parent[key] = rng.choice(
            (None, 0, -1, 1 << 40, 0.5, 99, "abc", {"float": "nan"}, {"float": "inf"}, [], {}, True)
        )
        if rng.random() < 0.3:
            name = rng.choice(list(arrays))
            arrays[name] = rng.choice(
                (arrays[name][:1], arrays[name].astype(np.float32), arrays[name] * np.nan)
            )
        text = json.dumps(document)
        metadata = {"skdice": text, "sha256": _persistence._digest(text, arrays)}
        _safetensors.write(path, dict(arrays), metadata)
        return path.read_bytes()


def run_one(kind: str, path: Path, detector: DICEDetector) -> str:
    """Open and score, or load, one file; return what became of it."""
    try:
        if kind == "detector":
            loaded = skdice.load(path).set_params(verbose=0)
            if hasattr(loaded, "offset_"):
                loaded.decision_function(np.ones((2, 6)))
            scores = loaded.score_samples(np.ones((2, 6)))
            if scores.shape != (2,) or not np.isfinite(scores).all():
                raise AssertionError(f"scores {scores}")
        else:
            rows = open_features(path)
            scores = detector.score_samples(rows)
            if scores.shape != (rows.shape[0],):
                raise AssertionError(f"scores of shape {scores.shape} for {rows.shape}")
    except (ValueError, OSError) as error:
        return type(error).__name__
    return "answer"


def worker(kind: str, count: int, seed: int, path: Path, results: object) -> None:
    """Mutate and run `count` files; send how many ended in which way."""
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    contents = seeds(kind, path.parent)
    head = LinearHead(np.random.default_rng(0).uniform(size=(3, 6)))
    detector = DICEDetector(head, sparsity=0).fit(np.ones((5, 6)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    ends: Counter[str] = Counter()
    for _ in range(count):
        content = rng.choice(contents)
        if kind == "detector" and rng.random() < 0.5:
            path.write_bytes(redigested(content, rng))
        else:
            path.write_bytes(mutated(content, contents, rng))
        signal.alarm(SECONDS_EACH)
        ends[run_one(kind, path, detector)] += 1
        signal.alarm(0)
    results.put(ends)


def fuzz(kind: str, count: int, seed: int) -> Counter[str]:
    """Run the mutated files of one format in a process of their own; raise if it dies."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{'.safetensors' if kind == 'detector' else kind}"
        process = context.Process(target=worker, args=(kind, count, seed, path, results))
        process.start()
        process.join()
        if process.exitcode != 0:
            kept = Path(tempfile.mkdtemp()) / path.name
            shutil.copy(path, kept)
            raise RuntimeError(f"{kind}: exit code {process.exitcode} on {kept}")
        return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=FORMATS)
    arguments = parser.parse_args()
    for kind in arguments.format:
        started = time.perf_counter()
        ends = fuzz(kind, arguments.count, arguments.seed)
        told = ", ".join(f"{n:,} {name}" for name, n in ends.most_common())
        seconds = time.perf_counter() - started
        print(f"{kind:<14}{sum(ends.values()):,} files: {told}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
