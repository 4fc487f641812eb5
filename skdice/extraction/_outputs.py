"""The comparison of a head's logits with what a model returns."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

# The logits may differ from the model's by the rounding of the largest logit, or else by this share
# of how much the model's logits vary between rows.
LIMIT = 1e-3
ROUNDING = 1e-5
# A temperature is only fitted to more values than this, because some temperature fits few values.
FEW_VALUES = 3
NESTING = 4


def output_tensors(output: Any, depth: int = NESTING) -> Iterator[Any]:
    """Yield the tensors in a model's output: in containers and in objects with attributes."""
    if hasattr(output, "detach"):
        yield output
    elif depth:
        for _, value in _members(output):
            yield from output_tensors(value, depth - 1)


def logits_in(output: Any) -> list[Any]:
    """Return the tensor that the model calls its logits, or else all tensors of its output."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", None) if logits is None else logits
    return list(output_tensors(output if logits is None else logits))


def map_tensors(output: Any, change: Callable[[Any], Any], depth: int = NESTING) -> Any:
    """Return a model's output with each tensor changed; containers are changed in place."""
    if hasattr(output, "detach"):
        return change(output)
    if not depth:
        return output
    if isinstance(output, tuple):
        changed = [map_tensors(value, change, depth - 1) for value in output]
        return type(output)(*changed) if hasattr(output, "_fields") else type(output)(changed)
    for key, value in list(_members(output)):
        changed_value = map_tensors(value, change, depth - 1)
        if changed_value is value:
            continue
        if isinstance(output, Mapping | list):
            output[key] = changed_value  # type: ignore[index]
        else:
            setattr(output, key, changed_value)
    return output


def _members(output: Any) -> Iterator[tuple[Any, Any]]:
    """Yield keys and values of a container, or names and values of an object's attributes."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, list | tuple):
        yield from enumerate(output)
    elif not hasattr(output, "named_modules"):  # A reference to a model is not output.
        yield from getattr(output, "__dict__", {}).items()


def least_deviation(logits: NDArray[Any], outputs: list[NDArray[Any]], eps: float) -> float:
    """Return how far logits are from the nearest of a model's outputs.

    The distance is the largest difference, as a share of how much the output varies between rows.
    Up to `LIMIT` the output is a known monotone function of the logits. Infinity means that no
    output can be compared: only floating tensors with as many values as there are logits are.
    The precision `eps` is that of the narrowest dtype that took part in the computation.
    """
    deviations = []
    for output in outputs:
        compared = logits
        if output.size == len(logits) and logits.shape[1] == 2:
            # The head of one logit has two rows, minus and plus half of it.
            compared = logits[:, 1:] - logits[:, :1]
        is_batch = len(logits) == 1 or output.shape[:1] == logits.shape[:1]
        if is_batch and output.dtype.kind == "f" and output.size == compared.size:
            # An output of NaN or infinity is not that of finite logits.
            is_finite = bool(np.isfinite(output).all())
            output = output.reshape(compared.shape)
            deviations.append(_deviation(compared, output, eps) if is_finite else 1.0)
    return min(deviations, default=np.inf)


def _deviation(logits: NDArray[Any], output: NDArray[Any], eps: float) -> float:
    """Return the least deviation of an output from the known functions of the logits."""
    tiny = np.finfo(output.dtype).tiny
    logits, output = logits.astype(np.float64), output.astype(np.float64)
    rounding = max(4 * eps, ROUNDING)
    # The output was rounded relative to its size, and the logarithm of a probability to 1.
    size = np.abs(output).max()
    misfits = [_misfit(logits, output, rounding * size)]
    is_share = bool(((output >= 0) & (output <= 1)).all())
    if logits.shape[1] > 1:
        # A softmax leaves only the differences within a row.
        misfits.append(_misfit(*_differences(logits, output), rounding * size))
        if is_share and np.allclose(output.sum(axis=1), 1, atol=rounding):
            z, y = _differences(logits, np.log(np.maximum(output, tiny)))
            is_shown = (output >= tiny) & (y < 0)
            misfits.append(
                _misfit_of_logs(is_shown, z, y, softmax(logits, axis=1), output, rounding)
            )
    if is_share:
        # Near 0 and 1 the rounding of a sigmoid hides the logit.
        is_shown = np.minimum(output, 1 - output) > 1e3 * eps
        y = logit(np.where(is_shown, output, 0.5))
        misfits.append(_misfit_of_logs(is_shown, logits, y, expit(logits), output, rounding))
    return min(misfits)


def _misfit_of_logs(
    is_shown: NDArray[np.bool_],
    z: NDArray[Any],
    y: NDArray[Any],
    expected: NDArray[Any],
    output: NDArray[Any],
    rounding: float,
) -> float:
    """Return the misfit of logarithms of probabilities, or of the probabilities themselves.

    A probability that was rounded to 0 or 1 has lost its logarithm.
    """
    if np.count_nonzero(is_shown) <= FEW_VALUES:
        return _misfit(expected, output, rounding)
    return _misfit(z * is_shown, y * is_shown, rounding * max(1, np.abs(y).max()))


def _differences(logits: NDArray[Any], output: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both less their value at the output's largest class."""
    top = output.argmax(axis=1)[:, None]
    return (
        logits - np.take_along_axis(logits, top, axis=1),
        output - np.take_along_axis(output, top, axis=1),
    )


def _misfit(z: NDArray[Any], y: NDArray[Any], rounding: float) -> float:
    """Return how far y is from z, or from z over a temperature, beyond rounding."""
    error = np.abs(z - y).max()
    if np.count_nonzero(y) > FEW_VALUES and np.vdot(z, y) > 0:
        error = min(error, np.abs(z * (np.vdot(z, y) / np.vdot(z, z)) - y).max())
    if error <= rounding:
        return 0.0
    varied = np.abs(y - y.mean(axis=0)).max()
    # Rows that are all alike, or a single row, have only the differences between classes.
    return float(error / (varied if varied > rounding else max(np.abs(y).max(), np.abs(z).max())))
