"""Files larger than memory, hostile files, and processes that are killed in the middle.

What is measured in full lies in benchmarks/; a bounded part of it runs here.
"""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, LinearHead

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, **options
    )


@pytest.mark.slow
def test_a_file_of_gigabytes_takes_little_memory(tmp_path):
    done = run(BENCHMARKS / "large_file.py", "--rows", 250_000, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1.9 GiB" in done.stdout
    assert "score to a file" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer limits the address space")
def test_mutated_files_give_a_clean_error_or_the_right_answer():
    # HDF5 and Zarr are left out because their native libraries may hang or crash.
    formats = [".npy", ".npz", ".safetensors", "detector"]
    arguments = ["--count", 1000, "--seed", 1, "--format", *formats]
    done = run(BENCHMARKS / "fuzz.py", *arguments, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()[1:]]
    assert rows == [[kind, "1,000"] for kind in formats]


KILLED_WHILE_SCORING = """
import os, signal, sys
import numpy as np
import skdice
from skdice.io import save_scores

seen = 0

def score(logits):
    global seen
    seen += 1
    if seen == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return logits.max(axis=1)

detector = skdice.load("detector.safetensors").set_params(score_func=score, batch_size=10)
detector.fit(np.ones((4, 3)))
seen = 0
save_scores(sys.argv[1], detector, np.ones((100, 3)))
"""

KILLED_WHILE_SAVING = """
import os, signal
import skdice
from skdice._rows.sources import SlicedRows

def raw_blocks(rows, batch_size=None):
    yield rows[:1]
    os.kill(os.getpid(), signal.SIGKILL)

SlicedRows.raw_blocks = raw_blocks
skdice.save(skdice.load("detector.safetensors"), "detector.safetensors")
"""


@pytest.fixture
def folder(tmp_path):
    detector = DICEDetector(LinearHead(np.eye(3)), sparsity=0).fit(np.ones((4, 3)))
    skdice.save(detector, tmp_path / "detector.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["scores.npy", "scores.parquet"])
@pytest.mark.parametrize("old", [None, b"old scores"])
def test_killed_in_the_middle_of_scoring(folder, name, old):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if old is not None:
        (folder / name).write_bytes(old)
    done = run("-c", KILLED_WHILE_SCORING, name, cwd=folder, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ((folder / name).read_bytes() if (folder / name).exists() else None) == old


def test_killed_in_the_middle_of_saving(folder):
    before = (folder / "detector.safetensors").read_bytes()
    done = run("-c", KILLED_WHILE_SAVING, cwd=folder, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "detector.safetensors").read_bytes() == before
    assert skdice.load(folder / "detector.safetensors").n_samples_seen_ == 4
