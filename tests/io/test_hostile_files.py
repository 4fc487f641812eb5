"""Files that claim what they do not have: short clear errors that name the file."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from skdice import LinearHead
from skdice.io import open_features, save_features

X = np.random.default_rng(4).uniform(size=(30, 3))


def npy(shape, dtype="<f8", content=b""):
    """Return the bytes of a .npy file with this header."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def refuse(path, message):
    """Check that every reader refuses the file with a short message that names it."""
    for read in (open_features, LinearHead.from_file):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_rows_without_values_are_refused(tmp_path, compression):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weight.npy", npy((2**62, 0)))
    assert path.stat().st_size < 400
    refuse(path, r"x\.npz: it has shape \(4611686018427387904, 0\): its rows have no values")
    with pytest.raises(ValueError, match=r"features has shape \(30, 0\): its rows have no values"):
        save_features(tmp_path / "y.npy", X[:, :0])


def test_a_single_value_is_refused_in_a_file_and_among_shards(tmp_path):
    np.save(tmp_path / "a.npy", X[0, 0])
    message = r"cannot read .*a\.npy: it holds a single value, expected an array of rows"
    with pytest.raises(ValueError, match=message):
        open_features(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=message):
        open_features(tmp_path)
    with pytest.raises(ValueError, match="features holds a single value"):
        save_features(tmp_path / "b.npy", np.float64(3))


@pytest.mark.parametrize("sign", ["-", "(", "[", "~"])
def test_a_header_that_python_cannot_parse(tmp_path, sign):
    text = sign.encode() * 9900
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*x\.npy: ") as caught:
        open_features(tmp_path / "x.npy")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("n_rows", [2**50, 2**62, 2**63, 2**70])
def test_a_zarr_array_of_more_rows_than_can_exist(tmp_path, n_rows):
    pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    save_features(path, X)
    document = json.loads((path / "features" / "zarr.json").read_text())
    document["shape"][0] = n_rows
    (path / "features" / "zarr.json").write_text(json.dumps(document))
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(ValueError, match=rf"x\.zarr: it has the impossible shape \({n_rows}, 3\)"):
        open_features(path)


def test_blosc_is_refused_because_it_crashes_on_damaged_chunks(tmp_path):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=X, compressors=zarr.codecs.BloscCodec())
    with pytest.raises(ValueError, match=r"its codec 'blosc' is refused.*open it with zarr\.open"):
        open_features(path)
    np.testing.assert_array_equal(zarr.open(path, mode="r")[:], X)


def test_a_negative_number_of_rows_in_parquet_names_the_file(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    save_features(path, X)
    # The number is the field before the row groups, as a zigzag varint: 30 is 60, -30 is 59.
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = [at for at in range(footer, len(content)) if content[at] == 60]
    for place in places:
        changed = bytearray(content)
        changed[place] = 59
        path.write_bytes(changed)
        try:
            n_rows = pq.ParquetFile(path).metadata.num_rows
        except Exception:  # another number than that of the rows
            continue
        if n_rows == -30:
            break
    assert n_rows == -30
    with pytest.raises(ValueError, match=r"cannot read .*x\.parquet: its number of rows is -30"):
        open_features(path)


def test_text_in_hdf5_is_read_only_by_its_key(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["values"] = X
        file["ids"] = ["a"] * 30
        file["more"] = ["b"] * 30
    read = []
    original = h5py.Dataset.asstr
    monkeypatch.setattr(
        h5py.Dataset, "asstr", lambda self: read.append(self.name) or original(self)
    )
    assert open_features(path).shape == (30, 3)
    with pytest.raises(ValueError, match="it has ids, more, values"):
        open_features(path, key="other")
    assert read == []
    assert open_features(path, key="ids").shape == (30,)
    assert read == ["/ids"]


def test_messages_stay_short_whatever_the_names_in_the_file(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{f"{'long' * 500}{number}.weight": X for number in range(100)})
    for read in (open_features, LinearHead.from_file):
        with pytest.raises(ValueError, match=r"and 88 more|could be the features") as caught:
            read(path)
        assert len(str(caught.value)) < 1200 + len(str(path))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3)])
def test_column_major_arrays_of_more_axes_keep_their_order(tmp_path, compressed, kernel):
    path, weight = tmp_path / "x.npz", np.random.default_rng(0).random((4, 3, *kernel))
    (np.savez_compressed if compressed else np.savez)(path, weight=np.asfortranarray(weight))
    np.testing.assert_array_equal(np.asarray(open_features(path)[1:3]), weight[1:3])
    if kernel == (1, 1):
        np.testing.assert_array_equal(LinearHead.from_file(path).weight, weight[..., 0, 0])


def test_a_shape_that_claims_more_than_a_process_can_count(tmp_path):
    path = tmp_path / "x.npy"
    for shape in ((2**63, 1), (2**31, 2**33), (-1, 3)):
        path.write_bytes(npy(shape))
        with pytest.raises(ValueError, match=r"cannot read .*x\.npy: "):
            open_features(path)
