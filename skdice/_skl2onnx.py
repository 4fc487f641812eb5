"""Converters of the detectors for skl2onnx, so that pipelines that end in one become ONNX files."""

from typing import Any

import numpy as np

from skdice._compat.extras import import_extra
from skdice._dice import DICEDetector
from skdice._ensemble import ConformalEnsemble
from skdice._fdbd import FDBDDetector
from skdice._search import DICEDetectorCV
from skdice._vim import ViMDetector

DETECTORS = (ConformalEnsemble, DICEDetector, DICEDetectorCV, FDBDDetector, ViMDetector)
# Earlier operators differ in more than the reductions.
LEAST_OPSET = 13


def register_skl2onnx() -> None:
    """Teach skl2onnx to convert the detectors, alone and as the last step of a pipeline.

    Call this once before ``skl2onnx.to_onnx``. A detector then has the outputs of its method
    ``to_onnx``: ``score``, ``is_ood`` and, after a conformal calibration, ``pvalue``. skl2onnx
    writes no metadata of the detector into the file.

    Raises
    ------
    ImportError
        skl2onnx is not installed.

    See Also
    --------
    DICEDetector.to_onnx : A detector without a pipeline, written without skl2onnx.

    Examples
    --------
    >>> import numpy as np
    >>> import onnxruntime, skdice, skl2onnx
    >>> from skdice.datasets import load_fashion_mnist_ood
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> data = load_fashion_mnist_ood()
    >>> rows = data.id_train.astype(np.float32)
    >>> pipeline = make_pipeline(StandardScaler(), skdice.ViMDetector(data.head)).fit(rows)
    >>> skdice.register_skl2onnx()
    >>> model = skl2onnx.to_onnx(pipeline, rows[:1])
    >>> session = onnxruntime.InferenceSession(model.SerializeToString())
    >>> score, is_ood = session.run(None, {"X": rows})
    >>> bool((is_ood == (pipeline.predict(rows) == -1)).mean() > 0.999)
    True
    """
    skl2onnx = import_extra("skl2onnx", "onnx")
    for detector in DETECTORS:
        skl2onnx.update_registered_converter(
            detector, _alias(detector), _set_shapes, _convert, parser=_parse
        )


def _alias(detector_class: type) -> str:
    """Return the name by which skl2onnx knows a class of detectors."""
    return f"Skdice{detector_class.__name__}"


def _parse(scope: Any, detector: Any, inputs: list[Any], custom_parsers: Any = None) -> list[Any]:
    """Declare the operator of a detector and its outputs; return the outputs."""
    from skl2onnx.common.data_types import BooleanTensorType, guess_tensor_type

    from skdice._export.model import output_types

    operator = scope.declare_local_operator(_alias(type(detector)), detector)
    operator.inputs = inputs
    number = type(guess_tensor_type(inputs[0].type))  # integers are scored as float32
    for name in output_types(detector._exported(), 0):
        kind = BooleanTensorType if name == "is_ood" else number
        operator.outputs.append(scope.declare_local_variable(name, kind([None])))
    outputs: list[Any] = operator.outputs
    return outputs


def _set_shapes(operator: Any) -> None:
    """Leave the shapes as they are, because `_parse` has set them."""


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the nodes and arrays of a detector, under names that are free, to those of skl2onnx."""
    from onnx.helper import get_attribute_value
    from skl2onnx.common.data_types import DoubleTensorType

    from skdice._export.model import INPUT, build_graph

    detector, opset = operator.raw_operator, container.target_opset_onnx
    if opset < LEAST_OPSET:
        raise ValueError(
            f"target_opset is {opset}, but {type(detector).__name__} needs at least {LEAST_OPSET}"
        )
    is_double = isinstance(operator.outputs[0].type, DoubleTensorType)
    dtype = np.dtype(np.float64 if is_double else np.float32)
    graph = build_graph(detector._exported(), dtype, opset)

    def add(operator_name: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = scope.get_unique_operator_name(operator_name)
        container.add_node(
            operator_name, inputs, outputs, op_version=opset, name=name, **attributes
        )

    # The columns of a data frame are separate inputs.
    rows, features = (scope.get_unique_variable_name(each) for each in ("rows", INPUT))
    add("Concat", [each.onnx_name for each in operator.inputs], [rows], axis=1)
    add("Cast", [rows], [features], to=graph.input[0].type.tensor_type.elem_type)
    names = {INPUT: features}
    names |= {
        own.name: declared.onnx_name
        for own, declared in zip(graph.output, operator.outputs, strict=True)
    }
    for array in graph.initializer:
        names[array.name] = scope.get_unique_variable_name(array.name)
        container.add_initializer(names[array.name], array.data_type, None, array)
    for node in graph.node:
        for name in node.output:
            names.setdefault(name, scope.get_unique_variable_name(name))
        add(
            node.op_type,
            [names[name] for name in node.input],
            [names[name] for name in node.output],
            **{each.name: get_attribute_value(each) for each in node.attribute},
        )
