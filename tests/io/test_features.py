"""Feature files: every format, every kind of array, and every kind of damage."""

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("h5py")
pytest.importorskip("pyarrow")
pytest.importorskip("torch")
pytest.importorskip("zarr")

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from skdice import DICEDetector, LinearHead
from skdice.io import open_features, save_features, save_scores
from skdice.shaping import ReAct

FORMATS = [".npy", ".npz", ".safetensors", ".h5", ".hdf5", ".zarr", ".parquet", ".pt", ".pth"]
KEYED = [each for each in FORMATS if each != ".npy"]
RNG = np.random.default_rng(8)
# Every class keeps a weight at the default sparsity.
HEAD = LinearHead(2 * np.eye(4, 6) + RNG.uniform(0, 0.5, size=(4, 6)))
X = np.maximum(RNG.normal(size=(1000, 6)), 0)


def whole(rows):
    return np.asarray(rows[0 : rows.shape[0]])


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"features{request.param}"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8"])
def test_round_trip(path, dtype):
    features = (10 * X).astype(dtype)
    save_features(path, features)
    rows = open_features(path)
    assert rows.shape == features.shape
    assert np.dtype(rows.dtype) == dtype
    np.testing.assert_array_equal(whole(rows), features)
    np.testing.assert_array_equal(np.asarray(rows[990:1000]), features[990:])
    np.testing.assert_array_equal(np.asarray(rows[3:5]), features[3:5])  # backwards
    assert rows[7:7].shape == (0, 6)


@pytest.mark.parametrize(
    "features",
    [
        X.astype(">f4"),
        np.asfortranarray(X),
        X[::2, ::-1],
        X[:1],
        pytest.param(np.broadcast_to(X[:1], X.shape), id="read-only"),
    ],
)
def test_every_layout_is_written_alike(path, features):
    save_features(path, features)
    np.testing.assert_array_equal(whole(open_features(path)), features)


def test_zero_rows_are_written_read_and_refused_by_the_detector(path):
    save_features(path, X[:0])
    rows = open_features(path)
    assert rows.shape == (0, 6)
    assert whole(rows).shape == (0, 6)
    with pytest.raises(ValueError, match="0 sample"):
        DICEDetector(HEAD).fit(rows)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_file_gives_what_the_array_gives(path, dtype):
    features = X.astype(dtype)
    save_features(path, features)
    shaping = ReAct(quantile=0.8)
    expected = DICEDetector(HEAD, shaping=shaping, batch_size=64).fit(features)
    detector = DICEDetector(HEAD, shaping=shaping, batch_size=64).fit(open_features(path))
    np.testing.assert_array_equal(detector.mean_activation_, expected.mean_activation_)
    assert detector.shaping_.threshold_ == expected.shaping_.threshold_
    assert detector.offset_ == expected.offset_
    for n_jobs in (1, 2):
        detector.set_params(n_jobs=n_jobs)
        scores = detector.score_samples(open_features(path))
        np.testing.assert_array_equal(scores, expected.score_samples(features))
    assert detector.calibrate(open_features(path), 0.2).offset_ > expected.offset_
    parts = DICEDetector(HEAD).partial_fit(open_features(path))
    np.testing.assert_array_equal(parts.mask_, expected.mask_)
    y = np.where(np.arange(1000) % 7 == 0, -1, 1)
    np.testing.assert_allclose(
        DICEDetector(HEAD).fit(open_features(path), y).mean_activation_,
        features[y == 1].mean(axis=0, dtype=float),
        rtol=1e-12,
    )


@pytest.mark.parametrize("ending", KEYED)
def test_labels_are_stored_beside_the_features(tmp_path, ending):
    path, y = tmp_path / f"f{ending}", np.arange(1000) % 4
    save_features(path, X, labels=y)
    np.testing.assert_array_equal(whole(open_features(path)), X)
    np.testing.assert_array_equal(whole(open_features(path, key="labels")), y)
    with pytest.raises(ValueError, match=r"no array 'label'; it has features, labels"):
        open_features(path, key="label")
    with pytest.raises(ValueError, match="ids has 3 rows, the features have 1000"):
        save_features(path, X, ids=np.arange(3))


def test_npy_holds_one_array(tmp_path):
    with pytest.raises(ValueError, match=r"one array, got features, labels"):
        save_features(tmp_path / "f.npy", X, labels=X[:, 0])
    assert list(tmp_path.iterdir()) == []


def test_lazy_sources_of_other_libraries_are_taken_as_they_are(tmp_path):
    save_features(tmp_path / "f.h5", X)
    save_features(tmp_path / "f.zarr", X)
    expected = DICEDetector(HEAD).fit(X)
    with h5py.File(tmp_path / "f.h5") as file:
        assert DICEDetector(HEAD).fit(file["features"]).offset_ == expected.offset_
    group = zarr.open(tmp_path / "f.zarr", mode="r")
    assert DICEDetector(HEAD).fit(group["features"]).offset_ == expected.offset_
    with pytest.raises(ValueError, match=r"X has shape \(1000,\), expected \(n_samples, n_feat"):
        DICEDetector(HEAD).fit(open_labels(tmp_path))


def open_labels(folder):
    save_features(folder / "l.npz", X, labels=X[:, 0])
    np.savez_compressed(folder / "c.npz", labels=X[:, 0])
    return open_features(folder / "c.npz")


def test_bad_rows_in_a_file_are_named(path):
    bad = X.copy()
    bad[777, 5] = np.nan
    save_features(path, bad)
    with pytest.raises(ValueError, match="NaN in row 777, column 5"):
        DICEDetector(HEAD, batch_size=100).fit(open_features(path))


# What others write


def test_compressed_npz_is_streamed_and_column_major_too(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", X)
    rows = open_features(tmp_path / "c.npz")
    assert not isinstance(rows, np.ndarray)
    np.testing.assert_array_equal(whole(rows), X)
    np.savez_compressed(tmp_path / "f.npz", np.asfortranarray(X))
    np.testing.assert_array_equal(whole(open_features(tmp_path / "f.npz")), X)


def test_stored_npz_is_mapped(tmp_path):
    np.savez(tmp_path / "s.npz", features=X, labels=X[:, 0])
    rows = open_features(tmp_path / "s.npz")
    assert np.shares_memory(rows[:10], rows[5:10])  # views of one mapping
    np.testing.assert_array_equal(rows, X)


def test_the_array_that_can_be_meant(tmp_path):
    np.savez(tmp_path / "a.npz", penultimate=X, labels=X[:, 0])
    assert open_features(tmp_path / "a.npz").shape == (1000, 6)
    np.savez(tmp_path / "b.npz", one=X, two=X)
    with pytest.raises(ValueError, match=r"several arrays.*key=: one, two"):
        open_features(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", one=X[0], two=X[0])
    with pytest.raises(ValueError, match=r"no arrays that could be.*key=: one, two"):
        open_features(tmp_path / "c.npz")


def peak_of(function):
    """Return how far the resident memory of the process rises above its start, in MB."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    function()
    return (int(status.read_text().split("VmHWM:")[1].split()[0]) - before) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["fortran", "shards", ".pt", "bfloat16", ".npz", ".h5"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    features = np.zeros((600_000, 256), np.float32)  # 614 MB
    path = tmp_path / "f.npy"
    if kind == "fortran":
        np.save(path, np.asfortranarray(features))
    elif kind == "shards":
        path = tmp_path / "shards"
        path.mkdir()
        for number in range(3):
            np.save(path / f"{number}.npy", features[:200_000])
    elif kind == "bfloat16":
        path = tmp_path / "f.safetensors"
        save_torch({"x": torch.zeros(1_200_000, 256, dtype=torch.bfloat16)}, path)
    else:
        path = tmp_path / f"f{kind}"
        save_features(path, features)
    del features
    head = LinearHead(np.ones((2, 256)))
    rise = peak_of(lambda: DICEDetector(head, sparsity=0).partial_fit(open_features(path)))
    assert rise < 350


def test_outliers_in_a_stream_do_not_start_it_again(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "c.npz", np.tile(X, (20, 1)))
    rows = open_features(tmp_path / "c.npz")
    starts = []
    original = rows._start
    monkeypatch.setattr(rows, "_start", lambda: starts.append(1) or original())
    y = np.where(np.arange(20_000) % 5 == 0, -1, 1)
    DICEDetector(HEAD, batch_size=700).partial_fit(rows, y)
    assert len(starts) == 0


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_large_chunks_are_unpacked_once(tmp_path, ending):
    path = tmp_path / f"f{ending}"
    if ending == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=X, chunks=(400, 6), compression="gzip")
    else:
        zarr.create_array(path, data=X, chunks=(400, 6))
    rows = open_features(path)
    read = []
    original = rows._array

    class Counting:
        def __getitem__(self, where):
            read.append((where.start, where.stop))
            return original[where]

    rows._array = Counting()
    pieces = [rows[start : start + 70] for start in range(0, 1000, 70)]
    np.testing.assert_array_equal(np.concatenate(pieces), X)
    assert read == [(0, 400), (400, 800), (800, 1000)]


@pytest.mark.parametrize("ending", [".npz", ".h5", ".zarr", ".parquet"])
@pytest.mark.filterwarnings("ignore:.*Zarr V3 specification")
def test_ids_of_text_are_stored_beside_the_features(tmp_path, ending):
    path, ids = tmp_path / f"f{ending}", np.array([f"image {number}" for number in range(1000)])
    save_features(path, X, ids=ids)
    np.testing.assert_array_equal(whole(open_features(path, key="ids")), ids)
    np.testing.assert_array_equal(whole(open_features(path)), X)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_text_where_the_format_has_none(tmp_path, ending):
    with pytest.raises(ValueError, match=r"'ids' has dtype <U1, which"):
        save_features(tmp_path / f"f{ending}", X, ids=np.array(["a"] * 1000))
    with pytest.raises(ValueError, match="Python objects are not written"):
        save_features(tmp_path / "f.npy", X.astype(object))
    assert list(tmp_path.iterdir()) == []


def test_a_null_among_integers_is_refused(tmp_path):
    table = pa.table({"a": pa.array([1, None, 3]), "b": pa.array([1, 2, 3])})
    pq.write_table(table, tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="column 'a' has a null in row 1"):
        DICEDetector((np.ones((1, 2)), None)).fit(open_features(tmp_path / "n.parquet"))


def test_a_folder_of_parquet_files_that_is_named_like_one(tmp_path):
    (tmp_path / "out.parquet").mkdir()
    for number, part in enumerate(np.array_split(X, 3)):
        save_features(tmp_path / "out.parquet" / f"part-{number}.parquet", part)
    np.testing.assert_array_equal(whole(open_features(tmp_path / "out.parquet")), X)


def test_a_folder_that_is_not_a_store_is_not_replaced(tmp_path):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="it is a folder, and not a Zarr store"):
        save_features(tmp_path / "mine.zarr", X)
    assert (tmp_path / "mine.zarr" / "thesis.txt").read_text() == "years"
    save_features(tmp_path / "own.zarr", X)
    save_features(tmp_path / "own.zarr", X[:5])
    assert open_features(tmp_path / "own.zarr").shape == (5, 6)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.zarr", "own.zarr"]


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_bfloat16_becomes_float32(tmp_path, ending):
    tensor = torch.from_numpy(X).to(torch.bfloat16)
    path = tmp_path / f"b{ending}"
    if ending == ".pt":
        torch.save(tensor, path)
    else:
        save_torch({"x": tensor}, path)
    rows = open_features(path)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(whole(rows), tensor.float().numpy())


def test_our_safetensors_are_those_of_the_library(tmp_path):
    save_features(tmp_path / "f.safetensors", X, labels=np.arange(1000, dtype=np.int8))
    loaded = load_file(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(loaded["features"], X)
    save_file({"other": X.astype(np.float32)}, tmp_path / "g.safetensors")
    np.testing.assert_array_equal(open_features(tmp_path / "g.safetensors"), X.astype(np.float32))


def test_groups_and_nested_names(tmp_path):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["train/features"] = X
        file["train/labels"] = X[:, 0]
        file["note"] = "text is not offered"
    assert open_features(tmp_path / "g.h5").shape == (1000, 6)
    assert open_features(tmp_path / "g.h5", key="train/labels").shape == (1000,)
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("train/features", data=X)
    assert open_features(tmp_path / "g.zarr", key="train/features").shape == (1000, 6)
    zarr.save_array(tmp_path / "one.zarr", X)
    assert open_features(tmp_path / "one.zarr").shape == (1000, 6)
    torch.save({"epoch": 1, "train": {"x": torch.from_numpy(X)}}, tmp_path / "g.pt")
    assert open_features(tmp_path / "g.pt", key="train.x").shape == (1000, 6)


def test_parquet_columns(tmp_path):
    columns = {f"u{i}": X[:, i].astype(np.float32) for i in range(6)}
    pq.write_table(pa.table(columns), tmp_path / "wide.parquet", row_group_size=300)
    rows = open_features(tmp_path / "wide.parquet")
    assert (rows.shape, rows.dtype) == ((1000, 6), np.float32)
    np.testing.assert_array_equal(whole(rows), X.astype(np.float32))
    # A name is no number and is left out; a null is a row that is refused.
    table = pa.table(
        {"id": pa.array(["a", "b"]), "u": pa.array([1.0, None]), "v": pa.array([1.0, 2.0])}
    )
    pq.write_table(table, tmp_path / "null.parquet")
    head = LinearHead([[1.0, 1.0]])
    with pytest.raises(ValueError, match="NaN in row 1, column 0"):
        DICEDetector(head).fit(open_features(tmp_path / "null.parquet"))
    lists = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0]), 2)
    pq.write_table(pa.table({"a": lists, "b": lists}), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"name a column with key=: a, b"):
        open_features(tmp_path / "two.parquet")
    assert open_features(tmp_path / "two.parquet", key="b").shape == (1, 2)


def test_parquet_lists_are_rows(tmp_path):
    pd = pytest.importorskip("pandas")
    path = tmp_path / "embeddings.parquet"
    frame = pd.DataFrame({"id": range(1000), "embedding": list(X.astype(np.float32))})
    frame.to_parquet(path, row_group_size=300)
    rows = open_features(path)
    assert (rows.shape, rows.dtype) == ((1000, 6), np.float32)
    np.testing.assert_array_equal(whole(rows), X.astype(np.float32))
    np.testing.assert_array_equal(whole(open_features(path, key="embedding")), whole(rows))
    np.testing.assert_array_equal(whole(open_features(path, key="id")), np.arange(1000))
    expected = DICEDetector(HEAD).fit(X.astype(np.float32))
    assert DICEDetector(HEAD, batch_size=70).fit(rows).offset_ == pytest.approx(expected.offset_)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_(pa.float64(), 6)],
    ids=str,
)
def test_parquet_lists_of_every_type(tmp_path, kind):
    path = tmp_path / "l.parquet"
    values = X.tolist()
    values[777][5] = None
    table = pa.table({"text": pa.array([["a"]] * 1000), "x": pa.array(values, kind)})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match="NaN in row 777, column 5"):
        DICEDetector(HEAD, batch_size=100).fit(open_features(path))
    values[777] = None
    pq.write_table(pa.table({"x": pa.array(values, kind)}), path)
    with pytest.raises(ValueError, match=r"l\.parquet: column 'x' has a null in row 777"):
        whole(open_features(path))
    pq.write_table(pa.table({"x": pa.array([], kind)}), path)
    assert open_features(path).shape[0] == 0


def test_parquet_lists_of_unequal_length_name_the_row(tmp_path):
    values = [*X[:700].tolist(), [1.0, 2.0]]
    pq.write_table(pa.table({"x": values}), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match="'x' has a list of 2 values in row 700, expected 6 as in"):
        whole(open_features(tmp_path / "l.parquet"))
    values = [[1, 2], [3, None]]
    pq.write_table(pa.table({"x": values}), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match="column 'x' has a null in row 1"):
        whole(open_features(tmp_path / "l.parquet"))


def test_a_closed_gap_between_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    parts = np.array_split(X, [10, 10, 400])  # one of them empty
    for ending, (number, part) in zip(
        [".npy", ".npz", ".safetensors", ".parquet"], enumerate(parts), strict=True
    ):
        save_features(folder / f"part-{number}{ending}", part)
    (folder / ".hidden.npy").write_bytes(b"")
    (folder / "README").write_text("not a shard")
    for source in (folder, str(folder / "part-*"), str(folder)):
        rows = open_features(source)
        assert rows.shape == X.shape
        np.testing.assert_array_equal(whole(rows), X)
        np.testing.assert_array_equal(rows[5:405], X[5:405])
        assert DICEDetector(HEAD, batch_size=33).fit(rows).offset_ == pytest.approx(
            DICEDetector(HEAD).fit(X).offset_, rel=1e-12
        )


def test_more_shards_than_may_be_open(tmp_path):
    for number, part in enumerate(np.array_split(X, 50)):
        save_features(tmp_path / f"{number:03}.h5", part, labels=part[:, 0])
    np.testing.assert_array_equal(whole(open_features(tmp_path)), X)
    np.testing.assert_array_equal(whole(open_features(tmp_path, key="labels")), X[:, 0])


def test_shards_without_leading_zeros_are_a_warning(tmp_path):
    for number in range(11):
        save_features(tmp_path / f"part-{number}.npy", X[number : number + 1])
    with pytest.warns(UserWarning, match=r"part-0.npy, part-1.npy, \.\.\.: number the files"):
        assert whole(open_features(tmp_path)).shape == (11, 6)


@pytest.mark.parametrize("index", [5, slice(None, None, 2), slice(None, None, -1), [1, 2]])
def test_lazy_rows_are_read_by_slices_of_consecutive_ones(tmp_path, index):
    save_features(tmp_path / "f.parquet", X)
    rows = open_features(tmp_path / "f.parquet")
    with pytest.raises(TypeError, match="by slices of consecutive ones"):
        rows[index]
    np.testing.assert_array_equal(np.asarray(rows), X)
    np.testing.assert_array_equal(rows[-3:], X[-3:])


def test_the_name_of_the_features_is_taken(tmp_path):
    with pytest.raises(ValueError, match="'features' is the name of X"):
        save_features(tmp_path / "f.npz", X, features=X)


def test_a_path_is_not_a_matrix(tmp_path):
    for path in ("train.npy", tmp_path / "train.npy"):
        with pytest.raises(TypeError, match=r"train\.npy': open it with skdice\.io\.open_f"):
            DICEDetector(HEAD).fit(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_are_sources_of_rows(dtype):
    tensor = torch.from_numpy(X).to(dtype).requires_grad_()
    expected = DICEDetector(HEAD).fit(tensor.detach().to(torch.float64).numpy())
    detector = DICEDetector(HEAD).fit(tensor)
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-12)
    np.testing.assert_allclose(
        detector.score_samples(tensor),
        expected.score_samples(tensor.detach().to(torch.float64).numpy()),
        rtol=1e-5,
    )


def test_shards_that_do_not_fit(tmp_path):
    save_features(tmp_path / "a.npy", X)
    save_features(tmp_path / "b.npy", X[:, :3])
    with pytest.raises(ValueError, match=r"a.npy has shape \(1000, 6\), b.npy has shape"):
        open_features(tmp_path)


def test_mixed_dtypes_of_shards_become_the_widest(tmp_path):
    save_features(tmp_path / "a.npy", X.astype(np.float32))
    save_features(tmp_path / "b.npy", X)
    assert open_features(tmp_path).dtype == whole(open_features(tmp_path)).dtype == np.float64


# Damage


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"nothing of the kind", b"PK\x03\x04 cut", b"\x93NUMPY\x01"]
)
def test_damaged_files(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read .*{path.name}: "):
        open_features(path)


@pytest.mark.parametrize("cut", [0.5, 0.98])
def test_truncated_files(path, cut):
    save_features(path, X)
    if path.is_dir():
        chunk = max(path.rglob("c/*/*"), key=lambda file: file.stat().st_size)
        chunk.write_bytes(chunk.read_bytes()[: int(cut * chunk.stat().st_size)])
    else:
        path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(ValueError, match="cannot read"):
        DICEDetector(HEAD).fit(open_features(path))


def test_a_compressed_npz_whose_data_was_altered(tmp_path):
    path = tmp_path / "c.npz"
    np.savez_compressed(path, X)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*c\.npz: "):
        DICEDetector(HEAD).fit(open_features(path))


def test_files_that_are_not_there(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        open_features(path)
    with pytest.raises(FileNotFoundError, match="no feature files"):
        open_features(path.parent)
    with pytest.raises(FileNotFoundError, match="no feature files"):
        open_features(path.parent / "*.npy")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        save_features(path.parent / "nowhere" / path.name, X)


def test_unknown_endings(tmp_path):
    (tmp_path / "f.txt").write_text("1,2")
    with pytest.raises(ValueError, match=r"f\.txt: expected .*\.npy, \.npz"):
        open_features(tmp_path / "f.txt")
    with pytest.raises(ValueError, match=r"cannot write .*f\.txt: expected"):
        save_features(tmp_path / "f.txt", X)


class Payload:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self):
        return (open, (str(Payload.mark), "w"))


@pytest.mark.parametrize("name", ["e.npy", "e.npz", "e.pt", "e.pth", "e.safetensors", "e.h5"])
@pytest.mark.parametrize("kind", ["pickle", "object array", "torch"])
def test_nothing_is_executed(tmp_path, name, kind):
    Payload.mark = tmp_path / "mark"
    path, evil = tmp_path / name, np.array([[Payload()]], dtype=object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif kind == "torch":
        torch.save({"features": Payload()}, path)
    elif name.endswith(".npz"):
        np.savez(path, evil)
    else:
        buffer = io.BytesIO()
        np.save(buffer, evil)
        path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        open_features(path)
    assert not Payload.mark.exists()


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("consolidated", [False, True])
def test_a_zarr_store_that_would_unpickle_is_refused(tmp_path, where, consolidated):
    Payload.mark = tmp_path / "mark"
    store = tmp_path / "e.zarr"
    store.mkdir()
    codec = {"id": "pickle", "protocol": 5}
    array = {
        "zarr_format": 2,
        "shape": [1, 1],
        "chunks": [1, 1],
        "dtype": "<f8",
        "order": "C",
        "fill_value": 0,
        "compressor": None,
        "filters": None,
    } | {where: [codec] if where == "filters" else codec}
    if consolidated:
        (store / ".zgroup").write_text('{"zarr_format": 2}')
        document = {"metadata": {"x/.zarray": array}, "zarr_consolidated_format": 1}
        (store / ".zmetadata").write_text(json.dumps(document))
    else:
        (store / ".zarray").write_text(json.dumps(array))
    (store / "0.0").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="codec 'pickle' is refused because it could run code"):
        open_features(store)
    assert not Payload.mark.exists()


def test_a_zip_that_claims_more_than_it_has(tmp_path):
    path = tmp_path / "bomb.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"arr_0.npy has \d+ bytes, its header asks for \d+"):
        open_features(path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    import sys

    for name, module, extra in (
        ("f.h5", "h5py", "hdf5"),
        ("f.zarr", "zarr", "zarr"),
        ("f.parquet", "pyarrow", "parquet"),
        ("f.pt", "torch", "torch"),
    ):
        save_features(tmp_path / name, X)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"pip install 'skdice\[{extra}\]'"):
            open_features(tmp_path / name)
        with pytest.raises(ImportError, match=rf"pip install 'skdice\[{extra}\]'"):
            save_features(tmp_path / name, X)


# Scores


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_written_block_by_block(tmp_path, dtype):
    detector = DICEDetector(HEAD, batch_size=64).fit(X.astype(dtype))
    assert save_scores(tmp_path / "s.npy", detector, X.astype(dtype)) == 1000
    written = np.load(tmp_path / "s.npy")
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, detector.score_samples(X.astype(dtype)))


def test_a_bad_row_leaves_the_old_scores(tmp_path):
    detector = DICEDetector(HEAD, batch_size=64).fit(X)
    bad = X.copy()
    bad[900, 0] = np.inf
    names = ["s.csv", "s.jsonl", "s.npy", "s.parquet"]
    for name in names:
        (tmp_path / name).write_text("old")
        with pytest.raises(ValueError, match="row 900"):
            save_scores(tmp_path / name, detector, bad)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    with pytest.raises(ValueError, match=r"s\.txt: expected an ending of \.npy, \.csv"):
        save_scores(tmp_path / "s.txt", detector, X)
