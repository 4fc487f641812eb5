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
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

import skdice
from skdice import ConformalEnsemble, DICEDetector, FDBDDetector, LinearHead
from skdice.io import save_features
from skdice.shaping import ASH, VRA, ReAct, Scale


@pytest.fixture
def path(tmp_path):
    return tmp_path / "detector.safetensors"


def document_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["skdice"])


def rewrite(path, change=None, arrays=None, digest=True):
    """Write a detector file anew with a changed document, with a digest that fits it or not.

    An array of None is left out. JSON that is not valid stands for the text of the document.
    """
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path) | (arrays or {})
    tensors = {name: array for name, array in tensors.items() if array is not None}
    document = json.loads(metadata["skdice"])
    changed = change(document) if change else None
    text = changed if isinstance(changed, str) else json.dumps(document)
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
        (lambda d: d["parameters"].update(evil=1), None, "the keys of the parameters are .*evil"),
        (lambda d: d["parameters"].pop("sparsity") and d.pop("fitted"), None, "fitted"),
        (lambda d: d.update(shaping={"class": "os.system"}), None, "os.system|parameters"),
        (lambda d: d["fitted"].update(n_samples_seen="many"), None, "n_samples_seen is 'many'"),
        (lambda d: d["fitted"].update(n_samples_seen=0), None, "n_samples_seen is 0"),
        (lambda d: d["fitted"].update(offset="abc"), None, "offset is 'abc', expected a number"),
        (
            lambda d: d["fitted"].update(offset={"float": "nan"}),
            None,
            "a number is {'float': 'nan'}",
        ),
        (lambda d: d["fitted"].update(feature_names=["a"]), None, "1 feature names, expected 12"),
        (lambda d: d["fitted"]["shaping"]["fitted"].update(threshold_="a"), None, "threshold_ is"),
        (
            lambda d: d["fitted"]["shaping"]["fitted"].update(fit="a"),
            None,
            "state of the shaping are fit",
        ),
        (lambda d: d["shaping"]["parameters"].update(quantile=99), None, "did you mean 0.99"),
        (lambda d: d.update(schema=-5), None, "schema is -5"),
        (lambda d: None, {"activation_total": np.ones(3)}, r"activation_total is float64 \(3,\)"),
        (lambda d: None, {"mean_activation": np.full(12, np.nan)}, "mean_activation is not finite"),
        (lambda d: None, {"mask": np.ones((3, 3), bool)}, r"its mask is bool \(3, 3\)"),
        (lambda d: None, {"weight": np.full((5, 12), np.nan)}, "weight contains nan"),
        (
            lambda d: None,
            {"mean_activation": np.ones(7)},
            r"float64 \(5, 12\), expected float64 \(5, 7\)",
        ),
    ],
)
def test_files_made_up_with_a_fitting_digest_are_refused(small, path, change, arrays, message):
    head, X = small
    skdice.save(DICEDetector(head, shaping=ReAct()).fit(X), path)
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message):
        skdice.load(path)


HUGE = 10**400
MESSAGES = [
    # The document itself.
    (lambda d: "[]", None, "its document is a list"),
    (lambda d: "[" * 100_000, None, "cannot load"),
    (lambda d: json.dumps(d).replace("0.05", "NaN"), None, "NaN is not a number of JSON"),
    (lambda d: d.update(extra=1), None, "the keys of the document are .*extra.*, expected"),
    (lambda d: d["fitted"].update(extra=1), None, "the keys of the fitted state are .*extra"),
    (lambda d: d.pop("head") and None, None, "the keys of the document are"),
    (lambda d: d.update(fitted=[]), None, r"the fitted state must be an object of JSON, got \[\]"),
    (lambda d: d.update(versions={"skdice": 1, "scikit-learn": "1"}), None, "its versions are"),
    (lambda d: d.update(versions=7), None, "its versions are 7"),
    (lambda d: d.update(schema=True), None, "schema is True"),
    (lambda d: d.update(schema=HUGE, versions={}), None, "schema is 1000"),
    (lambda d: d.update(head=["arrays"]), None, r"its head is \['arrays'\]"),
    (lambda d: d.update(head="file"), None, "its head is 'file'"),
    # Parameters.
    (lambda d: d["parameters"].pop("sparsity"), None, "the keys of the parameters are"),
    (lambda d: d["parameters"].update(sparsity=HUGE), None, "a number is 1000"),
    (lambda d: d["parameters"].update(sparsity={"float": "nan"}), None, "{'float': 'nan'}"),
    (lambda d: d["parameters"].update(sparsity={"float": [1]}), None, "{'float': .1.}"),
    (lambda d: d["parameters"].update(sparsity={"float": "0.5"}), None, "{'float': '0.5'}"),
    (lambda d: d["parameters"].update(sparsity={}), None, "is {}"),
    (lambda d: d["parameters"].update(batch_size=HUGE), None, "a number is 1000"),
    (lambda d: d["parameters"].update(n_jobs=-HUGE), None, "a number is -1000"),
    (lambda d: d["parameters"].update(verbose=[1]), None, "verbose"),
    (lambda d: d["parameters"].update(score_func="eval"), None, "score_func"),
    (lambda d: d["parameters"].update(device="disk"), None, "device"),
    # Fitted numbers.
    (lambda d: d["fitted"].update(n_samples_seen=True), None, "n_samples_seen is True"),
    (lambda d: d["fitted"].update(n_samples_seen=HUGE), None, "n_samples_seen is 1000"),
    (lambda d: d["fitted"].update(sum_of_weights=0.0), None, "sum_of_weights is 0.0"),
    (lambda d: d["fitted"].update(sum_of_weights=-1.0), None, "sum_of_weights is -1.0"),
    (lambda d: d["fitted"].update(sum_of_weights={"float": "inf"}), None, "sum_of_weights is inf"),
    (lambda d: d["fitted"].update(sum_of_weights=7.0), None, "mean_activation is not the mean"),
    (lambda d: d["fitted"].update(offset={"float": "inf"}), None, "offset is inf"),
    (lambda d: d["fitted"].update(offset=True), None, "offset is True"),
    (lambda d: d["fitted"].update(offset=None), None, "contamination is 0.05 without an offset"),
    (lambda d: d["fitted"].update(contamination=None), None, "contamination is None"),
    (lambda d: d["fitted"].update(contamination=0.6), None, "contamination is 0.6"),
    (lambda d: d["fitted"].update(contamination=0.0), None, "contamination is 0.0"),
    (lambda d: d["fitted"].update(contribution_threshold=None), None, "contribution_threshold is"),
    # Names of features.
    (lambda d: d["fitted"].update(feature_names="abcdefghijkl"), None, "feature names are 'abc"),
    (lambda d: d["fitted"].update(feature_names=dict.fromkeys("abcdefghijkl")), None, "names are"),
    (lambda d: d["fitted"].update(feature_names=[1] * 12), None, "feature names are"),
    (lambda d: d["fitted"].update(feature_names=12), None, "feature names are 12"),
    # Shapings.
    (lambda d: d.update(shaping=[]), None, r"the shaping must be an object of JSON, got \[\]"),
    (lambda d: d["shaping"].update({"class": "eval"}), None, "the class 'eval', expected one of"),
    (lambda d: d["shaping"].update({"class": ["ReAct"]}), None, "the class .'ReAct'., expected"),
    (lambda d: d["shaping"].update(extra=1), None, "keys of the shaping are .*extra"),
    (
        lambda d: d["shaping"].update(parameters=None),
        None,
        "parameters of the shaping must be an object of JSON, got None",
    ),
    (
        lambda d: d["shaping"]["parameters"].update(extra=1),
        None,
        "keys of the parameters of the shaping are .*extra",
    ),
    (
        lambda d: d["fitted"]["shaping"]["fitted"].pop("threshold_"),
        None,
        "keys of the fitted state of the shaping are",
    ),
    (
        lambda d: d["fitted"]["shaping"]["fitted"].update(threshold_={"float": "nan"}),
        None,
        "{'float': 'nan'}",
    ),
    (
        lambda d: d["fitted"]["shaping"]["fitted"].update(n_features_in_=True),
        None,
        "fitted on True features",
    ),
    (
        lambda d: d["fitted"]["shaping"]["fitted"].update(n_features_in_=11),
        None,
        "fitted on 11 features, expected 12",
    ),
    # Arrays.
    (lambda d: None, {"mask": np.zeros((5, 12), bool)}, "its mask keeps no weight"),
    (lambda d: None, {"extra": np.ones(1)}, "it has the arrays .*extra.*, expected"),
    (lambda d: None, {"weight": None}, "it has the arrays .*, expected .*weight"),
    (lambda d: d.update(head="identity"), None, "it has the arrays .*weight"),
    (
        lambda d: d.update(head="identity"),
        {"weight": None, "bias": None},
        r"its mask is bool \(5, 12\), expected bool \(12, 12\)",
    ),
    (lambda d: None, {"weight": np.ones((5, 12), np.int64)}, "its weight is int64"),
    (lambda d: None, {"weight": np.ones((0, 12))}, "cannot load"),
    (lambda d: None, {"mean_activation": np.array(1.0)}, "it holds a single value"),
    (lambda d: None, {"mean_activation": np.ones(0)}, r"expected float64 \(5, 1\)"),
    (lambda d: None, {"mean_activation": np.ones((12, 1))}, "mean_activation is float64"),
    (lambda d: None, {"calibration_scores": np.ones(3)}, "it has the arrays .*calibration_scores"),
]


@pytest.mark.parametrize(
    ("change", "arrays", "message"), MESSAGES, ids=[str(n) for n in range(len(MESSAGES))]
)
def test_every_field_of_a_made_up_file_is_checked(small, path, change, arrays, message):
    head, X = small
    skdice.save(DICEDetector(head, shaping=ReAct()).fit(X), path)
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message) as raised:
        skdice.load(path)
    assert len(str(raised.value)) < 1000


def test_a_changed_parameter_of_a_fitted_detector_survives(small, path):
    head, X = small
    detector = DICEDetector(head, shaping=ReAct()).fit(X)
    detector.set_params(shaping=ASH(), contamination=0.3)  # counts from the next fit on
    skdice.save(detector, path)
    loaded = skdice.load(path)
    assert (repr(loaded.shaping), repr(loaded.shaping_)) == (repr(ASH()), repr(ReAct()))
    assert (loaded.contamination, loaded.contamination_) == (0.3, 0.05)


@pytest.mark.parametrize("method", ["quantile", "conformal"])
@pytest.mark.parametrize("contamination", [None, 0.29])
def test_the_record_of_the_calibration_survives(small, path, method, contamination):
    head, X = small
    detector = DICEDetector(head).fit(X).calibrate(X[:100], contamination, method=method)
    skdice.save(detector, path)
    loaded = skdice.load(path)
    assert loaded.calibration_ == detector.calibration_
    assert loaded.contamination_ == (contamination or 0.05)
    assert hasattr(loaded, "calibration_scores_") == (method == "conformal")
    if method == "conformal":
        np.testing.assert_array_equal(loaded.pvalues(X), detector.pvalues(X))


def of_calibration(**changes):
    return lambda document: document["fitted"]["calibration"].update(changes)


CALIBRATIONS = [
    (lambda d: d["fitted"].update(calibration=None), None, "it has the arrays"),
    (
        lambda d: d["fitted"].update(calibration=[]),
        None,
        r"the calibration must be an object of JSON, got \[\]",
    ),
    (of_calibration(extra=1), None, "the keys of the calibration are .*extra"),
    (
        lambda d: d["fitted"]["calibration"].pop("date") and None,
        None,
        "the keys of the calibration are",
    ),
    (lambda d: d["fitted"].update(offset=None, contamination=None), None, "without an offset"),
    (of_calibration(method="quantile", rank=6), None, "the arrays .*calibration_scores"),
    (of_calibration(method="magic"), None, "method is 'magic', expected 'quantile' or"),
    (of_calibration(method=["conformal"]), None, r"method is \['conformal'\]"),
    (of_calibration(contamination=0.059), None, "contamination of its calibration is 0.059"),
    (of_calibration(contamination=0.9), None, "contamination is 0.9"),
    (of_calibration(contamination="0.05"), None, "contamination is '0.05'"),
    (of_calibration(confidence=1.0), None, "confidence is 1.0"),
    (of_calibration(confidence="high"), None, "confidence is 'high'"),
    (of_calibration(confidence=True), None, "confidence is True"),
    (of_calibration(n_samples=0), None, "n_samples is 0"),
    (of_calibration(n_samples=100.0), None, "n_samples is 100.0"),
    (of_calibration(n_samples=HUGE), None, "n_samples is 1000"),
    (of_calibration(n_samples=99), None, "its calibration has 99 rows, but 100 calibration sc"),
    (of_calibration(rank=0), None, "rank is 0"),
    (of_calibration(rank=101), None, "rank is 101, expected an integer from 1 to 100"),
    (of_calibration(rank=True), None, "rank is True"),
    (of_calibration(rank=4), None, "rank is 4"),
    (of_calibration(date="yesterday"), None, "date is 'yesterday'"),
    (of_calibration(date="2026-11-25T00:00:00"), None, "date is '2026-11-25T00:00:00'"),
    (of_calibration(date=20261125), None, "date is 20261125"),
    (of_calibration(digest="0" * 63), None, "digest is '000"),
    (of_calibration(digest="G" * 64), None, "digest is 'GGG"),
    (of_calibration(digest=None), None, "digest is None"),
    (lambda d: d["fitted"].update(offset=0.5), None, "its offset is 0.5, but the calibration sc"),
    (lambda d: None, {"calibration_scores": np.ones(100, np.float16)}, "scores are float16"),
    (lambda d: None, {"calibration_scores": np.ones((100, 1))}, "scores are float64"),
    (
        lambda d: None,
        {"calibration_scores": np.arange(100.0)[::-1].copy()},
        "not in ascending order",
    ),
    (lambda d: None, {"calibration_scores": np.full(100, np.nan)}, "not in ascending order"),
    (lambda d: None, {"calibration_scores": None}, "it has the arrays"),
]


@pytest.mark.parametrize(
    ("change", "arrays", "message"), CALIBRATIONS, ids=[str(n) for n in range(len(CALIBRATIONS))]
)
def test_every_field_of_a_made_up_calibration_is_checked(small, path, change, arrays, message):
    head, X = small
    skdice.save(DICEDetector(head).fit(X).calibrate(X[:100], method="conformal"), path)
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message) as raised:
        skdice.load(path)
    assert len(str(raised.value)) < 1000


BY_PREDICTION = [
    (of_calibration(by=None), None, "by of its calibration is None, expected 'prediction' or no"),
    (of_calibration(by="label"), None, "by is 'label', expected None or 'prediction'"),
    (of_calibration(by=["prediction"]), None, r"by is \['prediction'\]"),
    (of_calibration(by=True), None, "by is True"),
    (of_calibration(method="quantile", rank=11), None, "by is 'prediction', expected None for a q"),
    (
        lambda d: d["fitted"]["calibration"].pop("by") and None,
        None,
        "it has the arrays .*calibration_classes",
    ),
    (lambda d: None, {"calibration_classes": None}, "it has the arrays"),
    (
        lambda d: None,
        {"calibration_classes": np.zeros(99, np.int64)},
        r"calibration_classes is int64 \(99,\), expected int64 \(100,\)",
    ),
    (
        lambda d: None,
        {"calibration_classes": np.zeros((100, 1), np.int64)},
        r"calibration_classes is int64 \(100, 1\)",
    ),
    (lambda d: None, {"calibration_classes": np.zeros(100)}, "calibration_classes is float64"),
    (lambda d: None, {"calibration_classes": np.full(100, 5)}, "hold 5, expected .* 0 to 4"),
    (lambda d: None, {"calibration_classes": np.full(100, -1)}, "hold -1, expected .* 0 to 4"),
    (lambda d: None, {"class_offsets": np.zeros(5)}, "it has the arrays .*class_offsets"),
    (
        lambda d: d["fitted"].update(class_offsets=[0.0] * 5),
        None,
        "the keys of the fitted state are .*class_offsets",
    ),
]


@pytest.mark.parametrize(
    ("change", "arrays", "message"),
    BY_PREDICTION,
    ids=[str(n) for n in range(len(BY_PREDICTION))],
)
@pytest.mark.filterwarnings("ignore:.*too few calibration rows")
def test_every_field_of_a_made_up_calibration_by_prediction_is_checked(
    small, path, change, arrays, message
):
    head, X = small
    detector = DICEDetector(head).fit(X)
    skdice.save(detector.calibrate(X[:100], 0.1, method="conformal", by="prediction"), path)
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message) as raised:
        skdice.load(path)
    assert len(str(raised.value)) < 1000


@pytest.mark.filterwarnings("ignore:.*too few calibration rows")
def test_other_classes_of_the_calibration_rows_give_the_thresholds_of_these(small, path):
    """A file holds no thresholds of classes, so that none can contradict its scores."""
    head, X = small
    detector = DICEDetector(head).fit(X)
    skdice.save(detector.calibrate(X[:100], 0.1, method="conformal", by="prediction"), path)
    rewrite(path, None, {"calibration_classes": np.repeat([0, 1, 2, 3, 4], [50, 41, 9, 0, 0])})
    loaded, scores = skdice.load(path), detector.calibration_scores_
    # The 5th of 50, the 4th of 41 and the first of 9; two classes have no rows.
    expected = [scores[4], scores[50 + 3], scores[91], detector.offset_, detector.offset_]
    assert loaded.class_offsets_.tolist() == expected
    assert loaded.fallback_classes_.tolist() == [3, 4]


def test_a_file_of_one_threshold_does_not_mention_classes(small, path):
    head, X = small
    skdice.save(DICEDetector(head).fit(X).calibrate(X[:100], method="conformal"), path)
    assert "by" not in document_of(path)["fitted"]["calibration"]
    assert skdice.load(path).calibration_.by is None


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


def test_a_score_that_was_set_after_the_fit_is_not_saved(small, tmp_path):
    head, X = small
    detector = DICEDetector(head).fit(X).set_params(score_func="msp")
    with pytest.raises(ValueError, match=r"score_func is 'msp', .* fitted with 'energy'"):
        skdice.save(detector, tmp_path / "d.safetensors")
    skdice.save(detector.fit(X), tmp_path / "d.safetensors")
    loaded = skdice.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_a_combination_that_was_set_after_the_fit_is_not_saved(small, path):
    head, X = small
    members = [("dice", DICEDetector(head)), ("fdbd", FDBDDetector(head))]
    ensemble = ConformalEnsemble(members).fit(X).set_params(combination="min")
    with pytest.raises(ValueError, match=r"combination is 'min', .* fitted with 'fisher'"):
        skdice.save(ensemble, path)
    skdice.save(ensemble.fit(X), path)
    np.testing.assert_array_equal(skdice.load(path).score_samples(X), ensemble.score_samples(X))


@pytest.mark.parametrize(
    "parameters",
    [
        {"head": "identity"},
        {"head": np.ones((5, 12))},
        {"shaping": None},
        {"shaping": ReAct(threshold=0.1)},
        {"shaping__quantile": 0.5},
        {"sparsity": 0.9},
    ],
)
@pytest.mark.parametrize("n_classes", [5, 12])
def test_a_parameter_that_was_set_after_the_fit_changes_no_score(
    small, path, parameters, n_classes
):
    rng = np.random.default_rng(0)
    head, X = LinearHead(rng.normal(size=(n_classes, 12))), small[1]
    detector = DICEDetector(head, shaping=ReAct(quantile=0.9)).fit(X)
    expected = detector.decision_function(X)
    detector.set_params(**parameters)
    skdice.save(detector, path)
    for copy in (detector, skdice.load(path), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(copy.decision_function(X), expected)
        assert copy.head_ == head
    # A clone has the parameters alone, as they are now.
    assert not hasattr(clone(detector), "head_")
