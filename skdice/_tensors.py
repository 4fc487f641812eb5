"""torch tensors as sources of rows, by their own methods: nothing here imports torch."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from skdice._rows import LazyRows


class TensorRows(LazyRows):
    """A source of rows over a torch tensor.

    Parameters
    ----------
    tensor : torch.Tensor
        Of any numeric dtype, on any device; dtypes that NumPy lacks are read as float32.
    """

    def __init__(self, tensor: Any) -> None:
        self.shape = tuple(tensor.shape)
        self._tensor = tensor.detach()
        self.dtype = tensor_to_numpy(tensor[:0] if self.shape else tensor).dtype

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return tensor_to_numpy(self._tensor[start:stop])


def tensor_to_numpy(tensor: Any) -> NDArray[Any]:
    """Return a torch tensor as an array; dtypes that NumPy lacks (bfloat16) as float32."""
    tensor = tensor.detach().cpu()
    try:
        array: NDArray[Any] = tensor.numpy()
    except TypeError:
        array = tensor.float().numpy()
    return array
