"""A head's weight and bias in a file of named arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._rows.door import wrap
from skdice.io import _npz, _safetensors
from skdice.io._archive import Archive
from skdice.io._atomic import replacing
from skdice.io._open import open_archive

_WRITERS = {".npz": _npz.write, ".safetensors": _safetensors.write}


def check_head_file(path: Path) -> None:
    """Raise if a head cannot be written under that name."""
    if path.suffix not in _WRITERS:
        raise ValueError(f"cannot write {path}: expected an ending of {' or '.join(_WRITERS)}")


def write_weight_and_bias(path: Path, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Write the two to a .npz or .safetensors file, whole or not at all."""
    check_head_file(path)
    with replacing(path) as temporary:
        _WRITERS[path.suffix](temporary, {"weight": wrap(weight), "bias": wrap(bias)})


def read_weight_and_bias(
    path: Path, prefix: str | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the weight and the bias (None where there is none) of a layer in a file.

    Parameters
    ----------
    path : Path
        A file of named arrays, in any format of `skdice.io`.
    prefix : str or None
        Name of the layer; None for bare ``weight`` and ``bias``.
    """
    weight, bias = (f"{prefix}.{part}" if prefix else part for part in ("weight", "bias"))
    archive = open_archive(path)
    if weight not in archive.members:
        raise ValueError(f"{path} has no {weight!r}; {_layers(archive, prefix)}")
    return (
        pointwise(_whole(archive, weight)),
        _whole(archive, bias) if bias in archive.members else None,
    )


def pointwise(weight: NDArray[Any]) -> NDArray[Any]:
    """Return a 1x1 convolution's weight without its kernel axes; any other as it is."""
    return weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def _whole(archive: Archive, name: str) -> NDArray[Any]:
    rows = archive.open(name)
    return np.asarray(rows[0 : rows.shape[0]])


def _layers(archive: Archive, prefix: str | None) -> str:
    layers = sorted(
        name.removesuffix(".weight") for name in archive.members if name.endswith(".weight")
    )
    meant = [each for each in layers if prefix and each.endswith(f".{prefix}")]
    if len(meant) == 1:
        return f"did you mean prefix={meant[0]!r}?"
    if layers:
        return f"layers in the file: {', '.join(layers)}. Name one with prefix="
    return f"it has {', '.join(archive.shown_names()) or 'one array without a name'}"
