"""CSV files with a header: features and their names, ids, and files that are refused."""

import numpy as np
import pandas as pd
import pytest

from skdice import DICEDetector, LinearHead
from skdice.io import _csv, open_features, save_features

pytest.importorskip("pyarrow")

X = np.random.default_rng(0).normal(size=(300, 3))
HEAD = LinearHead(np.random.default_rng(1).normal(size=(4, 3)))
NAMES = ["height", "width", "über, alles"]


@pytest.fixture
def path(tmp_path):
    frame = pd.DataFrame(X, columns=NAMES)
    frame.insert(1, "id", [f"n{n},\n" for n in range(300)])
    frame.to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def whole(rows):
    return np.asarray(rows[: rows.shape[0]])


def test_the_numeric_columns_are_the_features(path):
    rows = open_features(path)
    assert (rows.shape, rows.dtype) == ((300, 3), np.float64)
    np.testing.assert_array_equal(whole(rows), X)
    np.testing.assert_array_equal(rows[100:200], X[100:200])
    np.testing.assert_array_equal(rows[0:10], X[:10])  # from the beginning again


def test_a_column_is_read_by_its_name(path):
    np.testing.assert_array_equal(open_features(path, key="width")[:], X[:, 1])
    ids = open_features(path, key="id")
    assert list(ids[:2]) == ["n0,\n", "n1,\n"]
    with pytest.raises(ValueError, match=r"x\.csv: it has no array 'label'; it has height, id, "):
        open_features(path, key="label")


def test_the_header_names_the_features(path, tmp_path):
    detector = DICEDetector(HEAD).fit(open_features(path))
    assert list(detector.feature_names_in_) == NAMES
    expected = detector.score_samples(pd.DataFrame(X, columns=NAMES))
    np.testing.assert_array_equal(detector.score_samples(open_features(path)), expected)
    pd.DataFrame(X, columns=NAMES)[NAMES[::-1]].to_csv(tmp_path / "turned.csv", index=False)
    with pytest.raises(ValueError, match="same order"):
        detector.predict(open_features(tmp_path / "turned.csv"))


def test_a_column_may_begin_with_whole_numbers(tmp_path, monkeypatch):
    # The block from which pyarrow takes the types has only whole numbers.
    monkeypatch.setattr(_csv, "BLOCK_BYTES", 1 << 10)
    values = np.r_[np.zeros(5000), 0.5]
    pd.DataFrame({"a": values.astype(object), "b": values}).to_csv(tmp_path / "x.csv", index=False)
    text = (tmp_path / "x.csv").read_text().replace(",0.0\n", ",0\n").replace("0.0,", "0,")
    (tmp_path / "x.csv").write_text(text)
    np.testing.assert_array_equal(whole(open_features(tmp_path / "x.csv"))[:, 0], values)


def test_an_empty_field_is_a_nan_that_is_named_when_it_is_scored(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,3\n4,,6\n")
    with pytest.raises(ValueError, match="NaN in row 1, column 1"):
        DICEDetector(HEAD).fit(open_features(tmp_path / "x.csv"))
    (tmp_path / "y.csv").write_text("a,label\n1,2\n4,\n")
    with pytest.raises(ValueError, match=r"y\.csv: column 'label' is empty in row 1"):
        whole(open_features(tmp_path / "y.csv", key="label"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, ">f4"])
def test_what_is_written_is_read_back(tmp_path, dtype):
    features = (X * 10).astype(dtype)
    save_features(tmp_path / "x.csv", features)
    rows = open_features(tmp_path / "x.csv")
    np.testing.assert_array_equal(whole(rows).astype(dtype), features)
    assert (tmp_path / "x.csv").read_text().splitlines()[0].replace('"', "") == (
        "feature_0,feature_1,feature_2"
    )


def test_only_a_matrix_of_features_is_written(tmp_path):
    with pytest.raises(ValueError, match="would be read as a feature; got features, labels"):
        save_features(tmp_path / "x.csv", X, labels=np.ones(300))
    with pytest.raises(ValueError, match=r"features has shape \(300,\), expected"):
        save_features(tmp_path / "x.csv", X[:, 0])
    assert not list(tmp_path.iterdir())


def test_a_pattern_reads_shards_and_a_folder_does_not(path, tmp_path):
    for n, part in enumerate(np.split(X, 3)):
        pd.DataFrame(part, columns=NAMES).to_csv(tmp_path / f"part-{n}.csv", index=False)
    rows = open_features(f"{tmp_path}/part-*.csv")
    np.testing.assert_array_equal(whole(rows), X)
    assert list(DICEDetector(HEAD).fit(rows).feature_names_in_) == NAMES
    with pytest.raises(FileNotFoundError, match="no feature files in"):
        open_features(tmp_path)
    save_features(tmp_path / "only.npy", X)  # beside it, the .csv files may be anything
    assert open_features(tmp_path).shape == (300, 3)
    pd.DataFrame(X, columns=NAMES[::-1]).to_csv(tmp_path / "part-3.csv", index=False)
    with pytest.raises(ValueError, match=r"part-0\.csv and part-3\.csv name other features"):
        open_features(f"{tmp_path}/part-*.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "its first line holds numbers, expected a header"),
        ("a;b\n1;2\n", "its first line is 'a;b', expected names with commas between them"),
        ("a\tb\n1\t2\n", "expected names with commas between them"),
        ("a,a\n1,2\n", "two columns are named 'a', expected different names"),
        (",a\n0,2\n", "column 0 has no name, as pandas writes the index of a table"),
        ("", "Empty CSV file"),
        ("a,b\n", "it has a header and no rows"),
        ("a,b\n1\n", "Expected 2 columns, got 1"),
        ("id\nx\n", "it has no column of numbers; its columns are id"),
        ("a,b\n1,\n", "column 'b' has no values in the first rows"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_features(tmp_path / "bad.csv")
    assert str(tmp_path / "bad.csv") in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"a\xff,b\n1,2\n")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.csv: 'utf-8' codec can't decode"):
        open_features(tmp_path / "bad.csv")


def test_text_among_numbers_names_the_column(tmp_path, monkeypatch):
    monkeypatch.setattr(_csv, "BLOCK_BYTES", 1 << 10)
    (tmp_path / "bad.csv").write_text("a,b\n" + "1,2\n" * 5000 + "1,two\n")
    with pytest.raises(ValueError, match=r"bad\.csv: .*invalid value 'two'"):
        whole(open_features(tmp_path / "bad.csv"))
