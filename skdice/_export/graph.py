"""A graph of ONNX operators under construction; importing this imports onnx."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

# From this opset on, all reductions take their axes as an input.
FIRST_OPSET_WITH_AXES_INPUT = 18
# A protobuf message of 2 GiB cannot be written. All but the arrays takes little of it.
MOST_BYTES = (1 << 31) - (1 << 20)


class Graph:
    """A list of nodes and constants, each of which is held once.

    Values are known by their names, which `add` and `constant` return. Adding the same operator
    with the same inputs again returns the name of the first result, so that the members of an
    ensemble share the product with their common head without knowing of one another.

    Parameters
    ----------
    dtype : dtype
        float32 or float64: the dtype of all real numbers.
    opset : int
        Version of the ONNX operators, at least 13.
    """

    def __init__(self, dtype: np.dtype[Any], opset: int) -> None:
        self.dtype, self.opset = dtype, opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._n_bytes = 0
        self._names: dict[Hashable, str] = {}

    @property
    def element_type(self) -> int:
        """The number that ONNX has for the dtype of all real numbers."""
        return int(TensorProto.DOUBLE if self.dtype == np.float64 else TensorProto.FLOAT)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output."""
        key = (operator, inputs, tuple(sorted(attributes.items())))
        if key not in self._names:
            name = f"{operator}_{len(self.nodes)}"
            node = helper.make_node(operator, list(inputs), [name], name=name, **attributes)
            self.nodes.append(node)
            self._names[key] = name
        return self._names[key]

    def largest(self, rows: str, n: int) -> str:
        """Return the n largest values of each row (n_rows, k) in descending order."""
        key = ("TopK", rows, n)
        if key not in self._names:
            name = f"TopK_{len(self.nodes)}"
            outputs = [name, f"{name}_places"]
            inputs = [rows, self.constant([n])]
            self.nodes.append(helper.make_node("TopK", inputs, outputs, name=name, axis=1))
            self._names[key] = name
        return self._names[key]

    def columns(self, rows: str, start: int, stop: int) -> str:
        """Return the columns from start to stop."""
        return self.add("Slice", rows, *(self.constant([each]) for each in (start, stop, 1)))

    def constant(self, values: ArrayLike) -> str:
        """Add an array and return its name; real numbers are converted to the graph's dtype."""
        array = np.asarray(values)
        dtype = np.dtype(np.int64) if array.dtype.kind in "iu" else self.dtype
        with np.errstate(over="ignore"):  # a threshold beyond float32 is infinite there
            array = np.ascontiguousarray(array, dtype).reshape(array.shape)
        key = (dtype.name, array.shape, hashlib.sha256(array.data).digest())
        if key not in self._names:
            self._check_size(array)
            name = f"constant_{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self._names[key] = name
        return self._names[key]

    def reduce(self, operator: str, values: str) -> str:
        """Reduce rows (n, k) by an operator such as ``"ReduceMax"`` to a column (n, 1)."""
        if operator == "ReduceSum" or self.opset >= FIRST_OPSET_WITH_AXES_INPUT:
            return self.add(operator, values, self.constant([1]), keepdims=1)
        return self.add(operator, values, axes=(1,), keepdims=1)

    def any(self, conditions: str) -> str:
        """Return for rows of conditions (n, k) whether any of them holds: (n, 1), bool."""
        numbers = self.add("Cast", conditions, to=TensorProto.INT32)
        return self.add("Cast", self.reduce("ReduceMax", numbers), to=TensorProto.BOOL)

    def is_not_finite(self, values: str) -> str:
        """Return for each value whether it is NaN or infinite, bool."""
        return self.add("Or", self.add("IsNaN", values), self.add("IsInf", values))

    def linear(self, features: str, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> str:
        """Return ``features @ weight.T + bias``; the weight keeps the layout of torch."""
        arrays = (weight,) if bias is None else (weight, bias)
        return self.add("Gemm", features, *map(self.constant, arrays), transB=1)

    def norm(self, rows: str) -> str:
        """Return the Euclidean norm of rows (n, k): (n, 1)."""
        return self.add("Sqrt", self.reduce("ReduceSum", self.add("Mul", rows, rows)))

    def nan_where(self, condition: str, values: str) -> str:
        """Return values with NaN in the places of a condition."""
        return self.add("Where", condition, self.constant(np.nan), values)

    def finish(self, outputs: Sequence[tuple[str, str, int]], input_name: str, width: int) -> Any:
        """Return the graph as ONNX holds it.

        Parameters
        ----------
        outputs : sequence of tuple (name, column, element type)
            Name of each output (n,), and the column (n, 1) that it is made from.
        input_name : str
            Name of the input (n, width).
        width : int
            Number of features.
        """
        axis = self.constant([1])
        last = [
            helper.make_node("Squeeze", [column, axis], [name], name=name)
            for name, column, _ in outputs
        ]
        return helper.make_graph(
            [*self.nodes, *last],
            "skdice",
            [helper.make_tensor_value_info(input_name, self.element_type, ["rows", width])],
            [helper.make_tensor_value_info(name, kind, ["rows"]) for name, _, kind in outputs],
            self.initializers,
        )

    def _check_size(self, array: NDArray[Any]) -> None:
        self._n_bytes += array.nbytes
        if self._n_bytes > MOST_BYTES:
            raise ValueError(
                f"the arrays of the detector take more than {MOST_BYTES:,} bytes in {self.dtype}, "
                "but an ONNX file without external data holds at most 2 GiB"
                + (": give dtype='float32'" if self.dtype == np.float64 else "")
            )
