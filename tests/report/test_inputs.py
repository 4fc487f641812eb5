"""Digests of files are those that other tools compute."""

import hashlib
import shutil
import subprocess

import numpy as np
import pytest

from skdice._rows.door import as_source
from skdice.io import save_features
from skdice.report._inputs import digest_of_path, digest_of_values, open_rows

X = np.arange(60, dtype=np.float32).reshape(20, 3)


def listing_digest(folder, names):
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names
    ]
    return hashlib.sha256(("\n".join(lines) + "\n").encode()).hexdigest()


def test_a_file(tmp_path):
    np.save(tmp_path / "a.npy", X)
    found = digest_of_path(tmp_path / "a.npy")
    assert found.sha256 == hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()
    assert found.of == "the file, by sha256sum"


@pytest.fixture
def shards(tmp_path):
    for n in range(3):
        np.save(tmp_path / f"part-{n}.npy", X[n:])
    (tmp_path / "notes.txt").write_text("not a shard")
    return tmp_path


def test_a_folder_or_a_pattern_is_the_list_of_its_shards(shards):
    expected = listing_digest(shards, ["part-0.npy", "part-1.npy", "part-2.npy"])
    for path in (shards, shards / "part-*.npy"):
        found = digest_of_path(path)
        assert found.sha256 == expected
        assert found.of == "the list that sha256sum prints for the 3 files"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_the_list_is_that_of_sha256sum(shards):
    command = "sha256sum part-*.npy | sha256sum"
    done = subprocess.run(command, shell=True, cwd=shards, capture_output=True, text=True)
    assert digest_of_path(shards).sha256 == done.stdout.split()[0]


def test_a_zarr_store_is_the_list_of_all_its_files(tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "rows.zarr"
    save_features(path, X)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    before = digest_of_path(path)
    assert before.sha256 == listing_digest(path, sorted(names, key=lambda name: path / name))
    changed = path / names[-1]
    changed.write_bytes(changed.read_bytes() + b" ")
    assert digest_of_path(path).sha256 != before.sha256


@pytest.mark.parametrize("dtype", [">f4", "<f8", np.float16, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_have_one_digest_in_every_order(dtype, order, tmp_path):
    array = np.array(X, dtype, order=order)
    little = array.astype(np.dtype(dtype).newbyteorder("<"))
    expected = hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()
    assert digest_of_values(array, as_source(array)).sha256 == expected
    np.save(tmp_path / "rows.npy", array)
    opened = open_rows(tmp_path / "rows.npy", None)
    assert digest_of_values(opened, as_source(opened)).sha256 == expected
