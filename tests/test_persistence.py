import hashlib
import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import skops.io
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

import skdice
from skdice import DICEDetector, LinearHead
from skdice.io import save_features
from skdice.shaping import ASH, VRA, ReAct, Scale


@pytest.fixture
def path(tmp_path):
    return tmp_path / "detector.safetensors"


def document_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["skdice"])


def rewrite(path, change=None, arrays=None, digest=True):
    """Write a detector file anew with a changed document, with a digest that fits it or not."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path) | (arrays or {})
    document = json.loads(metadata["skdice"])
    if change:
        change(document)
    text = json.dumps(document)
    sha = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        sha.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        sha.update(array.tobytes())
    new = {"skdice": text, "sha256": sha.hexdigest() if digest else metadata["sha256"]}
    save_file(tensors, path, new)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"sparsity": 0, "score_func": "gen", "contamination": 0.3, "batch_size": 7, "n_jobs": 2},
        {"sparsity": np.float64(0.3), "shaping": ReAct(quantile=0.5)},
        {"shaping": ReAct(threshold=np.inf)},
        {"shaping": VRA(0.1, 0.8)},
        {"shaping": VRA(alpha=0.1, beta=1)},
        {"shaping": ASH(0.5)},
        {"shaping": Scale(0.5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bit_survives(small, path, parameters, dtype):
    head, X = small
    X = X.astype(dtype)
    saved = DICEDetector(LinearHead(head.weight.astype(dtype), head.bias), **parameters).fit(X)
    skdice.save(saved, path)
    loaded = skdice.load(path)
    assert loaded.offset_.hex() == saved.offset_.hex()
    assert loaded.contribution_threshold_.hex() == saved.contribution_threshold_.hex()
    for name in ("mean_activation_", "mask_", "coef_", "intercept_"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()
    assert vars(loaded).keys() == vars(saved).keys()
    assert loaded.head == saved.head
    np.testing.assert_array_equal(loaded.decision_function(X), saved.decision_function(X))
    before, after = ({**each.get_params(), "shaping": None} for each in (saved, loaded))
    assert before == after
    # And it is a detector like any other: it goes on, and can be fitted anew.
    assert loaded.fit(X).offset_ == saved.offset_
    skdice.save(loaded, path)
    assert skdice.load(path).offset_ == saved.offset_


def test_partial_fit_goes_on_after_loading(small, path):
    head, X = small
    saved = DICEDetector(head).partial_fit(X[:77])
    skdice.save(saved, path)
    loaded = skdice.load(path)
    with pytest.raises(NotFittedError, match="calibrate"):
        loaded.predict(X)
    saved.partial_fit(X[77:])
    loaded.partial_fit(X[77:])
    assert loaded.mean_activation_.tobytes() == saved.mean_activation_.tobytes()
    assert loaded.n_samples_seen_ == 200


def test_feature_names_and_the_identity_head_survive(small, path):
    _, X = small
    frame = pd.DataFrame(X).add_prefix("logit")
    skdice.save(DICEDetector("identity", sparsity=0).fit(frame), path)
    loaded = skdice.load(path)
    assert loaded.head == "identity"
    assert list(loaded.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame[frame.columns[::-1]])


def test_a_link_keeps_pointing_and_a_file_keeps_its_permissions(small, tmp_path):
    head, X = small
    target, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    skdice.save(DICEDetector(head).fit(X), target)
    target.chmod(0o600)
    link.symlink_to(target)
    skdice.save(DICEDetector(head).fit(X[:50]), link)
    assert link.is_symlink()
    assert skdice.load(target).n_samples_seen_ == 50
    assert target.stat().st_mode & 0o777 == 0o600


def test_only_regular_files_are_replaced(small, tmp_path):
    head, X = small
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, message in (("pipe", "it is not a file"), ("folder", "it is a folder")):
        with pytest.raises(ValueError, match=message):
            skdice.save(DICEDetector(head).fit(X), tmp_path / name)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "pipe"]


def test_the_file_says_what_it_is(small, path):
    head, X = small
    skdice.save(DICEDetector(head).fit(X), path)
    document = document_of(path)
    assert document["schema"] == 1
    assert document["versions"]["skdice"] == skdice.__version__
    assert set(document["versions"]) == {"skdice", "scikit-learn"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"score_func": lambda logits: logits[:, 0]}, "a function cannot be saved without saving"),
        ({"shaping": FunctionTransformer()}, "FunctionTransformer.*one of skdice.shaping"),
        ({"shaping": FrozenEstimator(ReAct())}, "FrozenEstimator"),
    ],
)
def test_code_is_not_saved(small, path, parameters, message):
    head, X = small
    if "shaping" in parameters and isinstance(parameters["shaping"], FrozenEstimator):
        parameters["shaping"].estimator.fit(X)
    with pytest.raises(ValueError, match=message):
        skdice.save(DICEDetector(head, **parameters).fit(X), path)
    assert not path.exists()


def test_what_cannot_be_saved(small, path):
    head, X = small
    with pytest.raises(NotFittedError):
        skdice.save(DICEDetector(head), path)

    class Mine(DICEDetector):
        def __init__(self, head=None):
            super().__init__(head)

    with pytest.raises(TypeError, match="got a Mine"):
        skdice.save(Mine(head).fit(X), path)


def test_files_of_another_kind_are_refused(small, tmp_path):
    head, X = small
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        skdice.load(tmp_path / "nowhere.safetensors")
    save_features(tmp_path / "features.safetensors", X)
    with pytest.raises(ValueError, match="holds no skdice detector"):
        skdice.load(tmp_path / "features.safetensors")
    (tmp_path / "pickle").write_bytes(pickle.dumps(DICEDetector(head).fit(X)))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("pickle", "empty"):
        with pytest.raises(ValueError, match=f"cannot load .*{name}: it is damaged, or not a det"):
            skdice.load(tmp_path / name)


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_files_are_refused(small, path, cut):
    head, X = small
    skdice.save(DICEDetector(head).fit(X), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="damaged"):
        skdice.load(path)


def test_every_altered_byte_is_noticed(small, path):
    head, X = small
    skdice.save(DICEDetector(head, shaping=ReAct()).fit(X), path)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        altered = bytearray(content)
        altered[position] ^= 0x01
        path.write_bytes(altered)
        with pytest.raises(ValueError, match="cannot load"):
            skdice.load(path)


def test_a_newer_schema_is_refused(small, path):
    head, X = small
    skdice.save(DICEDetector(head).fit(X), path)
    rewrite(path, lambda document: document.update(schema=2))
    with pytest.raises(ValueError, match=r"has schema 2, .* reads schemas up to 1: upgrade"):
        skdice.load(path)


@pytest.mark.parametrize(
    ("change", "arrays", "message"),
    [
        (lambda d: d.update(kind="other"), None, "holds a 'other', expected 'skdice.DICEDetector'"),
        (lambda d: d["parameters"].update(sparsity=90), None, "did you mean 0.9"),
        (lambda d: d["parameters"].update(evil=1), None, "unexpected keyword argument 'evil'"),
        (lambda d: d["parameters"].pop("sparsity") and d.pop("fitted"), None, "fitted"),
        (lambda d: d.update(shaping={"class": "os.system"}), None, "os.system|parameters"),
        (lambda d: d["fitted"].update(n_samples_seen="many"), None, "n_samples_seen is 'many'"),
        (lambda d: d["fitted"].update(n_samples_seen=0), None, "n_samples_seen is 0"),
        (lambda d: d["fitted"].update(offset="abc"), None, "offset is 'abc', expected a number"),
        (lambda d: d["fitted"].update(offset={"float": "nan"}), None, "offset is nan"),
        (lambda d: d["fitted"].update(feature_names=["a"]), None, "1 feature names, expected 12"),
        (lambda d: d["fitted"]["shaping"]["fitted"].update(threshold_="a"), None, "threshold_ is"),
        (lambda d: d["fitted"]["shaping"]["fitted"].update(fit="a"), None, "'fit' is no fitted at"),
        (lambda d: d["shaping"]["parameters"].update(quantile=99), None, "did you mean 0.99"),
        (lambda d: d.update(schema=-5), None, "schema is -5"),
        (lambda d: None, {"activation_total": np.ones(3)}, r"activation_total is float64 \(3,\)"),
        (lambda d: None, {"mean_activation": np.full(12, np.nan)}, "mean_activation is not finite"),
        (lambda d: None, {"mask": np.ones((3, 3), bool)}, r"its mask is bool \(3, 3\)"),
        (lambda d: None, {"weight": np.full((5, 12), np.nan)}, "weight contains nan"),
        (lambda d: None, {"mean_activation": np.ones(7)}, "expects 12"),
    ],
)
def test_files_made_up_with_a_fitting_digest_are_refused(small, path, change, arrays, message):
    head, X = small
    skdice.save(DICEDetector(head, shaping=ReAct()).fit(X), path)
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message):
        skdice.load(path)


def test_an_old_digest_is_refused(small, path):
    head, X = small
    skdice.save(DICEDetector(head).fit(X), path)
    rewrite(path, lambda d: d["fitted"].update(offset=-1e9), digest=False)
    with pytest.raises(ValueError, match="altered or damaged after it was written"):
        skdice.load(path)


def test_skops_keeps_every_bit_with_named_trusted_types(small):
    head, X = small
    detector = DICEDetector(head, shaping=ReAct()).fit(X)
    content = skops.io.dumps(detector)
    trusted = skops.io.get_untrusted_types(data=content)
    assert set(trusted) <= {
        "skdice._dice.DICEDetector",
        "skdice._head.LinearHead",
        "skdice._passes.mean.FeatureStatistics",
        "skdice.shaping.ReAct",
    }
    loaded = skops.io.loads(content, trusted=trusted)
    np.testing.assert_array_equal(loaded.decision_function(X), detector.decision_function(X))
    assert loaded.head == head
