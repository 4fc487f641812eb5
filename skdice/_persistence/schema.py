"""The names that a detector file may have: kinds, keys and arrays."""

from dataclasses import fields

from skdice._base import BaseDetector
from skdice._dice import DICEDetector
from skdice._ensemble import ConformalEnsemble
from skdice._fdbd import FDBDDetector
from skdice._passes.threshold import Calibration
from skdice._vim import ViMDetector

SCHEMA = 1
# The classes that `load` makes, by the names that their files have.
KINDS: dict[str, type[BaseDetector]] = {
    "skdice.DICEDetector": DICEDetector,
    "skdice.FDBDDetector": FDBDDetector,
    "skdice.ViMDetector": ViMDetector,
    "skdice.ConformalEnsemble": ConformalEnsemble,
}
# The keys of the document and of its parts. A file with others is refused, because a field that
# this version does not know could change what the detector does.
VERSIONS = {"skdice", "scikit-learn"}
DOCUMENT = {"kind", "schema", "versions", "parameters", "head", "fitted"}
FITTED = {"offset", "contamination", "calibration", "n_samples_seen", "feature_names"}
FITTED_OF: dict[type[BaseDetector], set[str]] = {
    DICEDetector: {"contribution_threshold", "head_agreement", "shaping", "sum_of_weights"},
    FDBDDetector: {"sum_of_weights"},
    ViMDetector: {"alpha"},
}
MEAN_ARRAYS = {"mean_activation", "activation_total", "activation_error"}
ARRAYS_OF: dict[type[BaseDetector], set[str]] = {
    DICEDetector: {"mask"} | MEAN_ARRAYS,
    FDBDDetector: MEAN_ARRAYS,
    ViMDetector: {"origin", "residual_components"},
}
CALIBRATION = {field.name for field in fields(Calibration)}
# An ensemble holds the documents of its members, whose arrays have a prefix in their names.
ENSEMBLE = {"kind", "schema", "versions", "parameters", "members", "fitted"}
MEMBER = {"name", "document", "tail_start", "tail_mean"}
HEAD_ARRAYS = {"weight", "bias"}
SCORE_ARRAYS = {"calibration_scores", "calibration_classes"}
