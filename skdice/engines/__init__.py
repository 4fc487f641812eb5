"""How a block of rows becomes logits and scores. Engines know no scikit-learn."""

from collections.abc import Iterator
from typing import Any

from skdice.engines._array import ArrayLayer
from skdice.engines._choice import choose_engine, choose_path_engine
from skdice.engines._dense import dense_logits
from skdice.engines._device import CUDA_DEVICE, DEVICES, torch_device
from skdice.engines._few import FewClassesLayer
from skdice.engines._fused import FUSED_SCORES, FusedScore
from skdice.engines._plan import Plan
from skdice.engines._sparse import TILE_ROWS, SparseLayer
from skdice.engines._threads import available_threads, block_threads

__all__ = [
    "CUDA_DEVICE",
    "DEVICES",
    "FUSED_SCORES",
    "TILE_ROWS",
    "ArrayLayer",
    "FewClassesLayer",
    "FusedScore",
    "Plan",
    "SparseLayer",
    "available_threads",
    "block_threads",
    "choose_engine",
    "choose_path_engine",
    "dense_logits",
    "torch_blocks",
    "torch_device",
]


def torch_blocks(*args: Any, **options: Any) -> Iterator[tuple[slice, Any]]:
    """Call the torch engine, which only that imports; see `skdice.engines._torch`."""
    from skdice.engines import _torch

    return _torch.torch_blocks(*args, **options)
