"""Reading a head's weight and bias from npz, safetensors and torch files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from skdice._extras import import_extra

Array = NDArray[Any]
# The names in the file, and those of the wanted arrays that it has.
Contents = tuple[list[str], dict[str, Array]]


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
    try:
        names, arrays = _READERS[path.suffix](path, [weight, bias])
    except ImportError:
        raise
    except Exception as error:  # the libraries raise whatever a damaged file leads them to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path.name} is not a readable {path.suffix} file: {reason}") from error
    if weight not in arrays:
        layers = sorted(name.removesuffix(".weight") for name in names if name.endswith(".weight"))
        known = f"layers in the file: {', '.join(layers)}" if layers else f"it has {sorted(names)}"
        raise ValueError(f"{path.name} has no {weight!r}; {known}. Name one with prefix=")
    return pointwise(arrays[weight]), arrays.get(bias)


def pointwise(weight: Array) -> Array:
    """Return a 1x1 convolution's weight without its kernel axes; any other as it is."""
    return weight[..., 0, 0] if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight


def tensor_to_numpy(tensor: Any) -> Array:
    """Return a torch tensor as an array; half precision, bfloat16 included, as float32."""
    tensor = tensor.detach().cpu()
    array: Array = (tensor if tensor.element_size() > 4 else tensor.float()).numpy()
    return array


def _read_npz(path: Path, wanted: list[str]) -> Contents:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it holds one array, not an archive with 'weight' and 'bias'")
        return archive.files, {name: archive[name] for name in wanted if name in archive}


def _read_safetensors(path: Path, wanted: list[str]) -> Contents:
    arrays = {}
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        for name in wanted:
            if name in names:
                is_bfloat16 = file.get_slice(name).get_dtype() == "BF16"
                arrays[name] = _read_bfloat16(path, name) if is_bfloat16 else file.get_tensor(name)
    return names, arrays


def _read_bfloat16(path: Path, name: str) -> Array:
    """Read a tensor of a dtype that NumPy lacks, as float32, from a file found valid."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_size))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + header_size + begin)
        upper_half = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32)
    return (upper_half << 16).view(np.float32).reshape(entry["shape"])


def _read_torch(path: Path, wanted: list[str]) -> Contents:
    torch = import_extra("torch", "torch")
    # weights_only: tensors and containers of them, no other object is ever built.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    tensors = {name: value for name, value in _flatten(content) if isinstance(value, torch.Tensor)}
    found = {name: tensor_to_numpy(tensors[name]) for name in wanted if name in tensors}
    return list(tensors), found


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of nested dictionaries."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


_READERS: dict[str, Callable[[Path, list[str]], Contents]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
}
