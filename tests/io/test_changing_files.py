"""Files that change while they are read, disks that fill, and paths that are not files.

The cases that used to kill the process run in a process of their own, where a signal is the
failure.
"""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, LinearHead
from skdice.io import open_features, save_features, save_scores

RNG = np.random.default_rng(3)
X = RNG.uniform(0.5, 1, size=(20_000, 8))
HEAD = LinearHead(RNG.uniform(size=(3, 8)))
ENDINGS = [".npy", ".npz", ".safetensors", ".h5", ".zarr", ".parquet", ".csv", ".pt", ".pth"]
LIBRARIES = {
    **dict.fromkeys([".parquet", ".csv"], "pyarrow"),
    **dict.fromkeys([".pt", ".pth"], "torch"),
    ".h5": "h5py",
    ".zarr": "zarr",
}
# The formats whose libraries are installed.
READABLE = [ending for ending in ENDINGS if find_spec(LIBRARIES.get(ending, "numpy"))]


def run_python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


# Files that are cut short while they are open


CUT_WHILE_OPEN = """
    import os, sys
    import numpy as np
    from skdice import DICEDetector, LinearHead
    from skdice.io import open_features

    rows = open_features(sys.argv[1])
    first = np.array(rows[:2])
    detector = DICEDetector(LinearHead(np.ones((2, 8))), sparsity=0).fit(first)
    os.truncate(sys.argv[-1], int(sys.argv[2]))
    for use in (detector.score_samples, detector.partial_fit, np.asarray):
        try:
            use(rows)
        except ValueError as error:
            print(error)
"""


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt", ".h5"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not cut a file that is open")
def test_a_file_cut_short_while_it_is_open_is_an_error_that_names_it(tmp_path, ending):
    pytest.importorskip(LIBRARIES.get(ending, "numpy"))
    path = tmp_path / f"t{ending}"
    save_features(path, X)
    lines = run_python(CUT_WHILE_OPEN, path, 5000, path).splitlines()
    expected = f"cannot read {path}: it was truncated after it was opened: it has 5000 bytes"
    assert len(lines) == 3
    assert all(line.startswith(expected) for line in lines)


def test_a_column_major_file_cut_short_while_it_is_open(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.asfortranarray(X))
    rows = open_features(path)
    os.truncate(path, 5000)
    with pytest.raises(ValueError, match=r"t\.npy: it was truncated: rows are missing in column 0"):
        DICEDetector(HEAD, sparsity=0).partial_fit(rows)


def test_a_file_whose_name_is_gone_or_taken_is_read_to_its_end(tmp_path):
    path = tmp_path / "t.npy"
    save_features(path, X)
    rows = open_features(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(rows), X)
    save_features(path, X[:5])
    np.testing.assert_array_equal(np.asarray(rows), X)


def test_a_truncated_shard_is_named(tmp_path):
    for name in ("a.npy", "b.npy"):
        save_features(tmp_path / name, X)
    lines = run_python(CUT_WHILE_OPEN, tmp_path, 5000, tmp_path / "b.npy").splitlines()
    assert len(lines) == 3
    # The shard is opened only when its rows are read, so that its header is checked again.
    assert all(f"cannot read {tmp_path / 'b.npy'}: it is truncated: " in line for line in lines)


def test_a_head_outlives_its_file(tmp_path):
    np.savez(tmp_path / "h.npz", weight=np.ones((500, 500)))
    code = """
        import sys
        from pathlib import Path
        from skdice import LinearHead

        head = LinearHead.from_file(sys.argv[1])
        Path(sys.argv[1]).write_bytes(b"")
        print(int(head.weight.sum()))
    """
    assert run_python(code, tmp_path / "h.npz") == "250000"


# Parts that vanish, which the libraries read as zeros


@pytest.mark.parametrize("options", [{}, {"shards": (2000, 8)}, {"zarr_format": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:.*Zarr V3 specification")
def test_a_zarr_chunk_that_vanishes_is_named(tmp_path, options):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "t.zarr"
    zarr.create_array(path, data=X, chunks=(1000, 8), compressors=None, **options)
    rows = open_features(path)
    detector = DICEDetector(HEAD, sparsity=0).fit(rows)
    chunk = "3.0" if options.get("zarr_format") == 2 else "c/3/0"
    (path / chunk).unlink()
    with pytest.raises(ValueError, match=rf"t\.zarr: its chunk {chunk} was removed after it was"):
        detector.score_samples(rows)
    shutil.rmtree(path)
    with pytest.raises(ValueError, match="was removed after it was opened"):
        rows[5000:6000]


def test_a_zarr_chunk_of_fill_values_alone_need_not_be_stored(tmp_path):
    zarr = pytest.importorskip("zarr")
    sparse = X.copy()
    sparse[1000:] = 0
    zarr.create_array(tmp_path / "s.zarr", data=sparse, chunks=(1000, 8))
    assert not (tmp_path / "s.zarr" / "c" / "1").exists()
    np.testing.assert_array_equal(np.asarray(open_features(tmp_path / "s.zarr")), sparse)


def virtual_file(folder):
    """Write a virtual dataset over two files; return its path."""
    h5py = pytest.importorskip("h5py")
    layout = h5py.VirtualLayout((2000, 8), "f8")
    for part in range(2):
        save_features(folder / f"part{part}.h5", X[1000 * part : 1000 * part + 1000])
        layout[1000 * part : 1000 * part + 1000] = h5py.VirtualSource(
            f"part{part}.h5", "features", (1000, 8)
        )
    with h5py.File(folder / "virtual.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    return folder / "virtual.h5"


def test_a_virtual_dataset_is_read_and_a_missing_source_is_named(tmp_path):
    path = virtual_file(tmp_path)
    rows = open_features(path)
    np.testing.assert_array_equal(np.asarray(rows), X[:2000])
    (tmp_path / "part1.h5").rename(tmp_path / "elsewhere.h5")
    with pytest.raises(ValueError, match=r"virtual\.h5: the file .*part1\.h5 of its virtual"):
        rows[:]
    with pytest.raises(ValueError, match=r"virtual\.h5: the file .*part1\.h5 of its virtual"):
        open_features(path)
    save_features(tmp_path / "part1.h5", X[:1000], labels=X[:1000, 0])
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "part1.h5", "a") as file:
        del file["features"]
    with pytest.raises(ValueError, match=r"the array '/?features' of its virtual dataset is not"):
        open_features(path)


def test_hdf5_data_in_external_files_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file.create_dataset(
            "features", data=X[:10], external=[(str(tmp_path / "raw"), 0, 10 * 8 * 8)]
        )
    with pytest.raises(ValueError, match=r"e\.h5: its dataset /features lies in other files"):
        open_features(tmp_path / "e.h5")


# Disks that fill


SAVE_ON_A_FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from skdice.io import save_features

    X = np.random.default_rng(0).random((1000, 300))  # 2.4 MB
    folder, limit, endings = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for ending in endings:
        save_features(folder / f"x{ending}", X[:2])  # imports what is needed
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for ending in endings:
        path = folder / f"x{ending}"
        try:
            save_features(path, X)
        except OSError as error:
            print(ending, type(error).__name__, error.errno, error.filename == str(path))
    assert {file.name for file in folder.iterdir()} == {f"x{ending}" for ending in endings}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_file_that_grows_too_large_is_an_oserror_and_leaves_nothing(tmp_path):
    output = run_python(SAVE_ON_A_FULL_DISK, tmp_path, 1 << 20, *READABLE)
    assert output.splitlines() == [f"{ending} OSError {errno.EFBIG} True" for ending in READABLE]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_oserror_and_leaves_nothing(small_disk):
    output = run_python(SAVE_ON_A_FULL_DISK, small_disk, 0, *READABLE)
    assert output.splitlines() == [f"{ending} OSError {errno.ENOSPC} True" for ending in READABLE]


# Paths that are not files


NOT_A_FILE = "cannot read {}: it is {}, expected a file"


@pytest.fixture(params=["fifo", "device", "folder"])
def not_a_file(request, tmp_path):
    """Return what makes a name that is not a file."""
    if sys.platform == "win32" and request.param != "folder":
        pytest.skip("Windows has no such files")

    def make(path):
        if request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path

    return make


READ = """
    import os, sys, threading
    import skdice
    from skdice.io import open_features

    threading.Timer(60, os._exit, [9]).start()
    read = {"rows": open_features, "head": skdice.LinearHead.from_file, "load": skdice.load}
    for argument in sys.argv[1:]:
        reader, path = argument.split(":", 1)
        try:
            read[reader](path)
        except (ValueError, FileNotFoundError) as error:
            print(error, flush=True)
    os._exit(0)
"""


def test_what_is_not_a_file_is_refused_at_once_in_every_format(tmp_path, not_a_file):
    paths = [not_a_file(tmp_path / f"x{ending}") for ending in READABLE]
    messages = run_python(READ, *(f"rows:{path}" for path in paths)).splitlines()
    for path, message in zip(paths, messages, strict=True):
        if not path.is_dir():
            assert message == NOT_A_FILE.format(path, "a FIFO, a socket or a device")
        elif path.suffix == ".zarr":
            assert message.startswith(f"cannot read {path}: ")
        else:  # a folder is one of shards, whatever its name
            assert message.startswith(f"no feature files in {path}")


def test_what_is_not_a_file_is_refused_by_every_reader(tmp_path, not_a_file):
    path = not_a_file(tmp_path / "x.safetensors")
    readers = [f"head:{path}", f"load:{path}", f"rows:{tmp_path}"]
    kind = "a folder" if path.is_dir() else "a FIFO, a socket or a device"
    assert run_python(READ, *readers).splitlines() == 3 * [NOT_A_FILE.format(path, kind)]


def test_a_fifo_in_a_zarr_store_is_refused(tmp_path):
    pytest.importorskip("zarr")
    if sys.platform == "win32":
        pytest.skip("Windows has no FIFO files")
    save_features(tmp_path / "x.zarr", X)
    chunk = next(file for file in (tmp_path / "x.zarr").rglob("*") if file.name == "0")
    file = next(chunk.rglob("0")) if chunk.is_dir() else chunk
    file.unlink()
    os.mkfifo(file)
    assert "in it is not a file" in run_python(READ, f"rows:{tmp_path / 'x.zarr'}")


def test_an_empty_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector = DICEDetector(HEAD).fit(X)
    save_features("a.npy", X)
    for use in (
        open_features,
        skdice.load,
        LinearHead.from_file,
        lambda path: save_features(path, X),
        lambda path: save_scores(path, detector, X),
        lambda path: skdice.save(detector, path),
    ):
        with pytest.raises(ValueError, match="the path is empty, expected the name of a file"):
            use("")
