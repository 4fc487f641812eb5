"""The dense engine: one matrix product per block, by NumPy's BLAS or another array library."""

from collections.abc import Callable, Sequence
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import Namespace, from_numpy
from skdice._engines.activations import apply_shaping
from skdice._engines.layer import LayerPath, MaskedLayer
from skdice._engines.logits import score_logits
from skdice._scores import SCORES

FloatArray = NDArray[np.floating[Any]]


class _Memory(local):
    """Memory for the logits of a block, in each thread, which the next block overwrites."""

    logits: FloatArray | None = None

    def of_rows(self, n_rows: int, n_classes: int, dtype: np.dtype[Any]) -> FloatArray:
        if self.logits is None or len(self.logits) < n_rows:
            self.logits = np.empty((n_rows, n_classes), dtype)
        return self.logits[:n_rows]


def dense_engine(
    layer: MaskedLayer, dtype: np.dtype[Any], *, reuses_memory: bool
) -> Callable[[FloatArray], FloatArray]:
    """Return the function from a NumPy block to its values.

    Parameters
    ----------
    layer : MaskedLayer
        The layer that is computed.
    dtype : dtype
        Dtype of the blocks.
    reuses_memory : bool
        True if there are several blocks. Fresh memory for the logits of each of them would cost
        more than the scores.
    """
    weight, bias = layer.weight, layer.bias
    if weight.dtype != dtype:
        weight, bias = weights_in(layer, dtype)
    shaping, score = layer.shaping, layer.score
    # Logits that are returned, or given to a function of the user, need memory of their own.
    memory = _Memory() if reuses_memory and isinstance(score, str) else None

    def compute(block: FloatArray) -> FloatArray:
        shaped = block if shaping is None else apply_shaping(shaping, block)
        out = None if memory is None else memory.of_rows(len(shaped), len(weight), dtype)
        # `check_values` reports an overflow with its row.
        with np.errstate(over="ignore", invalid="ignore"):
            logits: FloatArray = np.matmul(shaped, weight.T, out=out)
            logits += bias
            if isinstance(score, str):
                scores: FloatArray = SCORES[score](logits, overwrite=True)
                return scores
        values: FloatArray = score_logits(score, logits)
        return values

    return compute


def weights_in(layer: MaskedLayer, dtype: np.dtype[Any]) -> tuple[FloatArray, FloatArray]:
    """Return the weight and the bias of a layer in a dtype; they are converted once."""
    return layer.packed_as(
        ("dense", dtype),
        lambda weight, bias: (weight.astype(dtype, copy=False), bias.astype(dtype, copy=False)),
    )


def array_engine(
    layer: MaskedLayer, namespace: Namespace, dtype: np.dtype[Any]
) -> Callable[[Any], Any]:
    """Return the function from a block of another array library to its values, on its device."""
    xp = namespace.xp

    def on_device(weight: FloatArray, bias: FloatArray) -> tuple[Any, Any]:
        return (
            from_numpy(weight.astype(dtype, copy=False), namespace),
            from_numpy(bias.astype(dtype, copy=False), namespace),
        )

    weight, bias = layer.packed_as(("array", xp, namespace.device, dtype), on_device)

    def compute(block: Any) -> Any:
        with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
            shaped = apply_shaping(layer.shaping, xp.astype(block, weight.dtype))
            return score_logits(layer.score, shaped @ weight.T + bias)

    return compute


def dense_path_engine(path: LayerPath, dtype: np.dtype[Any]) -> Callable[[FloatArray], FloatArray]:
    """Return the function from a NumPy block to its scores at each mask of a path."""
    zero = path.weight.dtype.type(0)
    layers: Sequence[Callable[[FloatArray], FloatArray]] = [
        dense_engine(
            MaskedLayer(np.where(mask, path.weight, zero), path.bias, None, path.score),
            dtype,
            reuses_memory=True,
        )
        for mask in path.masks
    ]

    def compute(block: FloatArray) -> FloatArray:
        shaped = apply_shaping(path.shaping, block)
        return np.stack([score(shaped) for score in layers], axis=1)

    return compute
