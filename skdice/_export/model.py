"""ONNX models of fitted detectors; importing this imports onnx."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.helper import make_model, make_opsetid, set_model_props

from skdice._compat.version import __version__
from skdice._export.decision import decide, scores_of
from skdice._export.description import FittedDetector
from skdice._export.graph import Graph
from skdice.io._archive import to_path
from skdice.io._atomic import replacing

# ONNX Runtime reads these versions since 1.12.
OPSET, IR_VERSION = 17, 8
INPUT = "features"


def write_model(detector: FittedDetector, path: str | Path, dtype: np.dtype[Any]) -> None:
    """Write the ONNX file of a fitted detector, at once or not at all."""
    graph = build_graph(detector, dtype, OPSET)
    model = make_model(
        graph,
        opset_imports=[make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="skdice",
        producer_version=__version__,
    )
    set_model_props(model, metadata(detector) | {"skdice.sha256": digest(graph)})
    with replacing(to_path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def build_graph(detector: FittedDetector, dtype: np.dtype[Any], opset: int) -> Any:
    """Return the graph of a fitted detector, from features to the outputs of `output_types`.

    Parameters
    ----------
    detector : FittedDetector
        The detector.
    dtype : dtype
        float32 or float64: the dtype of the features, the scores and the p-values.
    opset : int
        Version of the ONNX operators, at least 13.
    """
    graph = Graph(dtype, opset)
    scores = scores_of(graph, detector.layer, INPUT)
    columns = decide(graph, detector, INPUT, scores)
    types = output_types(detector, graph.element_type)
    outputs = [(name, columns[name], types[name]) for name in types]
    return graph.finish(outputs, INPUT, detector.n_features)


def output_types(detector: FittedDetector, element_type: int) -> dict[str, int]:
    """Return the names of the outputs of a detector with their types, in order."""
    types = {"score": element_type}
    if detector.threshold is not None:
        types["is_ood"] = TensorProto.BOOL
    if detector.calibration_scores is not None:
        types["pvalue"] = element_type
    return types


def metadata(detector: FittedDetector) -> dict[str, str]:
    """Return what a service may want to know about a detector, as text by name.

    A name is left out where the detector has no such value.
    """
    calibration = detector.calibration
    values: dict[str, Any] = {
        "version": __version__,
        "detector": detector.kind,
        "n_classes": detector.n_classes,
        "threshold": detector.threshold,
        "contamination": detector.contamination,
    }
    if calibration is not None:
        values |= {
            "method": calibration.method,
            "confidence": calibration.confidence,
            "by": "prediction" if detector.by_class is not None else None,
            "n_calibration": calibration.n_samples,
            "calibrated": calibration.date,
            "calibration_sha256": calibration.digest,
        }
    return {f"skdice.{name}": str(value) for name, value in values.items() if value is not None}


def digest(graph: Any) -> str:
    """Return the SHA-256 of a graph, which names the content of a file and is not a signature."""
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()
