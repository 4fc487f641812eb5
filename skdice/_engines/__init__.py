"""How a block of rows becomes logits and scores. Engines know no scikit-learn."""

from collections.abc import Iterator
from typing import Any

from skdice._engines.array import ArrayLayer
from skdice._engines.choice import choose_engine, choose_path_engine
from skdice._engines.dense import dense_logits
from skdice._engines.device import CUDA_DEVICE, DEVICES, torch_device
from skdice._engines.few import FewClassesLayer
from skdice._engines.kernels.fused import FUSED_SCORES, FusedScore
from skdice._engines.plan import Plan
from skdice._engines.sparse import TILE_ROWS, SparseLayer
from skdice._engines.threads import available_threads, block_threads

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
    """Call the torch engine, which only that imports; see `skdice._engines.torch`."""
    from skdice._engines import torch as torch_engine

    return torch_engine.torch_blocks(*args, **options)
