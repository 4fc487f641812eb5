"""Made-up files of ViM, fDBD and ensembles, with a digest that fits, are refused or work.

`test_persistence.py` has the same for DICE, and for what all kinds of files share.
"""

import json

import numpy as np
import pytest
from test_persistence import document_of, rewrite

import skdice
from skdice import ConformalEnsemble, DICEDetector, FDBDDetector, ViMDetector
from skdice._persistence.files import read

HUGE = 10**400
INFINITE = {"float": "inf"}


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """The bytes of a file of each kind, conformally calibrated but for "identity"."""
    head, X = small
    nested = ConformalEnsemble([("fdbd", FDBDDetector(head)), ("vim", ViMDetector(head))])
    members = [("dice", DICEDetector(head, sparsity=0)), ("two", nested)]
    conformal = {"method": "conformal"}
    detectors = {
        "vim": ViMDetector(head).fit(X).calibrate(X, **conformal),
        "fdbd": FDBDDetector(head).fit(X).calibrate(X, **conformal),
        "ensemble": ConformalEnsemble(members).fit(X).calibrate(X, **conformal),
        "identity": ConformalEnsemble([("logits", DICEDetector("identity", sparsity=0))]).fit(X),
    }
    path = tmp_path_factory.mktemp("saved") / "d.safetensors"
    contents = {}
    for name, detector in detectors.items():
        skdice.save(detector, path)
        contents[name] = path.read_bytes()
    return contents


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hostile.safetensors"


def of(*places, **changes):
    """Return a function that changes values of the part of a document at some places."""

    def change(document):
        part = document
        for place in places:
            part = part[place]
        part.update(changes)

    return change


def same(document):
    return None


def member(**changes):
    return of("members", 0, **changes)


def part(**changes):
    return of("members", 0, "document", **changes)


def reverse(document):
    document["members"].reverse()


def add(document):
    document["members"].append(document["members"][0])


def drop(document):
    document["members"].pop()


def deep(document):
    opened = '"members": ['
    return json.dumps(document).replace(opened, opened + '{"document": {"members": [' * 9000, 1)


REFUSED = [
    # ViM.
    ("vim", of("fitted", alpha=1), None, "its alpha is 1, expected a number"),
    ("vim", of("fitted", alpha="1"), None, "its alpha is '1', expected a number"),
    ("vim", of("fitted", alpha=True), None, "its alpha is True, expected a number"),
    ("vim", of("fitted", alpha=HUGE), None, "a number is 1000"),
    ("vim", of("fitted", alpha=INFINITE), None, "its alpha is inf, expected a finite number"),
    ("vim", of("parameters", n_components=0), None, "n_components"),
    ("vim", of("parameters", n_components="6"), None, "n_components"),
    ("vim", of(kind="skdice.FDBDDetector"), None, "keys of the fitted state are alpha"),
    ("vim", of("fitted", head_agreement=1.0), None, "keys of the fitted state are .*agreement"),
    ("vim", of("fitted", calibration=None), None, "it has the arrays .*calibration_scores"),
    ("vim", of("fitted", "calibration", n_samples=199, rank=10), None, "199 rows, but 200 cal"),
    ("vim", of("fitted", offset=0.5), None, "offset is 0.5, but the calibration score of rank"),
    ("vim", same, {"origin": np.full(12, np.nan)}, "its origin is not finite"),
    ("vim", same, {"origin": np.ones(12, np.float32)}, "its origin is float32"),
    ("vim", same, {"origin": np.ones((12, 1))}, r"its origin is float64 \(12, 1\)"),
    ("vim", same, {"origin": np.ones(11)}, r"its weight is float64 \(5, 12\), .* \(5, 11\)"),
    ("vim", same, {"origin": None}, "it has the arrays .*, expected .*origin"),
    ("vim", same, {"residual_components": np.ones((13, 12))}, r"is float64 \(13, 12\), expected"),
    ("vim", same, {"residual_components": np.ones((0, 12))}, r"\(0, 12\), expected float64 \(1"),
    ("vim", same, {"residual_components": np.full((6, 12), np.inf)}, "components is not finite"),
    ("vim", same, {"mask": np.ones((5, 12), bool)}, "it has the arrays .*mask"),
    ("vim", same, {"calibration_scores": np.arange(200.0)[::-1].copy()}, "not in ascending"),
    # fDBD.
    ("fdbd", same, {"mean_activation": np.full(12, np.inf)}, "mean_activation is not finite"),
    ("fdbd", same, {"mean_activation": np.ones(12)}, "is not the mean of its activation_total"),
    ("fdbd", same, {"weight": np.ones((5, 12))}, "no decision boundary"),
    ("fdbd", same, {"weight": np.ones((1, 12)), "bias": np.ones(1)}, "no decision boundary"),
    ("fdbd", same, {"weight": np.full((5, 12), np.nan)}, "weight contains nan"),
    ("fdbd", of(shaping=None), None, "the keys of the document are .*shaping"),
    ("fdbd", of("fitted", sum_of_weights="many"), None, "its sum_of_weights is 'many'"),
    ("fdbd", of("fitted", "calibration", rank=9), None, "rank is 9"),
    # Members of an ensemble.
    ("ensemble", of(members=[]), None, r"its members are \[\], expected a list"),
    ("ensemble", of(members={}), None, "its members are {}, expected a list"),
    ("ensemble", of(members="ab"), None, "its members are 'ab', expected a list"),
    ("ensemble", of(members=[None]), None, "a member must be an object of JSON, got None"),
    ("ensemble", of(members=[None] * 1_000_000), None, "a member must be an object of JSON"),
    ("ensemble", of(members=[{}] * 1_000_000), None, "the keys of a member are"),
    ("ensemble", drop, None, "it has the arrays .* besides those of its members"),
    ("ensemble", reverse, None, "its tail starts at .* does not fit the reference scores"),
    ("ensemble", add, None, "its member 'dice' has no array reference_counts, reference_scores"),
    ("ensemble", deep, None, "recursion"),
    ("ensemble", member(name="two"), None, "two members have the name 'two'"),
    ("ensemble", member(name=1), None, "a member has the name 1, expected text"),
    ("ensemble", member(name=["x"]), None, r"a member has the name \['x'\], expected text"),
    ("ensemble", member(name=None), None, "a member has the name None, expected text"),
    ("ensemble", member(name="a__b"), None, "a member has the name 'a__b'"),
    ("ensemble", member(name="n_jobs"), None, "a member has the name 'n_jobs'"),
    ("ensemble", member(name="x" * 10**6 + "__"), None, "a member has the name 'xxx"),
    ("ensemble", member(extra=1), None, "the keys of a member are .*extra"),
    ("ensemble", member(document=[]), None, "its member 'dice' is not a detector of skdice"),
    ("ensemble", part(kind=["skdice.DICEDetector"]), None, "'dice' is not a detector of skdice"),
    ("ensemble", part(kind="os.system"), None, "'dice' is not a detector of skdice"),
    ("ensemble", part(kind="skdice.ViMDetector"), None, "the keys of the document are"),
    ("ensemble", part(schema=2), None, "its member 'dice' has the schema 2, expected .*, 1"),
    ("ensemble", part(versions=7), None, "its member 'dice' has the versions 7"),
    ("ensemble", part(head="identity"), None, r"its mask is bool \(5, 12\)"),
    (
        "ensemble",
        part(head="identity"),
        {"0.mask": np.ones((12, 12), bool)},
        "the members 'dice' and 'two' have different heads",
    ),
    (
        "ensemble",
        same,
        {"1.1.origin": np.ones(11), "1.1.residual_components": np.ones((5, 11))},
        r"weight is float64 \(5, 12\), expected float64 \(5, 11\)",
    ),
    ("ensemble", of("parameters", combination=["fisher"]), None, "'combination' parameter"),
    ("ensemble", of("parameters", combination="sum"), None, "'combination' parameter"),
    ("ensemble", of("parameters", estimators=[]), None, "keys of the parameters are"),
    ("ensemble", of("parameters", batch_size=HUGE), None, "a number is 1000"),
    # Their reference distributions.
    ("ensemble", member(tail_start=INFINITE), None, "its tail starts at inf"),
    ("ensemble", member(tail_start=1e9), None, "its tail starts at 1000000000.0"),
    ("ensemble", member(tail_start="0"), None, "its tail_start is '0', expected a number"),
    ("ensemble", member(tail_mean=-1.0), None, "with the mean -1.0"),
    ("ensemble", member(tail_mean=1e9), None, "with the mean 1000000000.0"),
    ("ensemble", member(tail_mean=5e-324), None, "with the mean 5e-324"),
    ("ensemble", member(tail_mean=0.0), None, "with the mean 0.0"),
    ("ensemble", member(tail_mean=True), None, "its tail_mean is True, expected a number"),
    ("ensemble", of("fitted", n_samples_seen=7), None, "200 reference scores, .* on 7 rows"),
    ("ensemble", of("fitted", n_samples_seen=True), None, "reference scores, .* on True rows"),
    ("ensemble", same, {"0.reference_scores": None}, "'dice' has no array reference_scores"),
    ("ensemble", same, {"0.reference_counts": None}, "'dice' has no array reference_counts"),
    ("ensemble", same, {"0.reference_scores": np.arange(3.0)}, "reference counts is int64"),
    (
        "ensemble",
        same,
        {"0.reference_scores": np.arange(3.0), "0.reference_counts": np.arange(1, 4)},
        "its member 'dice' has 3 reference scores, but it was fitted on 200 rows",
    ),
    (
        "ensemble",
        same,
        {"0.reference_scores": np.arange(200.0)[::-1].copy()},
        "its reference scores are not in ascending order",
    ),
    ("ensemble", same, {"0.reference_scores": np.full(200, np.nan)}, "reference scores is not fin"),
    ("ensemble", same, {"0.reference_counts": np.zeros(200, np.int64)}, "counts are not in asc"),
    ("ensemble", same, {"0.reference_counts": np.ones(200)}, "reference counts is float64"),
    # Missing and surplus arrays.
    ("ensemble", same, {"2.reference_scores": np.ones(3)}, "the arrays 2.reference_scores besides"),
    ("ensemble", same, {"1.0.extra": np.ones(3)}, "it has the arrays .*extra"),
    ("ensemble", same, {"x": np.ones(3)}, "it has the arrays x besides those of its members"),
    ("ensemble", same, {"weight": None}, "it has the arrays .*, expected .*weight"),
    ("ensemble", same, {"weight": np.ones((5, 11))}, "its weight is float64"),
    ("identity", same, {"weight": np.ones((5, 12)), "bias": np.ones(5)}, "of a head that none"),
    ("identity", same, {"weight": np.ones((5, 12))}, "of a head that none of its members has"),
    ("identity", same, {"0.weight": np.ones((5, 12))}, "it has the arrays .*weight"),
    # Calibration.
    ("ensemble", same, {"calibration_scores": None}, "its calibration scores and its calibration"),
    ("ensemble", same, {"calibration_scores": np.ones(3)}, "200 rows, but 3 calibration scores"),
    ("ensemble", of("fitted", calibration=None), None, "do not fit one another"),
    ("ensemble", of("fitted", offset=0.0), None, "its offset is 0.0, but the calibration score"),
    ("ensemble", of("fitted", "calibration", confidence="high"), None, "confidence is 'high'"),
    ("ensemble", of("fitted", feature_names=["a"]), None, "1 feature names, expected 12"),
    ("identity", of("fitted", contamination=0.9), None, "contamination is 0.9"),
]


@pytest.mark.parametrize(
    ("kind", "change", "arrays", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))]
)
def test_made_up_files_are_refused(saved, path, kind, change, arrays, message):
    path.write_bytes(saved[kind])
    rewrite(path, change, arrays)
    with pytest.raises(ValueError, match=message) as raised:
        skdice.load(path)
    assert str(raised.value).startswith(f"cannot load {path}: ")
    assert len(str(raised.value)) < 1000


WORKING = [
    *((kind, same, None) for kind in ("vim", "fdbd", "identity", "ensemble")),
    ("ensemble", member(name=""), None),
    ("ensemble", member(name="\ud800 \0 \u202e.0/../é"), None),
    ("ensemble", member(name="head"), None),
    ("ensemble", of("parameters", n_jobs=-1, verbose=0), None),
    ("vim", of("parameters", n_components=99), None),  # counts from the next fit on
    ("vim", same, {"residual_components": np.zeros((6, 12))}),
]


@pytest.mark.parametrize(
    ("kind", "change", "arrays"), WORKING, ids=[str(n) for n in range(len(WORKING))]
)
def test_what_loads_works_and_is_saved_to_the_same_content(
    small, saved, path, kind, change, arrays
):
    path.write_bytes(saved[kind])
    rewrite(path, change, arrays)
    document, before = read(path)
    loaded = skdice.load(path)
    assert np.isfinite(loaded.decision_function(small[1])).all()
    skdice.save(loaded, path)
    again, after = read(path)
    assert again == document
    assert after.keys() == before.keys()
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def nested_in(document, arrays, depth):
    """Return the document and the arrays of an ensemble of one member, nested so deep."""
    tail = {name: document["members"][0][name] for name in ("tail_start", "tail_mean")}
    references = {name: arrays[name] for name in ("0.reference_scores", "0.reference_counts")}
    for _ in range(depth):
        arrays = {f"0.{name}": array for name, array in arrays.items()} | references
        document = document | {"members": [{"name": "one", "document": document, **tail}]}
    return document, arrays


@pytest.mark.parametrize("depth", [1, 50])
def test_ensembles_in_ensembles_work(small, saved, path, depth):
    path.write_bytes(saved["identity"])
    before = read(path)
    document, arrays = nested_in(*before, depth)
    rewrite(path, lambda _: json.dumps(document), dict.fromkeys(before[1]) | arrays)
    loaded = skdice.load(path)
    assert np.isfinite(loaded.score_samples(small[1])).all()
    skdice.save(loaded, path)
    assert document_of(path) == document


def test_an_ensemble_of_ensembles_keeps_its_head(small, path):
    head, X = small
    inner = ConformalEnsemble([("fdbd", FDBDDetector(head))])
    ensemble = ConformalEnsemble([("a", inner), ("b", inner)]).fit(X)
    skdice.save(ensemble, path)
    np.testing.assert_array_equal(skdice.load(path).score_samples(X), ensemble.score_samples(X))


def test_very_many_members_take_no_quadratic_time(small):
    detector = FDBDDetector(small[0])
    ConformalEnsemble([(f"m{n}", detector) for n in range(100_000)])._validate_members()
