"""Every usual kind of data either works or is refused in skdice's own words."""

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from skdice.extraction import extract_features

ROWS = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 9, (150, 5))
MASK = np.random.default_rng(2).integers(0, 2, (150, 5))
LABELS = np.arange(150) % 3


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.body(x).relu())


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        return self.fc((self.embedding(input_ids) * attention_mask[..., None]).mean(1))


class Samples(Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, n):
        return self.inputs[n], self.labels[n]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(ROWS, LABELS, strict=True)


class Table:
    """A data set of Hugging Face: columns, of which some are made tensors."""

    def __init__(self, columns, kept=None):
        self._columns, self._kept = columns, kept
        self.column_names = list(columns)

    def with_format(self, kind, columns):
        assert kind == "torch"
        return Table(self._columns, columns)

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, rows):
        batch = {}
        for name in self._kept:
            parts = [torch.as_tensor(value) for value in self._columns[name][rows]]
            same = len({part.shape for part in parts}) == 1
            batch[name] = torch.stack(parts) if same else parts
        return batch


def expected_rows():
    return extract_features(Rows(), torch.from_numpy(ROWS)).features


@pytest.mark.parametrize(
    ("data", "has_labels"),
    [
        (ROWS, False),
        (ROWS.astype(np.float64), False),
        (np.asfortranarray(ROWS), False),
        (ROWS.astype(">f4"), False),
        (TensorDataset(torch.from_numpy(ROWS)), False),
        (TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(LABELS)), True),
        (Samples(ROWS, LABELS), True),
        (Stream(), True),
        ([(ROWS[:100], LABELS[:100]), (ROWS[100:], list(LABELS[100:]))], True),
        ([((ROWS,), LABELS)], True),
        ([({"x": ROWS}, LABELS)], True),
        ({"x": ROWS, "label": LABELS}, True),
    ],
)
def test_rows_of_every_kind(data, has_labels):
    extraction = extract_features(Rows(), data)
    np.testing.assert_allclose(extraction.features, expected_rows(), rtol=1e-5, atol=1e-6)
    if has_labels:
        np.testing.assert_array_equal(extraction.labels, LABELS)
    else:
        assert extraction.labels is None


def test_rows_of_a_memory_map(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    np.testing.assert_allclose(
        extract_features(Rows(), rows).features, expected_rows(), rtol=1e-5, atol=1e-6
    )


def test_small_integers_become_token_ids_and_bytes_stay():
    class Kind(Rows):
        def forward(self, x):
            self.kind = x.dtype
            return super().forward(x.float())

    model = Kind()
    for given, kind in (("int8", torch.int64), ("uint16", torch.int64), ("uint8", torch.uint8)):
        extract_features(model, np.ones((4, 6), given))
        assert model.kind == kind


@pytest.mark.parametrize(
    "data",
    [
        {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS},
        {"input_ids": torch.from_numpy(IDS), "attention_mask": MASK.tolist(), "labels": LABELS},
        Table({"text": ["a"] * 150, "input_ids": IDS, "attention_mask": MASK, "label": LABELS}),
        [((IDS, MASK), LABELS)],
    ],
)
def test_several_inputs_and_labels(data):
    extraction = extract_features(Text(), data)
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, (IDS, MASK, LABELS))), 64)
    named = (
        {"input_ids": ids, "attention_mask": mask, "labels": labels} for ids, mask, labels in loader
    )
    expected = extract_features(Text(), named)
    np.testing.assert_allclose(extraction.features, expected.features, rtol=1e-6)
    np.testing.assert_array_equal(extraction.labels, LABELS)


class Frame:
    iloc, shape, dtype = None, (2, 2), None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("rows.npy", TypeError, r"data is the str 'rows\.npy'.*open the file first"),
        (3, TypeError, r"data is a int, expected a DataLoader"),
        (Frame(), TypeError, r"data is a Frame.*to_numpy"),
        ([["a", "b"]], TypeError, r"a batch holds a str, expected tensors"),
        ([1.0, 2.0], TypeError, r"a batch holds a float, expected tensors"),
        ({"x": ROWS, "y": ROWS[:3]}, ValueError, r"{'x': 150, 'y': 3} rows.*equally many"),
        ({"x": [[1], [1, 2]]}, ValueError, r"rows of 'x' have different lengths: pad them"),
        ({"train": Table({"x": ROWS})}, TypeError, r"mapping of data sets \(train\)"),
        (Table({"text": ["a"]}), TypeError, r"no column .*\(text\).*model \(x\)"),
        (Table({"x": [[1], [1, 2]]}), ValueError, r"column 'x' do not make one tensor: pad"),
        (Samples([object()], [0]), TypeError, r"a sample of the data set is a tuple.*transform"),
        (
            DataLoader(TensorDataset(*map(torch.from_numpy, (IDS, MASK, LABELS)))),
            ValueError,
            r"a batch is a list of 3.*inputs and which are labels by a mapping",
        ),
        ([(IDS, MASK)], ValueError, r"second item of a batch has the shape \(150, 5\)"),
    ],
)
def test_other_data_is_refused_in_own_words(data, error, message):
    with pytest.raises(error, match=message):
        extract_features(Rows(), data)


def test_a_stream_of_a_table_is_refused():
    class Streamed:
        column_names = ("x",)
        with_format = None

    with pytest.raises(TypeError, match="read as a stream: give a DataLoader"):
        extract_features(Rows(), Streamed())
