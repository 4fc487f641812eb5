"""How often a detector reads its rows: a file of 100 GB is not read once more than it must be."""

import numpy as np
import pytest

from skdice import DICEDetector, FDBDDetector, LinearHead, ViMDetector, make_ensemble
from skdice._rows.sources import NumpyRows
from skdice.shaping import VRA, ReAct

HEAD = LinearHead(np.random.default_rng(1).normal(size=(6, 24)), np.zeros(6))
DETECTORS = {
    "dice": DICEDetector(HEAD),
    "energy + ReAct": DICEDetector(HEAD, sparsity=0, shaping=ReAct(quantile=0.99)),
    "dice + ReAct": DICEDetector(HEAD, shaping=ReAct(quantile=0.95)),
    "fdbd": FDBDDetector(HEAD),
    "vim": ViMDetector(HEAD),
    "ensemble": make_ensemble(HEAD),
}
pytestmark = pytest.mark.filterwarnings("ignore:at sparsity:UserWarning")


class CountingRows(NumpyRows):
    """Rows that count how many of them were read."""

    n_read = 0

    def _read(self, start, stop):
        self.n_read += stop - start
        return super()._read(start, stop)


def features(dtype, n_rows=3000):
    return np.maximum(np.random.default_rng(2).normal(size=(n_rows, 24)), 0).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_fit_reads_the_rows_twice_and_scoring_once(name, dtype):
    X = features(dtype)
    rows = CountingRows(X)
    detector = DETECTORS[name].fit(rows)
    assert rows.n_read == 2 * len(X)
    rows = CountingRows(X)
    scores = detector.score_samples(rows)
    assert rows.n_read == len(X)
    assert np.array_equal(scores, detector.score_samples(X))
    rows = CountingRows(X[1:])
    detector.calibrate(rows, method="conformal")
    assert rows.n_read == len(X) - 1


def test_labels_and_files_change_nothing(tmp_path):
    """Rows that are left out are not counted twice, and a file is read as an array is."""
    X = features(np.float32)
    y = np.where(np.arange(len(X)) % 7 == 0, -1, 0)
    rows = CountingRows(X)
    fitted = make_ensemble(HEAD).fit(rows, y)
    assert rows.n_read <= 2 * len(X)
    np.save(tmp_path / "x.npy", X[y == 0])
    from_file = make_ensemble(HEAD).fit(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert np.allclose(fitted.score_samples(X), from_file.score_samples(X), rtol=1e-5)


def test_a_quantile_that_is_not_high_is_counted_in_passes_of_its_own():
    rows = CountingRows(features(np.float32))
    DICEDetector(HEAD, shaping=VRA(lower_quantile=0.5)).fit(rows)
    assert rows.n_read > 2 * len(rows)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_dask_fit_computes_its_chunks_twice(name):
    da = pytest.importorskip("dask.array")
    X = features(np.float32)
    computed = []

    def counted(chunk):
        computed.append(len(chunk))
        return chunk

    rows = da.from_array(X, chunks=(500, 24)).map_blocks(counted, dtype=X.dtype, meta=X[:0])
    detector = DETECTORS[name].fit(rows)
    assert sum(computed) == 2 * len(X)
    computed.clear()
    scores = detector.score_samples(rows).compute()
    assert sum(computed) == len(X)
    assert np.allclose(scores, DETECTORS[name].fit(X).score_samples(X), rtol=1e-5)
