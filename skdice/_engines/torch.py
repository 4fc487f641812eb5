"""The torch engine: blocks scored where a tensor lies, or streamed to a GPU from the host.

Importing this imports torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skdice._engines.module import DetectorModule, planned_module
from skdice._engines.plan import Plan

Function = Callable[[Tensor], Tensor]

# Rows in a file or array travel as they are in these dtypes, by NumPy's names.
TRAVELLING = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

# What a block and its logits occupy on a GPU: enough rows that a matrix product runs at its
# full rate.
RESIDENT_BYTES = 256 << 20
# The same on the CPU, where it is to stay in cache.
HOST_BYTES = 8 << 20
# What one staging buffer holds; there are two on the host and two on the device.
STAGED_BYTES = 64 << 20
# Threads that fill a staging buffer: one alone is slower than the bus.
STAGING_THREADS = 8


def torch_blocks(
    plan: Plan,
    read: Callable[[slice], Any],
    n_rows: int,
    dtype: Any,
    device: torch.device,
    *,
    logits: bool,
    double: bool,
    batch_size: int | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the slice and the logits or scores of each block of rows, in order.

    Rows on the host travel to the device, and their results back; those of a tensor on a
    device stay there.

    Parameters
    ----------
    plan : Plan
        What is computed, with NumPy's arrays.
    read : callable
        Returns the rows of a slice, as an array or a tensor; called in order.
    n_rows : int
        Rows of the whole.
    dtype : numpy dtype or torch.dtype
        Of the rows.
    device : torch.device
        Where they are computed.
    logits : bool
        Whether the logits are wanted, rather than the scores.
    double : bool
        Whether it is computed in double precision.
    batch_size : int or None
        Rows per block; None chooses them.
    """
    if double and device.type == "mps":
        raise ValueError("device 'mps' has no double precision: give it float32 rows")
    computed = torch.float64 if double else torch.float32
    n_classes, n_features = plan.coef.shape
    module = planned_module(plan, computed).to(device)
    function = layer_function(module, logits=logits)
    row_bytes = (n_features + n_classes) * computed.itemsize
    on_host = not isinstance(dtype, torch.dtype) or read(slice(0, 0)).device.type == "cpu"
    if not on_host or device.type == "cpu":
        n_bytes = HOST_BYTES if device.type == "cpu" else RESIDENT_BYTES
        slices = _slices(n_rows, batch_size or max(64, n_bytes // row_bytes))
        return blocks_on_device(function, read, slices, device)
    # The few that torch has no other name for travel as what they are computed in.
    travelling = dtype if isinstance(dtype, torch.dtype) else TRAVELLING.get(str(dtype), computed)
    # Both the staging buffers and what is computed on the device have to be of a fair size.
    fitting = min(STAGED_BYTES // (n_features * travelling.itemsize), RESIDENT_BYTES // row_bytes)
    block_rows = batch_size or max(64, fitting)
    return blocks_from_host(function, read, n_rows, block_rows, n_features, travelling, device)


def layer_function(module: DetectorModule, *, logits: bool) -> Function:
    """Return the function from a block of features to its logits, or to its scores.

    A shaping may hide a value that is not finite, so such rows are marked by NaN.
    """

    def compute(features: Tensor) -> Tensor:
        if not features.is_floating_point():
            features = features.double()
        # The precision is that of the features, whatever the caller's own computation has.
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            values = module.logits(features) if logits else module(features)
            if module.shaping:
                bad = ~features.isfinite().all(1)
                values = values.masked_fill(bad[:, None] if logits else bad, torch.nan)
        return values

    return compute


class Halving:
    """Computes blocks, in halves where the device's memory is too small for them.

    Parameters
    ----------
    function : callable
        From a tensor of rows to a tensor of as many rows.
    device : torch.device
        Whose memory it is.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function, self._device, self._rows = function, device, 0

    def __call__(
        self, block: Callable[[slice], Tensor], rows: slice
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows, and their results, in as many parts as it takes.

        Parameters
        ----------
        block : callable
            Returns the rows of a slice as a tensor on the device.
        rows : slice
            Which are wanted.
        """
        start = rows.start
        while start < rows.stop:
            part = slice(start, min(start + (self._rows or rows.stop), rows.stop))
            result = self._attempt(block, part)
            if result is not None:
                yield part, result
                start = part.stop
            else:
                # Of the failed attempt, nothing is referred to any more.
                self._rows = (part.stop - part.start) // 2
                _free(self._device)

    def _attempt(self, block: Callable[[slice], Tensor], part: slice) -> Tensor | None:
        """Return the result, or None where there is too little memory."""
        try:
            return self._function(block(part))
        except RuntimeError as error:
            if part.stop - part.start == 1 or not _out_of_memory(error):
                raise
            return None


def blocks_on_device(
    function: Function, native: Callable[[slice], Tensor], slices: list[slice], device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the slice and the result of each block of a tensor that lies on some device.

    Parameters
    ----------
    function : callable
        From a block of rows to their results.
    native : callable
        Returns the rows of a slice.
    slices : list of slice
        The blocks.
    device : torch.device
        Where they are computed.
    """
    compute = Halving(function, device)
    for rows in slices:
        yield from compute(lambda part: native(part).to(device), rows)


def blocks_from_host(
    function: Function,
    read: Callable[[slice], Any],
    n_rows: int,
    block_rows: int,
    n_features: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the slice and the result, on the host, of each block of rows that the host holds.

    On a CUDA device a thread fills one of two page-locked buffers, from where a second
    stream copies them, while the block before is computed; results come back on a third.
    Afterwards the memory of the device is given back.

    Parameters
    ----------
    function : callable
        From a block of rows on the device to their results.
    read : callable
        Returns the rows of a slice, as an array or a tensor; called in order, by one thread.
    n_rows, block_rows : int
        Rows of the whole, and of a block.
    n_features : int
        Columns.
    dtype : torch.dtype
        In which the rows travel.
    device : torch.device
        Where they are computed.
    """
    stream = _through_staging if device.type == "cuda" else _one_by_one
    blocks = stream(Halving(function, device), read, n_rows, block_rows, n_features, dtype, device)
    del function  # and with it the weights on the device
    try:
        yield from blocks
    finally:
        del blocks
        _free(device)


def _one_by_one(
    compute: Halving,
    read: Callable[[slice], Any],
    n_rows: int,
    block_rows: int,
    n_features: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Generator[tuple[slice, Tensor]]:
    for rows in _slices(n_rows, block_rows):
        host = torch.empty((rows.stop - rows.start, n_features), dtype=dtype, device="cpu")
        _fill(host, read(rows))

        def block(part: slice, host: Tensor = host, first: int = rows.start) -> Tensor:
            return host[part.start - first : part.stop - first].to(device)

        for part, result in compute(block, rows):
            yield part, result.cpu()


def _through_staging(
    compute: Halving,
    read: Callable[[slice], Any],
    n_rows: int,
    block_rows: int,
    n_features: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Generator[tuple[slice, Tensor]]:
    with (
        closing(_Staging(min(block_rows, n_rows), n_features, dtype, device)) as staging,
        ThreadPoolExecutor(1, "skdice-staging") as reader,
    ):
        slices = _slices(n_rows, staging.n_rows)
        working: deque[_OnItsWay] = deque()
        ahead = reader.submit(staging.load, 0, read, slices[0])
        for n, rows in enumerate(slices):
            block = ahead.result()
            if n + 1 < len(slices):
                ahead = reader.submit(staging.load, n + 1, read, slices[n + 1])
            for each in staging.compute(n, rows, block, compute):
                working.append(each)
                if len(working) > 1:
                    yield working.popleft().arrived()
        while working:
            yield working.popleft().arrived()


@dataclass
class _OnItsWay:
    """A result that is being copied to the host; the device's copy must live as long."""

    rows: slice
    host: Tensor
    device: Tensor
    done: torch.cuda.Event

    def arrived(self) -> tuple[slice, Tensor]:
        """Wait for the result, and return it with its slice."""
        self.done.synchronize()
        return self.rows, self.host


class _Staging:
    """Two page-locked buffers on the host, two on a CUDA device, and the streams between.

    Parameters
    ----------
    n_rows, n_features : int
        Shape of a buffer; half as many rows, and so on, where the device has less memory.
    dtype : torch.dtype
        Of the rows.
    device : torch.device
        The CUDA device.
    """

    def __init__(self, n_rows: int, n_features: int, dtype: torch.dtype, device: torch.device):
        self.n_rows = n_rows
        # The reading thread writes to them, whatever mode the caller is in.
        with torch.inference_mode(False):
            while (buffers := self._allocated(n_features, dtype, device)) is None:
                self.n_rows //= 2
                _free(device)
            self.device = buffers
            self.host = torch.empty(
                (2, self.n_rows, n_features), dtype=dtype, device="cpu", pin_memory=True
            )
        self._inward, self._outward = _stream(device), _stream(device)
        # The memory may have been given up by work that is still under way.
        self._inward.wait_stream(torch.cuda.current_stream(device))
        self._copied, self._computed = [_event(), _event()], [_event(), _event()]
        self._pool = ThreadPoolExecutor(STAGING_THREADS, "skdice-copy")

    def _allocated(
        self, n_features: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Return two buffers on the device, or None where it lacks the memory."""
        try:
            # As much again is left for what is computed.
            probe = torch.empty((4, self.n_rows, n_features), dtype=dtype, device=device)
            del probe
            return torch.empty((2, self.n_rows, n_features), dtype=dtype, device=device)
        except RuntimeError as error:
            if self.n_rows == 1 or not _out_of_memory(error):
                raise
            return None

    def load(self, n: int, read: Callable[[slice], Any], rows: slice) -> Tensor:
        """Start the copy of the n-th block, and return it as it will be on the device."""
        source, turn = read(rows), n % 2
        if not (isinstance(source, Tensor) and source.is_pinned()):
            staged = self.host[turn, : len(source)]
            self._copied[turn].synchronize()  # the block before in this buffer has left it
            _fill(staged, source, self._pool)
            source = staged
        block = self.device[turn, : len(source)]
        with torch.cuda.stream(self._inward):
            self._inward.wait_event(self._computed[turn])
            block.copy_(source, non_blocking=True)
            self._copied[turn].record(self._inward)
        return block

    def compute(self, n: int, rows: slice, block: Tensor, function: Halving) -> Iterator[_OnItsWay]:
        """Compute the n-th block once it is there, and start the copy of its results."""
        turn, stream = n % 2, torch.cuda.current_stream(block.device)
        stream.wait_event(self._copied[turn])
        first = rows.start
        for part, result in function(lambda p: block[p.start - first : p.stop - first], rows):
            host = torch.empty(result.shape, dtype=result.dtype, device="cpu", pin_memory=True)
            computed, done = _event(), _event()
            computed.record(stream)
            with torch.cuda.stream(self._outward):
                self._outward.wait_event(computed)
                host.copy_(result, non_blocking=True)
                done.record(self._outward)
            self._computed[turn].record(stream)
            yield _OnItsWay(part, host, result, done)

    def close(self) -> None:
        """Wait for what is under way, and give the memory back."""
        self._pool.shutdown()
        torch.cuda.synchronize(self.device.device)
        # Also where a traceback still refers to a part of it.
        self.device.untyped_storage().resize_(0)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as torch has it


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # as torch has it


def _slices(n_rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _fill(block: Tensor, source: Any, pool: ThreadPoolExecutor | None = None) -> None:
    """Copy rows into a tensor on the host; those of an array with the threads of a pool."""
    if isinstance(source, Tensor):
        block.copy_(source)
        return
    source = np.asarray(source)
    target = block.numpy()

    def copy(rows: slice) -> None:
        np.copyto(target[rows], source[rows], casting="unsafe")

    if pool is None:
        copy(slice(None))
    else:
        list(pool.map(copy, _slices(len(target), -(-len(target) // STAGING_THREADS))))


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )


def _free(device: torch.device) -> None:
    """Give cached memory of a device back to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
