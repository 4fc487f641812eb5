"""The torch engine: blocks of rows on any device of torch; importing this imports torch.

Rows that lie on the host reach a CUDA device through page-locked buffers. Each thread of the loop
over the blocks has a buffer and a stream of its own: while one thread computes, others fill their
buffers and copy them, so that the bus and the processor of the device are busy at the same time.
Within a thread everything is in the order of its one stream.
"""

from contextlib import nullcontext
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skdice._engines.layer import Layer
from skdice._engines.module import ScoringModule, detector_module

# A block and its logits take this much memory of a GPU. These are enough rows for a matrix product
# to run at its full rate.
RESIDENT_BYTES = 256 << 20
# A block and its logits take this much memory of the CPU, where they should stay in cache.
HOST_BYTES = 8 << 20
# One page-locked buffer has this size.
STAGED_BYTES = 32 << 20
# This many threads feed a GPU with rows of the host, because one thread alone fills a buffer slower
# than the bus empties it.
STAGING_THREADS = 4
# Rows of these NumPy dtypes are copied to a device unchanged; other rows are first converted to the
# dtype of the computation.
TRAVELLING = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))


class TorchEngine:
    """Computes blocks of rows on one device of torch.

    Parameters
    ----------
    layer : MaskedLayer, FDBDLayer or ViMLayer
        The layer that is computed.
    device : torch.device
        The device that computes it.
    dtype : dtype
        Precision of the results, float32 or float64.
    """

    def __init__(self, layer: Layer, device: torch.device, dtype: np.dtype[Any]) -> None:
        if dtype == np.float64 and device.type == "mps":
            raise ValueError("device 'mps' has no double precision: give it float32 rows")
        self.device = device
        self._dtype = torch.float64 if dtype == np.float64 else torch.float32
        self._returns_logits = layer.score is None

        def on_device(*arrays: Any) -> ScoringModule:
            # A module made in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                module = detector_module(layer, dtype=dtype).to(device, self._dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # because streams of other threads use the weights
            return module

        key = ("torch", device, dtype, layer.settings)
        self._module = layer.packed_as(key, on_device)
        # The most rows that fit on the device; None until a block does not fit.
        self._most_rows: int | None = None
        self._of_thread = local()

    def block_bytes(self, *, from_host: bool) -> int:
        """Return about how much memory a block and its logits may take."""
        if self.device.type == "cpu":
            return HOST_BYTES
        return STAGED_BYTES if from_host and self.device.type == "cuda" else RESIDENT_BYTES

    def compute_tensor(self, block: Tensor) -> Tensor:
        """Return the values of a tensor, on its own device."""
        home = block.device
        if home.type == "cpu" and self.device.type == "cuda":
            return torch.from_numpy(self.compute_host(block))
        return self._in_parts(block).to(home)

    def compute_host(self, block: Any) -> np.ndarray[Any, Any]:
        """Return the values of a NumPy array or a tensor on the host, as a NumPy array."""
        if not isinstance(block, Tensor):
            if block.dtype not in TRAVELLING or not block.dtype.isnative:
                block = block.astype(str(self._dtype).removeprefix("torch."))
            block = torch.from_numpy(np.require(block, requirements=["C", "W"]))
        if self.device.type != "cuda":
            return np.asarray(self._in_parts(block).cpu())
        with torch.cuda.stream(self._stream()):
            if not block.is_pinned():
                block = self._staged(block)
            # The copy back waits for this stream, so that the buffer can be filled again.
            return np.asarray(self._in_parts(block).cpu())

    def free(self) -> None:
        """Give cached memory of the device back to the system."""
        free_memory(self.device)

    def _stream(self) -> Any:
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._of_thread.stream

    def _staged(self, block: Tensor) -> Tensor:
        """Return a copy of a block in the page-locked buffer of this thread."""
        buffer: Tensor | None = getattr(self._of_thread, "buffer", None)
        if buffer is None or buffer.dtype != block.dtype or len(buffer) < len(block):
            self._of_thread.buffer = buffer = torch.empty(
                block.shape, dtype=block.dtype, pin_memory=True
            )
        return buffer[: len(block)].copy_(block)

    def _in_parts(self, block: Tensor) -> Tensor:
        """Return the values of a block, computed in parts if the device's memory is too small."""
        size = self._most_rows or len(block)
        parts: list[Tensor] = []
        start = 0
        while start < len(block) or not parts:
            values = self._attempt(block[start : start + size])
            if values is None:
                # Outside of `_attempt` nothing refers to the tensors of the failed attempt.
                size = self._most_rows = size // 2
                free_memory(self.device)
            else:
                parts.append(values)
                start += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attempt(self, block: Tensor) -> Tensor | None:
        """Return the values of a block on the device, or None if its memory is too small."""
        try:
            return self._compute(block.to(self.device, non_blocking=True))
        except RuntimeError as error:
            if len(block) <= 1 or not _out_of_memory(error):
                raise
            return None

    def _compute(self, block: Tensor) -> Tensor:
        if not block.is_floating_point():
            block = block.double()
        kind = block.device.type
        autocast = (
            torch.autocast(kind, enabled=False)
            if torch.amp.is_autocast_available(kind)
            else nullcontext()
        )
        # Autocast is off because the precision must be that of the features in any context.
        with torch.no_grad(), autocast:
            values = self._module.logits(block) if self._returns_logits else self._module(block)
            if self._module.shaping:
                # A shaping may hide a value that is not finite.
                is_bad = ~block.isfinite().all(1)
                values = values.masked_fill(
                    is_bad[:, None] if self._returns_logits else is_bad, torch.nan
                )
        result: Tensor = values
        return result


def free_memory(device: torch.device) -> None:
    """Give cached memory of a device back to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )
