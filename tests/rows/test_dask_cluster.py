"""Dask collections on a cluster of two worker processes."""

import os
import re
import signal
import threading
import time

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from skdice import DICEDetector, DICEDetectorCV, LinearHead, make_ensemble
from skdice.cli import main
from skdice.io import save_features, save_scores
from skdice.shaping import ReAct

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

# Memory of a worker. The large matrix is several times as large as both workers together.
WORKER_BYTES = 400 << 20


@pytest.fixture(scope="module")
def cluster():
    with (
        dask.config.set(
            {
                # Only settings that the tests need are changed.
                "distributed.worker.memory.terminate": 0.95,
                "distributed.scheduler.allowed-failures": 5,
            }
        ),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=WORKER_BYTES,
            dashboard_address=None,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(8)
    head = LinearHead(rng.normal(size=(20, 64)), rng.normal(size=20))
    X = np.maximum(rng.normal(size=(4000, 64)), 0).astype(np.float32)
    return head, X, np.where(rng.random(4000) < 0.1, -1, 0)


@pytest.mark.slow
def test_everything_equals_the_result_in_memory(client, data):
    head, X, y = data
    expected = DICEDetector(head, shaping=ReAct(0.9)).fit(X, y)
    array = da.from_array(X, chunks=(333, 40))
    detector = DICEDetector(head, shaping=ReAct(0.9)).fit(array, y)
    np.testing.assert_array_equal(detector.mask_, expected.mask_)
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    assert detector.shaping_.threshold_ == expected.shaping_.threshold_
    assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-5)
    for method in ("score_samples", "decision_function", "logits"):
        np.testing.assert_allclose(
            getattr(detector, method)(array).compute(),
            getattr(expected, method)(X),
            rtol=1e-5,
            atol=1e-5,
        )
    calibrated = detector.calibrate(array, 0.3)
    assert calibrated.offset_ == pytest.approx(expected.calibrate(X, 0.3).offset_, rel=1e-5)


def test_nothing_stays_on_the_cluster(client, data):
    head, X, _ = data
    array = da.from_array(X, chunks=(333, 64))
    detector = DICEDetector(head, shaping=ReAct(0.9)).fit(array).calibrate(array)
    detector.predict(array).compute()
    # The cluster frees memory some time after the call.
    for _ in range(600):
        if not client.cluster.scheduler.tasks:
            return
        time.sleep(0.05)
    raise AssertionError(list(client.cluster.scheduler.tasks))


class CountedValues:
    """Stands for what a task needs, and leaves a mark each time it is packed or unpacked."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rows):
        yield slice(0, rows.shape[0]), np.zeros(rows.shape[0])

    def _mark(self, what):
        (self.folder / f"{what}-{os.urandom(8).hex()}").touch()

    def __getstate__(self):
        self._mark(f"packed-{os.getpid()}")
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._mark(f"unpacked-{os.getpid()}")

    def __dask_tokenize__(self):
        return "counted"


def test_what_all_tasks_need_travels_once_to_each_worker(client, data, tmp_path):
    from skdice._rows.dask import dask_rows

    _, X, _ = data
    lazy = dask_rows(da.from_array(X, chunks=(20, 64))).collect(CountedValues(tmp_path), np.float64)
    assert lazy.numblocks == (200,)
    lazy.compute()
    marks = [each.name.split("-")[:2] for each in tmp_path.iterdir()]
    workers = {str(pid) for pid in client.run(os.getpid).values()}
    unpacked = [pid for what, pid in marks if what == "unpacked" and pid in workers]
    assert sorted(unpacked) == sorted(set(unpacked))  # once each, not once per task
    packed_here = [pid for what, pid in marks if what == "packed" and pid not in workers]
    # The client packs the head, and so may the scheduler, which is a thread of this process.
    assert 1 <= len(packed_here) <= 3


def made_up(block_id=None, rows=0):
    rng = np.random.default_rng(block_id[0])
    return rng.random((rows, 256), dtype=np.float32)


def larger_than_memory(n_chunks, rows=40_000):
    """Return a matrix of chunks of 40 MB that are made on the workers."""
    return da.map_blocks(
        made_up,
        chunks=((rows,) * n_chunks, (256,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
        rows=rows,
    )


class PeakMemory(threading.Thread):
    """The largest memory of this process and of each worker, looked at all the time."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self.processes = {pid: psutil.Process(pid) for pid in pids}
        self.start_bytes = {pid: each.memory_info().rss for pid, each in self.processes.items()}
        self.peak = dict(self.start_bytes)
        self.done = threading.Event()

    def run(self):
        while not self.done.wait(0.02):
            for pid, process in self.processes.items():
                self.peak[pid] = max(self.peak[pid], process.memory_info().rss)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


@pytest.mark.slow
def test_memory_is_bounded_where_the_matrix_is_larger_than_that_of_the_workers(client, tmp_path):
    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=(10, 256)).astype(np.float32))
    X = larger_than_memory(60)
    assert X.nbytes > 2 * 2 * WORKER_BYTES
    workers = client.run(os.getpid)
    with PeakMemory([os.getpid(), *workers.values()]) as memory:
        detector = DICEDetector(head, sparsity=0.5).fit(X)
        assert save_scores(tmp_path / "scores.npy", detector, X) == X.shape[0]
    assert memory.peak[os.getpid()] - memory.start_bytes[os.getpid()] < WORKER_BYTES / 2
    assert client.run(os.getpid) == workers  # none was ended for its memory
    assert all(memory.peak[pid] < WORKER_BYTES for pid in workers.values())
    scores = np.load(tmp_path / "scores.npy")
    block = made_up((37,), 40_000)
    np.testing.assert_allclose(
        scores[37 * 40_000 : 38 * 40_000], detector.score_samples(block), rtol=1e-5
    )
    assert (scores < detector.offset_).sum() == pytest.approx(0.05 * len(scores), abs=2)
    np.testing.assert_allclose(detector.mean_activation_, 0.5, rtol=1e-2)


def deadly_once(block, block_info=None, folder=None):
    """Return the block; of the fifth one, end the worker that has it, the first time."""
    mark = folder / "died"
    if block_info and block_info[0]["chunk-location"][0] == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.parametrize("step", ["fit", "score"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_that_dies_in_the_middle_costs_nothing_but_time(client, data, tmp_path, step):
    head, X, _ = data
    expected = DICEDetector(head).fit(X)
    array = da.from_array(X, chunks=(100, 64)).map_blocks(
        deadly_once, dtype=X.dtype, meta=X[:0], folder=tmp_path
    )
    detector = DICEDetector(head)
    if step == "fit":
        detector.fit(array)
        np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
        np.testing.assert_array_equal(detector.mask_, expected.mask_)
        assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-5)
    else:
        scores = expected.score_samples(array).compute()
        np.testing.assert_allclose(scores, expected.score_samples(X), rtol=1e-5)
    assert (tmp_path / "died").exists()
    client.wait_for_workers(2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_that_dies_changes_nothing_in_an_ensemble(client, data, tmp_path):
    head, X, _ = data
    expected = make_ensemble(head).fit(X)
    array = da.from_array(X, chunks=(400, 64)).map_blocks(
        deadly_once, dtype=X.dtype, meta=X[:0], folder=tmp_path
    )
    ensemble = make_ensemble(head).fit(array)
    assert (tmp_path / "died").exists()
    client.wait_for_workers(2)
    assert ensemble.offset_ == pytest.approx(expected.offset_, rel=1e-3)
    # Rounding may carry a score of a member over one reference score, which is a step of 1 / 4001.
    np.testing.assert_allclose(
        ensemble.member_pvalues(array).compute(), expected.member_pvalues(X), atol=6e-4
    )


def test_a_bad_row_is_named_across_processes(client, data):
    head, X, _ = data
    X = X.copy()
    X[3210, 7] = np.nan
    array = da.from_array(X, chunks=(333, 64))
    with pytest.raises(ValueError, match="NaN in row 3210, column 7"):
        DICEDetector(head).fit(array)


# The command


@pytest.fixture(scope="module")
def files(tmp_path_factory, data):
    head, X, _ = data
    folder = tmp_path_factory.mktemp("files")
    (folder / "shards").mkdir()
    kinds = ("npy", "h5", "npz", "parquet", "safetensors")
    for n, (kind, part) in enumerate(zip(kinds, np.array_split(X, 5), strict=True)):
        save_features(folder / "shards" / f"part-{n}.{kind}", part)
    np.savez(folder / "head.npz", weight=head.weight, bias=head.bias)
    return folder


def test_the_command_has_the_workers_read_the_shards(cluster, files, data, capsys, monkeypatch):
    head, X, _ = data
    monkeypatch.chdir(files)
    cluster_address = ["--scheduler", cluster.scheduler_address]
    read_here = []
    monkeypatch.setattr("skdice.io._distributed.open_shard", read_here.append)
    fit = ["fit", "shards", "--head", "head.npz", "-o", "det.safetensors", "--shaping", "react"]
    assert main([*fit, *cluster_address]) == 0
    assert main(["calibrate", "det.safetensors", "shards", *cluster_address]) == 0
    assert main(["score", "det.safetensors", "shards", "-o", "far.npy", *cluster_address]) == 0
    assert read_here == []  # by the client
    assert "scored 4,000 rows" in capsys.readouterr().err
    expected = DICEDetector(head, shaping=ReAct()).fit(X).calibrate(X)
    np.testing.assert_allclose(np.load("far.npy"), expected.score_samples(X), rtol=1e-5)
    assert main(["score", "det.safetensors", "shards", *cluster_address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(X)
    scores = [float(line.partition("\t")[0]) for line in lines]
    np.testing.assert_allclose(scores, expected.score_samples(X), rtol=1e-5)


def test_the_command_tells_what_is_wrong_on_the_workers(cluster, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    address = ["--scheduler", cluster.scheduler_address]
    fit = ["fit", "--head", "head.npz", "-o", "new.safetensors", *address]
    for features, message in (
        ("nowhere", "no such file: .*nowhere"),
        ("-", "that the workers can read, got standard input"),
    ):
        assert main([*fit, features]) == 2
        assert re.search(f"^skdice: .*{message}", capsys.readouterr().err, re.MULTILINE)
    (files / "empty").mkdir()
    save_features(files / "empty" / "part.npy", np.empty((0, 64)))
    assert main([*fit, "empty"]) == 2
    assert "Found array with 0 sample(s)" in capsys.readouterr().err
    bad = np.ones((50, 64))
    bad[33, 3] = np.inf
    save_features(files / "bad.npy", bad)
    assert main([*fit, "bad.npy"]) == 2
    assert "bad.npy: Input X contains infinity (inf) in row 33" in capsys.readouterr().err


def test_chunks_of_files_are_blocks_of_rows_of_one_of_them(client, files, monkeypatch):
    from skdice.io._distributed import distributed_features

    X = distributed_features(files / "shards")
    assert X.shape == (4000, 64)
    assert X.chunks == ((800,) * 5, (64,))
    assert X.dtype == np.float32


# Searches over the cluster


def count_heads(monkeypatch, folder):
    """Have each head leave a mark where this process packs it; return what counts them."""
    pack = LinearHead.__getstate__

    def marking(head):
        (folder / os.urandom(8).hex()).touch()
        return pack(head)

    monkeypatch.setattr(LinearHead, "__getstate__", marking)
    return lambda: len(list(folder.iterdir()))


def test_a_search_on_the_cluster_ships_the_head_once(client, data, tmp_path, monkeypatch):
    head, X, _ = data
    y = np.where(np.arange(len(X)) % 4 == 0, -1, 1)
    expected = DICEDetectorCV(head, sparsities=[0, 0.5], cv=6).fit(X, y)
    packed = count_heads(monkeypatch, tmp_path)
    with parallel_config(backend="dask"):
        found = DICEDetectorCV(head, sparsities=[0, 0.5], cv=6).fit(X, y)
    assert packed() == 1
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-9
    )
    np.testing.assert_array_equal(found.mask_, expected.mask_)


def test_searches_run_on_the_cluster_with_the_results_of_one_machine(client, data):
    head, X, y = data
    y = np.where(np.arange(len(X)) % 4 == 0, -1, 1)
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    grid = GridSearchCV(DICEDetector(head), {"sparsity": [0, 0.5]}, scoring="roc_auc", cv=cv)
    search = DICEDetectorCV(head, sparsities=[0, 0.5], cv=cv)
    expected = grid.fit(X, y).cv_results_["mean_test_score"]
    with parallel_config(backend="dask"):
        for each in (grid, search):
            found = each.fit(X, y).cv_results_["mean_test_score"]
            np.testing.assert_allclose(found, expected, rtol=1e-6)
