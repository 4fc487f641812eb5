"""The weight and bias of a head in a file of named arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.door import wrap
from skdice.io import _npz, _safetensors
from skdice.io._archive import Archive, listed, to_path
from skdice.io._atomic import replacing
from skdice.io._open import open_archive

_WRITERS = {".npz": _npz.write, ".safetensors": _safetensors.write}


def write_weight_and_bias(path: Path, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Write both to a .npz or .safetensors file, which is complete or not there at all."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"cannot write {path}: expected an ending of {' or '.join(_WRITERS)}")
    with replacing(path) as temporary:
        _WRITERS[path.suffix](temporary, {"weight": wrap(weight), "bias": wrap(bias)})


def read_weight_and_bias(
    path: str | Path, layer: str | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the weight and the bias (None if it has none) of a layer in a file."""
    path = to_path(path)
    weight, bias = (f"{layer}.{part}" if layer else part for part in ("weight", "bias"))
    archive = open_archive(path)
    if weight not in archive.members:
        raise ValueError(f"{path} has no {weight!r}; {_layers(archive, layer)}")
    return (
        pointwise(_whole(archive, weight)),
        _whole(archive, bias) if bias in archive.members else None,
    )


def pointwise(weight: NDArray[Any]) -> NDArray[Any]:
    """Return the weight of a 1x1 convolution without its kernel axes; any other as it is."""
    return weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def _whole(archive: Archive, name: str) -> NDArray[Any]:
    # A copy, because the head outlives the mapping of the file.
    return np.array(archive.open(name)[:])


def _layers(archive: Archive, layer: str | None) -> str:
    layers = [name.removesuffix(".weight") for name in archive.members if name.endswith(".weight")]
    meant = [name for name in layers if layer and name.endswith(f".{layer}")]
    if len(meant) == 1:
        return f"did you mean layer={meant[0]!r}?"
    if layers:
        return f"layers in the file: {listed(layers)}. Name one with layer="
    return f"it has {archive.names()}"
