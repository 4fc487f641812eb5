"""Reading a head's weight and bias from npz, safetensors and torch files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from skdice._extras import import_extra

Array = NDArray[Any]


def read_weight_and_bias(path: Path, prefix: str | None) -> tuple[Array, Array | None]:
    """Return the weight and the bias (None where there is none) of a layer in a file.

    Parameters
    ----------
    path : Path
        A .npz, .safetensors, .pt, .pth or .bin file.
    prefix : str or None
        Name of the layer; None for bare ``weight`` and ``bias``.
    """
    if path.suffix not in _READERS:
        raise ValueError(
            f"cannot read a head from {path.name!r}: expected one of {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    weight, bias = (f"{prefix}.{part}" if prefix else part for part in ("weight", "bias"))
    names, read = _READERS[path.suffix](path)
    if weight not in names:
        layers = sorted(name.removesuffix(".weight") for name in names if name.endswith(".weight"))
        known = f"layers in the file: {', '.join(layers)}" if layers else f"it has {sorted(names)}"
        raise ValueError(f"{path.name} has no {weight!r}; {known}. Name one with prefix=")
    return pointwise(read(weight)), read(bias) if bias in names else None


def pointwise(weight: Array) -> Array:
    """Return a 1x1 convolution's weight without its kernel axes; any other as it is."""
    return weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def tensor_to_numpy(tensor: Any) -> Array:
    """Return a torch tensor as an array; half precision, bfloat16 included, as float32."""
    tensor = tensor.detach().cpu()
    array: Array = (tensor if tensor.element_size() > 4 else tensor.float()).numpy()
    return array


Contents = tuple[list[str], Callable[[str], Array]]


def _read_npz(path: Path) -> Contents:
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is not a readable .npz file: {error}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path.name} holds one array, not an archive with 'weight' and 'bias'")

    def read(name: str) -> Array:
        try:
            array: Array = archive[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {name!r} from {path.name}: {error}") from error
        return array

    return archive.files, read


def _read_safetensors(path: Path) -> Contents:
    try:
        file = safe_open(path, framework="numpy")
        return list(file.keys()), file.get_tensor
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable .safetensors file: {error}") from error


def _read_torch(path: Path) -> Contents:
    torch = import_extra("torch", "torch")
    try:
        # weights_only: tensors and containers of them, no other object is ever built.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch.load has no error class of its own
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path.name} is not a readable torch state dict: {reason}") from error
    tensors = {name: value for name, value in _flatten(content) if isinstance(value, torch.Tensor)}
    return list(tensors), lambda name: tensor_to_numpy(tensors[name])


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of nested dictionaries."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


_READERS: dict[str, Callable[[Path], Contents]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
}
