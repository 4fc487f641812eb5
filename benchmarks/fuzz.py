"""Mutated feature and detector files must give a clean error or the right answer.

    python benchmarks/fuzz.py [--count 10000] [--seconds 600] [--processes 1] [--seed 0]
                              [--format .npy ...] [--keep FOLDER]

Valid files of each format are mutated at random (bits, bytes, numbers, cuts, repeats,
splices), and half of the detector files in their values, with a digest that fits. Each is
opened and scored, or loaded, scored and encoded again, in a process whose address space may
grow by 1 GB and whose every step may take ten seconds. Anything but an answer, a ValueError
or an OSError is a failure: another exception (a MemoryError, too), a signal, a hang, scores of
the wrong shape, or a detector that cannot be saved to the same content. After a failure the
run goes on. The last table names the failures by format, seed and number; `--first NUMBER
--count 1` makes such a file again, and `--keep` stores them all.

A million files take some hours: ``--count 130000 --seconds 36000``. HDF5 and Zarr files are
decoded by native libraries whose crashes are not skdice's to mend; SECURITY.md says so.
The exit status is 1 if there was any failure. Needs Linux.
"""

import argparse
import io
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

import skdice
from skdice import (
    ConformalEnsemble,
    DICEDetector,
    FDBDDetector,
    LinearHead,
    ViMDetector,
    make_ensemble,
)
from skdice._base import BaseDetector
from skdice._persistence.decode import build
from skdice._persistence.encode import encode
from skdice._persistence.files import digest_of_document, read
from skdice._rows.door import wrap
from skdice.io import _safetensors, open_features, save_features
from skdice.shaping import ReAct

FORMATS = (".npy", ".npz", ".safetensors", "detector", ".pt", ".parquet", ".csv", ".h5", ".zarr")
MEMORY = 1 << 30
SECONDS_EACH = 10
STEP = 5_000
CLEAN = ("answer", "ValueError", "OSError")
# Values that replace one of a detector's document.
VALUES = (
    *(
        None,
        True,
        0,
        -1,
        1,
        99,
        1 << 40,
        10**400,
        0.5,
        -0.5,
        1e300,
        "",
        "abc",
        "skdice.DICEDetector",
    ),
    *({"float": "nan"}, {"float": "inf"}, {"float": "-inf"}, [], {}, [[]], {"": None}),
)
NUMBERS = (0, 1, 6, 7, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)

# A file, or the files of a Zarr store by name.
Content = dict[str, bytes]


def seed_files(kind: str, folder: Path) -> list[Content]:
    """Return the valid files that are mutated."""
    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(size=(40, 6)))
    path = folder / f"seed{kind if kind != 'detector' else '.safetensors'}"
    contents = []
    if kind == "detector":
        for detector in seed_detectors(rng, X):
            skdice.save(detector, path)
            contents.append(content_of(path))
        return contents
    for features in (X, X.astype(np.float16), np.asfortranarray(X.astype(">f4"))):
        save_features(path, features)
        contents.append(content_of(path))
    if kind == ".npz":
        for features in (X, np.asfortranarray(X)):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, features=features, labels=X[:, 0])
            contents.append({"": buffer.getvalue()})
    if kind == ".npy":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asfortranarray(X), version=(2, 0))
        contents.append({"": buffer.getvalue()})
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"embedding": X.tolist()}), path)
        contents.append(content_of(path))
        pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "id": ["x"] * 40}), path)
        contents.append(content_of(path))
    if kind == ".csv":
        path.write_text("a,id,b\n" + '0.5,"x, y",1\n' * 40)
        contents.append(content_of(path))
    if kind == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=X, chunks=(16, 6), compression="gzip")
            file.create_dataset("ids", data=["x"] * 40)
        contents.append(content_of(path))
    return contents


def seed_detectors(rng: np.random.Generator, X: np.ndarray) -> list[BaseDetector]:
    """Return a fitted detector of each kind, some of them calibrated."""
    head = LinearHead(rng.uniform(size=(3, 6)))
    dice = DICEDetector(head, sparsity=0.3)
    nested = ConformalEnsemble([("fdbd", FDBDDetector(head)), ("vim", ViMDetector(head))])
    return [
        clone(dice).fit(X),
        clone(dice).set_params(shaping=ReAct(quantile=0.5)).fit(X),
        clone(dice).fit(X).calibrate(X),
        clone(dice).fit(X).calibrate(X, method="conformal"),
        DICEDetector("identity", sparsity=0).fit(X),
        FDBDDetector(head).fit(X),
        ViMDetector(head).fit(X).calibrate(X, 0.1, method="conformal", confidence=0.9),
        make_ensemble(head).fit(X),
        make_ensemble(head, combination="min").fit(X).calibrate(X, method="conformal"),
        ConformalEnsemble([("dice", dice), ("two", nested)]).fit(X),
    ]


def content_of(path: Path) -> Content:
    """Return the bytes of a file, or of each file of a store."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def write(path: Path, content: Content) -> None:
    """Write what `content_of` returns."""
    if path.is_dir():
        shutil.rmtree(path)
    for name, data in content.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def mutated(contents: list[Content], rng: random.Random) -> Content:
    """Return one of the contents with random changes in one of its files."""
    content = dict(rng.choice(contents))
    name = rng.choice(sorted(content))
    content[name] = changed(content[name], [part for c in contents for part in c.values()], rng)
    return content


def changed(data_before: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return the bytes with one to three random changes, most of them near an end."""
    data = bytearray(data_before)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        # Headers are at the start, and the directories of .npz, .pt and .parquet at the end.
        end = len(data) if rng.random() < 0.5 else min(len(data), 160)
        position = rng.randrange(end)
        if rng.random() < 0.25:
            position = len(data) - 1 - position
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
                    digit = rng.choice(digits)
                    data[digit : digit + 1] = rng.choice((b"0", b"9", b"-1", b"99999999999999"))
    return bytes(data)


def redigested(content: bytes, rng: random.Random) -> bytes:
    """Return a detector file with one value of its document changed and a digest that fits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.safetensors"
        path.write_bytes(content)
        document, arrays = read(path)
        if rng.random() < 0.7:
            change_document(document, rng)
        else:
            change_arrays(arrays, rng)
        text = json.dumps(document)
        metadata = {"skdice": text, "sha256": digest_of_document(text, arrays)}
        _safetensors.write(path, {name: wrap(array) for name, array in arrays.items()}, metadata)
        return path.read_bytes()


def change_document(document: dict[str, Any], rng: random.Random) -> None:
    """Change, leave out or repeat one value of a document, in place."""
    place: Any = document
    while isinstance(place, dict | list) and place:
        parent: Any = place
        key: Any = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        place = parent[key]
        if rng.random() < 0.1:  # a whole branch, not only a leaf
            break
    match rng.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):  # a member or a name twice
            parent.append(place)
        case 1:  # a value at the place of another one
            parent[rng.choice(list(parent))] = place
        case _:
            parent[key] = rng.choice(VALUES)


def change_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> None:
    """Change, leave out, rename or exchange arrays, in place."""
    name, other = rng.choice(list(arrays)), rng.choice(list(arrays))
    array = arrays[name]
    match rng.randrange(10):
        case 0:
            arrays[name] = array[:1]
        case 1:
            arrays[name] = array.astype(np.float32)
        case 2:
            arrays[name] = array * np.nan
        case 3:
            arrays[name] = array[::-1].copy()
        case 4:
            arrays[name] = np.zeros_like(array)
        case 5:
            arrays[name] = array * rng.choice((-1, 1e30, 1e300, 1e-300))
        case 6:
            del arrays[name]
        case 7:
            arrays[f"{rng.randrange(5)}.{other}"] = array
        case 8:
            arrays[name], arrays[other] = arrays[other], arrays[name]
        case 9:
            flat = array.copy().reshape(-1)
            flat[rng.randrange(len(flat))] = rng.choice((0, 1, -1, 7))
            arrays[name] = flat.reshape(array.shape)


def run_one(kind: str, path: Path, detector: DICEDetector) -> None:
    """Open and score, or load, one file."""
    if kind == "detector":
        loaded = skdice.load(path).set_params(verbose=0)
        if hasattr(loaded, "offset_"):
            loaded.decision_function(np.ones((2, 6)))
        scores = loaded.score_samples(np.ones((2, 6)))
        if scores.shape != (2,) or not np.isfinite(scores).all():
            raise AssertionError(f"scores {scores}")
        # A file that loads must give a detector that can be saved, to the same content.
        document, arrays = encode(loaded)
        again = build(json.loads(json.dumps(document)), dict(arrays))
        document_again, arrays_again = encode(again)
        same = all(np.array_equal(arrays[name], arrays_again[name]) for name in arrays)
        if document != document_again or not same:
            raise AssertionError(f"saved as {str(document)[:99]}, then {str(document_again)[:99]}")
    else:
        rows = open_features(path)
        scores = detector.score_samples(rows)
        if scores.shape != (rows.shape[0],):
            raise AssertionError(f"scores of shape {scores.shape} for {rows.shape}")


def outcome(kind: str, path: Path, detector: DICEDetector) -> str:
    """Return "answer", or the kind of the error."""
    try:
        run_one(kind, path, detector)
    except ValueError as error:
        return "ValueError" if len(str(error)) < 1000 else "a message that is too long"
    except OSError:
        return "OSError"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]!r}"
    return "answer"


def worker(kind: str, seed: int, first: int, count: int, path: Path, log: Path) -> None:
    """Mutate and run `count` files; append what became of each to the log."""
    warnings.simplefilter("ignore")
    contents = seed_files(kind, path.parent)
    head = LinearHead(np.random.default_rng(0).uniform(size=(3, 6)))
    detector = DICEDetector(head, sparsity=0).fit(np.ones((5, 6)))
    write(path, contents[0])
    run_one(kind, path, detector)  # imports the library of the format before memory is limited
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with log.open("a", buffering=1) as lines:
        for number in range(first, first + count):
            rng = random.Random(f"{kind} {seed} {number}")
            if kind == "detector" and rng.random() < 0.5:
                content = {"": redigested(rng.choice(contents)[""], rng)}
            else:
                content = mutated(contents, rng)
            write(path, content)
            signal.alarm(SECONDS_EACH)
            end = outcome(kind, path, detector)
            signal.alarm(0)
            lines.write(f"{end}\n")


def fuzz(
    kind: str, seed: int, first: int, count: int, seconds: float, keep: Path | None
) -> tuple[Counter[str], list[str]]:
    """Run files of one format; return how many ended in which way, and what failed."""
    context = multiprocessing.get_context("spawn")
    ends: list[str] = []
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{'.safetensors' if kind == 'detector' else kind}"
        log = Path(folder) / "log"
        log.touch()
        while len(ends) < count and time.monotonic() < deadline:
            # One process runs a step at most, so that the deadline is seen between the steps.
            step = min(STEP, count - len(ends))
            arguments = (kind, seed, first + len(ends), step, path, log)
            process = context.Process(target=worker, args=arguments)
            process.start()
            process.join()
            if process.exitcode > 0:
                raise RuntimeError(f"the process that reads {kind} files failed; see its traceback")
            if process.exitcode:
                name = signal.Signals(-process.exitcode).name
                with log.open("a") as lines:
                    lines.write(f"{'hang' if name == 'SIGALRM' else name}\n")
                if keep is not None:
                    kept = (
                        keep
                        / f"{seed}-{first + len(log.read_text().splitlines()) - 1}{path.suffix}"
                    )
                    write(kept, content_of(path))
            ends = log.read_text().splitlines()
    failures = [
        f"{kind} --seed {seed} --first {first + position}: {end}"
        for position, end in enumerate(ends)
        if end not in CLEAN
    ]
    return Counter(end if end in CLEAN else "failure" for end in ends), failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="files of each format")
    parser.add_argument("--seconds", type=float, default=86_400, help="most time for each format")
    parser.add_argument("--processes", type=int, default=1, help="formats at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=FORMATS)
    parser.add_argument("--keep", type=Path, help="folder for the files that end a process")
    arguments = parser.parse_args()

    def run(kind: str) -> list[str]:
        started = time.perf_counter()
        ends, failures = fuzz(
            kind,
            arguments.seed,
            arguments.first,
            arguments.count,
            arguments.seconds,
            arguments.keep,
        )
        counts = "".join(f"{ends[end]:>12,}" for end in (*CLEAN, "failure"))
        seconds = time.perf_counter() - started
        print(f"{kind:<14}{sum(ends.values()):>10,}{counts}{seconds:>9.0f}", flush=True)
        return failures

    titles = "".join(f"{title:>12}" for title in (*CLEAN, "failures"))
    print(f"{'format':<14}{'files':>10}{titles}{'seconds':>9}", flush=True)
    with ThreadPoolExecutor(arguments.processes) as pool:
        failures = [failure for found in pool.map(run, arguments.format) for failure in found]
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
