"""The columns of the verdicts are what the methods of the detector return, in one pass."""

import csv
import json

import numpy as np
import pytest

from skdice import DICEDetector, FDBDDetector, LinearHead, make_ensemble
from skdice._rows.sources import NumpyRows
from skdice.io import open_features, save_features, save_scores

# One of the classes has few rows, so that the threshold and the p-values of all rows are used, too.
pytestmark = pytest.mark.filterwarnings("ignore:1 of 4 predicted classes have too few")

RNG = np.random.default_rng(0)
HEAD = LinearHead(RNG.normal(size=(4, 6)), RNG.normal(size=4))
TRAIN, HELD, X = np.split(np.abs(RNG.normal(size=(2500, 6))), [1000, 2000])


def fitted(make, calibration, dtype):
    detector = make(HEAD, batch_size=64).fit(TRAIN.astype(dtype))
    if calibration == "quantile":
        return detector.calibrate(HELD.astype(dtype))
    by = "prediction" if calibration == "by class" else None
    return detector.calibrate(HELD.astype(dtype), method="conformal", by=by)


def collected(detector, X):
    dtypes, blocks = detector._iterate_verdicts(X)
    blocks = list(blocks)
    assert all(list(block) == list(dtypes) for block in blocks)
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in dtypes}
    assert {name: column.dtype for name, column in columns.items()} == dtypes
    return columns


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("calibration", ["quantile", "conformal", "by class"])
@pytest.mark.parametrize("make", [DICEDetector, FDBDDetector, make_ensemble])
def test_verdicts_are_what_the_methods_return(make, calibration, dtype):
    detector, rows = fitted(make, calibration, dtype), X.astype(dtype)
    verdicts = collected(detector, rows)
    np.testing.assert_array_equal(verdicts["score"], detector.score_samples(rows))
    np.testing.assert_array_equal(verdicts["is_ood"], detector.predict(rows) == -1)
    assert 0 < verdicts["is_ood"].mean() < 0.2
    assert ("pvalue" in verdicts) == (calibration != "quantile")
    if "pvalue" in verdicts:
        np.testing.assert_array_equal(verdicts["pvalue"], detector.pvalues(rows))
    assert ("member" in verdicts) == (make is make_ensemble)
    if "member" in verdicts:
        names = np.array(list(detector.named_estimators_))
        smallest = names[detector.member_pvalues(rows).argmin(axis=1)]
        np.testing.assert_array_equal(verdicts["member"], smallest)


def test_without_a_threshold_there_are_scores_alone():
    assert list(collected(DICEDetector(HEAD).partial_fit(TRAIN), X)) == ["score"]


@pytest.mark.parametrize("make", [DICEDetector, make_ensemble])
def test_every_row_is_read_once(make):
    class Counted(NumpyRows):
        n_read = 0

        def _read(self, start, stop):
            Counted.n_read += stop - start
            return super()._read(start, stop)

    collected(fitted(make, "by class", np.float64), Counted(X))
    assert Counted.n_read == len(X)


@pytest.mark.parametrize("calibration", ["conformal", "by class"])
def test_rows_of_a_cluster_have_the_same_verdicts(calibration):
    da = pytest.importorskip("dask.array")
    detector = fitted(make_ensemble, calibration, np.float64)
    expected, found = collected(detector, X), collected(detector, da.from_array(X, (100, 6)))
    for name, column in expected.items():
        if name == "score":
            np.testing.assert_allclose(found[name], column, rtol=1e-12)
        else:
            np.testing.assert_array_equal(found[name], column)


def test_a_tensor_has_the_same_verdicts():
    torch = pytest.importorskip("torch")
    detector = fitted(DICEDetector, "by class", np.float64)
    expected, found = collected(detector, X), collected(detector, torch.from_numpy(X))
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-12)
    np.testing.assert_array_equal(found["is_ood"], expected["is_ood"])


def read(path):
    """Return the rows of a file as lists of values."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        convert = {"row": int, "score": float, "pvalue": float, "is_ood": "true".__eq__}
        return header, [
            [convert.get(name, str)(text) for name, text in zip(header, line, strict=True)]
            for line in lines
        ]
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return list(lines[0]), [list(line.values()) for line in lines]
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    return table.column_names, [list(line.values()) for line in table.to_pylist()]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_files_hold_the_verdicts_exactly(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    members = [('a,"b"\n', DICEDetector(HEAD)), ("x", FDBDDetector(HEAD))]
    ensemble = make_ensemble(HEAD).set_params(estimators=members, batch_size=64)
    ensemble.fit(TRAIN).calibrate(HELD, method="conformal")
    path = tmp_path / f"s{ending}"
    assert save_scores(path, ensemble, X) == len(X)
    header, rows = read(path)
    expected = {"row": np.arange(len(X)), **collected(ensemble, X)}
    assert header == ["row", "score", "pvalue", "is_ood", "member"]
    assert rows == [list(row) for row in zip(*(c.tolist() for c in expected.values()), strict=True)]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_single_precision_is_written_so_that_it_is_read_back(tmp_path, ending):
    detector = fitted(DICEDetector, "quantile", np.float32)
    path = tmp_path / f"s{ending}"
    save_scores(path, detector, X.astype(np.float32))
    header, rows = read(path)
    scores = np.array([row[header.index("score")] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(scores, detector.score_samples(X.astype(np.float32)))


def test_a_large_file_is_scored_in_little_memory(tmp_path):
    """The verdicts on many rows are never together in memory."""
    save_features(tmp_path / "x.npy", np.tile(X, (40, 1)))
    detector = fitted(make_ensemble, "conformal", np.float64)
    dtypes, blocks = detector._iterate_verdicts(open_features(tmp_path / "x.npy"))
    assert max(len(block["score"]) for block in blocks) <= 64
    assert "member" in dtypes
