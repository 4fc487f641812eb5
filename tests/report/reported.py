"""What the tests of reports share: detectors of every kind, and a name that must be escaped."""

from sklearn.ensemble import IsolationForest

from skdice import (
    ConformalEnsemble,
    DICEDetector,
    DICEDetectorCV,
    FDBDDetector,
    ViMDetector,
    make_ensemble,
)
from skdice.shaping import ReAct

HOSTILE = "<script>alert('x')</script>|`a` *b* $c$ & \"d\"\n# e"


def fitted_detectors(data):
    """Return functions that make detectors of every kind and with every kind of threshold."""
    train, held_out = data.id_train[:1500], data.id_test[:600]

    def dice(**options):
        return DICEDetector(data.head, **options).fit(train)

    def foreign():
        forest = IsolationForest(n_estimators=10, random_state=0)
        members = [("dice", DICEDetector(data.head)), ("forest", forest)]
        return ConformalEnsemble(members).fit(train).calibrate(held_out, method="conformal")

    def only_foreign():
        forest = IsolationForest(n_estimators=10, random_state=0)
        return ConformalEnsemble([("forest", forest)]).fit(train)

    def chosen():
        search = DICEDetectorCV(data.head, sparsities=[0, 0.4], cv=2)
        return search.fit(train, outliers=data.ood["mnist"][:100]).calibrate(held_out)

    def conformal(detector, **options):
        return detector.fit(train).calibrate(held_out, method="conformal", **options)

    return {
        "uncalibrated": dice,
        "no threshold": lambda: DICEDetector(data.head).partial_fit(train),
        "quantile": lambda: dice().calibrate(held_out, contamination=0.1),
        "conformal": lambda: conformal(DICEDetector(data.head)),
        "confidence": lambda: conformal(DICEDetector(data.head), confidence=0.9),
        "react": lambda: conformal(DICEDetector(data.head, shaping=ReAct(quantile=0.99))),
        "identity": lambda: DICEDetector("identity", sparsity=0).fit(train).calibrate(held_out),
        "vim": lambda: conformal(ViMDetector(data.head)),
        "fdbd": lambda: conformal(FDBDDetector(data.head)),
        "ensemble": lambda: conformal(make_ensemble(data.head)),
        "foreign member": foreign,
        "only foreign": only_foreign,
        "search": chosen,
    }


KINDS = (
    "uncalibrated",
    "no threshold",
    "quantile",
    "conformal",
    "confidence",
    "react",
    "identity",
    "vim",
    "fdbd",
    "ensemble",
    "foreign member",
    "only foreign",
    "search",
)
