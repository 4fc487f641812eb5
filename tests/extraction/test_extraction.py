import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skdice import DICEDetector, LinearHead
from skdice.extraction import extract_features, iterate_features
from skdice.extraction._data import digest_of
from skdice.extraction._store import PartialStore
from skdice.io import open_features

IMAGES = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 5


class Torchvision(nn.Module):
    """A backbone with batch normalisation and dropout, pooled and flattened, then `fc`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.squeeze = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)
        self.auxiliary = nn.Linear(6, 5)  # registered last, and not called in evaluation

    def features(self, x):
        h = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return nn.functional.dropout(torch.relu(self.squeeze(h)), 0.5, self.training)

    def forward(self, x):
        h = self.features(x)
        return (self.fc(h), self.auxiliary(h)) if self.training else self.fc(h)


class Timm(nn.Module):
    """The head is no attribute of its own, and is followed by nothing."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(
            OrderedDict(flatten=nn.Flatten(), drop=nn.Dropout(), fc=nn.Linear(6, 5))
        )

    def forward(self, x):
        return self.head(self.stem(x))


class Convolutional(nn.Module):
    """A 1x1 convolution classifies every position; the logits are their mean."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.classifier = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.classifier(self.body(x)).mean((2, 3))


class SequenceClassifier(nn.Module):
    """Takes keyword arguments and returns an object with logits, as Hugging Face's do."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.dense = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 5)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        pooled = torch.tanh(self.dense(hidden.mean(1)))
        return SimpleNamespace(loss=None, logits=self.classifier(pooled), hidden=hidden)


class HeadFirst(nn.Module):
    """The head is not the last call: another layer runs after it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 5)
        self.after = nn.Linear(192, 5)

    def forward(self, x):
        h = torch.relu(x.flatten(1))
        logits = self.head(h)
        self.after(h)
        return logits.log_softmax(1)


def sequential():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5))


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (Torchvision, "fc"),
        (Timm, "head.fc"),
        (Convolutional, "classifier"),
        (HeadFirst, "head"),
        (sequential, "3"),
    ],
)
def test_features_and_head_give_the_logits(build, layer):
    torch.manual_seed(0)
    model = build()
    extraction = extract_features(model, DataLoader(TensorDataset(IMAGES, LABELS), 16))
    assert extraction.layer == layer
    assert extraction.features.dtype == np.float32
    np.testing.assert_array_equal(extraction.labels, LABELS.numpy())
    logits = extraction.features @ extraction.head.weight.T + extraction.head.bias
    with torch.no_grad():
        expected = model.eval()(IMAGES).log_softmax(1).numpy()
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    named = extract_features(model, IMAGES, layer=layer)
    np.testing.assert_allclose(named.features, extraction.features, rtol=1e-5, atol=1e-6)
    assert named.labels is None


def test_mappings_of_keyword_arguments():
    torch.manual_seed(0)
    model = SequenceClassifier()
    batches = [
        {
            "input_ids": torch.randint(0, 11, (4, 7)),
            "attention_mask": torch.ones(4, 7),
            "labels": torch.full((4,), number),
        }
        for number in range(3)
    ]
    extraction = extract_features(model, batches)
    assert extraction.layer == "classifier"
    assert extraction.features.shape == (12, 6)
    np.testing.assert_array_equal(extraction.labels, np.repeat([0, 1, 2], 4))


def test_the_model_is_left_as_it_was():
    model = Torchvision()
    model.train()
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    first = extract_features(model, IMAGES)
    second = extract_features(model, IMAGES)
    np.testing.assert_array_equal(first.features, second.features)
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_after_an_exception_the_model_is_as_it_was():
    model = Torchvision().train()

    def batches():
        yield IMAGES[:8]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="disk is gone"):
        extract_features(model, batches())
    with pytest.raises(RuntimeError):
        extract_features(model, [torch.zeros(2, 7, 8, 8)])
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())


def test_a_model_that_cannot_be_moved_is_as_it_was():
    model = Torchvision().train()
    model.fc.to("meta")
    with pytest.raises(ValueError, match="spread over several devices"):
        extract_features(model, IMAGES, device="meta")
    assert all(module.training for module in model.modules())
    model = Torchvision().eval().train()
    model.bn.running_mean = model.bn.running_mean.to("meta")
    with pytest.raises(ValueError, match="spread over several devices"):
        extract_features(model, IMAGES, device="meta")
    assert model.training
    assert model.fc.weight.device.type == "cpu"


def test_what_a_model_keeps_of_a_batch_can_be_trained_with_afterwards():
    class Keeping(Torchvision):
        scale = None

        def forward(self, x):
            if self.scale is None:  # as rotary embeddings and anchors are kept
                self.scale = torch.full((1,), 2.0)
            return super().forward(x * self.scale)

    model = Keeping()
    extract_features(model, IMAGES)
    model(IMAGES.clone().requires_grad_())[0].sum().backward()
    assert model.conv.weight.grad is not None


def test_a_detector_fitted_while_extracting():
    model = Torchvision().eval()
    detector = DICEDetector(LinearHead.from_torch(model.fc), sparsity=0.1)
    for features, _ in iterate_features(model, DataLoader(TensorDataset(IMAGES, LABELS), 16)):
        detector.partial_fit(features)
    extraction = extract_features(model, IMAGES)
    expected = DICEDetector(extraction.head, sparsity=0.1).fit(extraction.features)
    np.testing.assert_allclose(detector.mean_activation_, expected.mean_activation_, rtol=1e-6)


def test_an_iteration_that_is_dropped_leaves_the_model_as_it_was():
    model = Torchvision().train()
    iteration = iterate_features(model, IMAGES)
    next(iteration)
    assert not model.training
    iteration.close()
    assert model.training


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".h5"])
def test_into_a_file(tmp_path, ending, dtype):
    model, path = Torchvision(), tmp_path / f"train{ending}"
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 16)
    extraction = extract_features(model, loader, out=path, dtype=dtype)
    expected = extract_features(model, loader, dtype=dtype)
    rows = open_features(path)
    assert rows.dtype == expected.features.dtype
    np.testing.assert_array_equal(np.asarray(rows[0:50]), expected.features)
    np.testing.assert_array_equal(extraction.labels, LABELS.numpy())
    detector = DICEDetector(extraction.head, sparsity=0).fit(extraction.features)
    assert detector.n_samples_seen_ == 50
    labels = tmp_path / "train.labels.npy" if ending == ".npy" else path
    key = None if ending == ".npy" else "labels"
    np.testing.assert_array_equal(np.asarray(open_features(labels, key=key)[0:50]), LABELS.numpy())
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_extraction_goes_on(tmp_path):
    torch.manual_seed(0)
    model, path = Torchvision(), tmp_path / "train.npz"
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 8)
    ran = []
    model.register_forward_pre_hook(lambda module, given: ran.append(len(given[0])))

    def interrupted():
        for number, batch in enumerate(loader):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        extract_features(model, interrupted(), out=path)
    assert not path.exists()
    # What was written after the last state that counts is cut off.
    with (tmp_path / "train.npz.partial" / "features").open("ab") as file:
        file.write(b"half a batch")
    ran.clear()
    extraction = extract_features(model, loader, out=path)
    assert sum(ran) == 50 - 24
    assert extraction.layer == "fc"
    expected = extract_features(model, loader)
    np.testing.assert_array_equal(np.asarray(extraction.features[0:50]), expected.features)
    np.testing.assert_array_equal(extraction.labels, expected.labels)


def test_an_extraction_interrupted_after_its_last_batch_goes_on(tmp_path, monkeypatch):
    model, path = Torchvision(), tmp_path / "train.npy"

    def interrupted(store):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialStore, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract_features(model, IMAGES, out=path)
    extraction = extract_features(model, IMAGES, out=path)
    expected = extract_features(model, IMAGES)
    np.testing.assert_array_equal(np.asarray(extraction.features[0:50]), expected.features)
    assert extraction.head == expected.head


def test_an_interrupted_extraction_of_something_else_is_refused(tmp_path):
    path = tmp_path / "train.npy"
    dataset = TensorDataset(IMAGES, LABELS)

    def two():
        yield from list(DataLoader(dataset, 8))[:2]
        raise KeyboardInterrupt

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Torchvision(), two(), out=path)
    with pytest.raises(ValueError, match="the loader shuffles"):
        extract_features(Torchvision(), DataLoader(dataset, 8, shuffle=True), out=path)
    with pytest.raises(ValueError, match="interrupted extraction of something else"):
        extract_features(Torchvision(), DataLoader(dataset, 8), out=path)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(192, 5), nn.Linear(192, 5)

    def forward(self, x):
        return self.left(x.flatten(1)), self.right(x.flatten(1))


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x):
        return self.fc(x.flatten(1)) ** 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 192)
        self.decoder = nn.Linear(192, 5, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(x.flatten(1))


class PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(x)


def quantised():
    model = sequential()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("build", "layer", "error", "message"),
    [
        (TwoHeads, None, ValueError, r"several layers give outputs.*layer=: left, right"),
        (Squared, None, ValueError, r"no layer's output is the output.*layer=: fc"),
        (Squared, "fc", ValueError, r"layer 'fc' give logits that are \d+ % off the output"),
        (Tied, None, ValueError, r"'decoder' shares its weight with embedding"),
        (quantised, None, ValueError, "no Linear or 1x1 Conv2d.*quantised"),
        (PerToken, "fc", ValueError, r"input of the layer 'fc' has shape \(50, 3, 8, 8\)"),
        (Torchvision, "head", ValueError, r"no layer 'head'; candidates: auxiliary, fc, squeeze"),
        (Torchvision, "bn", TypeError, r"'bn' is a BatchNorm2d, expected a Linear"),
        (Torchvision, "auxiliary", ValueError, r"'auxiliary' ran 0 times"),
        (lambda: "model", None, TypeError, "torch.nn.Module, got str"),
    ],
)
def test_ambiguous_models_are_refused_with_the_candidates(build, layer, error, message):
    with pytest.raises(error, match=message):
        extract_features(build(), [IMAGES], layer=layer)


def test_a_layer_that_is_named_may_share_its_weight():
    assert extract_features(Tied(), IMAGES, layer="decoder").layer == "decoder"


@pytest.mark.parametrize("data", [[], IMAGES[:0].split(1)[1:]])
def test_no_data(tmp_path, data):
    for out in (None, tmp_path / "f.npy"):
        with pytest.raises(ValueError, match="the data has no batches"):
            extract_features(Torchvision(), data, out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "after",
    [
        lambda logits: logits,
        lambda logits: logits.float(),
        lambda logits: logits.softmax(1),
        lambda logits: logits.float().softmax(1),
        lambda logits: logits.float().log_softmax(1).half(),
    ],
)
def test_the_head_of_a_half_precision_model_is_found_whatever_it_returns(dtype, after):
    class Half(Torchvision):
        def forward(self, x):
            return after(self.fc(self.features(x)))

    torch.manual_seed(0)
    model = Half().eval()
    assert extract_features(model.to(dtype), IMAGES.to(dtype)).layer == "fc"
    with torch.autocast("cpu", dtype=dtype):
        assert extract_features(model.float(), IMAGES).layer == "fc"


def test_bfloat16_models_give_float32():
    model = sequential().to(torch.bfloat16)
    extraction = extract_features(model, IMAGES.to(torch.bfloat16))
    assert extraction.features.dtype == extraction.head.weight.dtype == np.float32


class Stops(list):
    """Batches of which the one at a place is never reached."""

    def __init__(self, batches, place):
        super().__init__(batches)
        self.place = place

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == self.place:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X.split(8),
        lambda X: (X + 1e-3).split(4),
        lambda X: X.flip(0).split(4),
        lambda X: X[:4].split(4),
        lambda X: X.double().split(4),
    ],
    ids=["larger batches", "other values", "another order", "fewer", "another dtype"],
)
def test_an_interrupted_extraction_goes_on_with_the_same_inputs_only(change, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    X = torch.randn(24, 6)
    with pytest.raises(KeyboardInterrupt):
        extract_features(model, Stops(X.split(4), 3), out=tmp_path / "x.npy")
    with pytest.raises(ValueError, match="interrupted extraction of other inputs, or in batches"):
        extract_features(model.to(change(X)[0].dtype), change(X), out=tmp_path / "x.npy")
    model.float()
    found = extract_features(model, X.split(4), out=tmp_path / "x.npy")
    np.testing.assert_array_equal(
        np.asarray(found.features), extract_features(model, X.split(4)).features
    )


def test_features_beyond_a_narrower_dtype_are_refused(tmp_path):
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
    X = torch.tensor([[1.0, 7e4]])
    for out in (None, tmp_path / "x.npy"):
        with pytest.raises(ValueError, match="a feature is 70000, which float16 does not hold"):
            extract_features(model, X, out=out, dtype="float16")


def test_the_name_of_the_file_is_checked_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*x.doc: expected an ending"):
        extract_features(nn.Linear(2, 3), torch.ones(3, 2), out=tmp_path / "x.doc")
    assert not list(tmp_path.iterdir())


def test_a_digest_sees_every_column_of_wide_inputs():
    X = torch.zeros(4099, 2048)
    before = digest_of(X, "")
    for column in (1, 1000, 2047):
        changed = X.clone()
        changed[:, column] = 1
        assert digest_of(changed, "") != before
