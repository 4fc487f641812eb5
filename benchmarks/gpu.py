"""Rows scored per second on a GPU, beside the limits that the card itself sets in the same run.

    python benchmarks/gpu.py [--rows 1000000] [--features 2048] [--classes 1000]

The limit of rows from the host is the slower of the copy (page-locked memory to the device)
and the matrix product; that of rows on the device is the matrix product alone, in the dtype
that is computed in: single precision for all of these, TF32 where it is opted in.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from skdice import DICEDetector, LinearHead


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a function, after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        gc.collect()
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_rate(device: str, repeats: int, *, pinned: bool) -> float:
    """Return bytes per second from the host to the device."""
    source = torch.ones(1 << 28, pin_memory=pinned)  # 1 GiB
    target = torch.empty_like(source, device=device)
    return source.nbytes / seconds(lambda: target.copy_(source, non_blocking=True), repeats)


def product_rate(device: str, shape: tuple[int, int, int], dtype: torch.dtype, n: int) -> float:
    """Return rows per second of the matrix product alone."""
    rows, n_features, n_classes = shape
    rows = min(rows, 1 << 16)
    block = torch.randn(rows, n_features, device=device, dtype=dtype)
    weight = torch.randn(n_classes, n_features, device=device, dtype=dtype)
    out = torch.empty(rows, n_classes, device=device, dtype=dtype)
    return rows / seconds(lambda: torch.mm(block, weight.T, out=out), n)


def broadcast(X: torch.Tensor, weight: torch.Tensor) -> int:
    """Return the largest batch of which ``x[:, None, :] * weight`` fits."""
    batch = len(X)
    while True:
        try:
            (X[:batch, None, :] * weight).sum(2).logsumexp(1)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch //= 2
        else:
            return batch


def in_batches(X: torch.Tensor, batch: int, function: Callable[[torch.Tensor], object]) -> None:
    for start in range(0, len(X), batch):
        function(X[start : start + batch])


def report(name: str, rows_per_second: float, limit: float | None = None) -> None:
    share = "" if limit is None else f"{rows_per_second / limit:8.0%} of {limit:14,.0f}"
    print(f"{name:<44}{rows_per_second:14,.0f} rows/s{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device, n = arguments.device, arguments.repeats
    shape = (arguments.rows, arguments.features, arguments.classes)
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}; {shape[0]:,} x {shape[1]:,}, {shape[2]:,} classes")

    rng = np.random.default_rng(0)
    head = LinearHead(rng.normal(size=shape[:0:-1]).astype(np.float32))
    X = np.empty(shape[:2], np.float32)
    for start in range(0, len(X), 10_000):
        block = X[start : start + 10_000]
        rng.standard_normal(out=block, dtype=np.float32)
        np.maximum(block, 0, out=block)
    detector = DICEDetector(head).fit(X[:10_000])
    streamed = DICEDetector(head, device=device if on_gpu else None).fit(X[:10_000])

    products = {
        dtype: product_rate(device, shape, dtype, n)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    for dtype, rate in products.items():
        report(f"matrix product alone, {str(dtype)[6:]}", rate)
    copies = float("inf")
    if on_gpu:
        copies = copy_rate(device, n, pinned=True)
        pageable = copy_rate(device, n, pinned=False)
        print(
            f"copy to the device: {copies / 1e9:.1f} GB/s from page-locked memory, "
            f"{pageable / 1e9:.1f} GB/s from pageable memory"
        )

    single = products[torch.float32]
    limit = min(single, copies / (4 * shape[1]))
    report(
        "pageable memory, float32", len(X) / seconds(lambda: streamed.score_samples(X), n), limit
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        np.save(Path(folder) / "X.npy", X)
        mapped = np.load(Path(folder) / "X.npy", mmap_mode="r")
        took = seconds(partial(streamed.score_samples, mapped), n)
        report("memmap in the page cache, float32", len(X) / took, limit)
    if on_gpu:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            pinned = torch.from_numpy(X).to(dtype).pin_memory()
            took = seconds(partial(streamed.score_samples, pinned), n)
            limit = min(single, copies / (dtype.itemsize * shape[1]))
            report(f"page-locked memory, {str(dtype)[6:]}", len(X) / took, limit)
            del pinned

    tensor = torch.from_numpy(X).to(device)
    report("resident, float32", len(X) / seconds(lambda: detector.score_samples(tensor), n), single)
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        limit = product_rate(device, shape, torch.float32, n)
        took = seconds(lambda: detector.score_samples(tensor), n)
        report("resident, TF32 opted in", len(X) / took, limit)
        torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.float16, torch.bfloat16):
        half = tensor.to(dtype)
        took = seconds(partial(detector.score_samples, half), n)
        report(f"resident, {str(dtype)[6:]}", len(X) / took, single)
        del half

    weight = torch.from_numpy(np.array(detector.coef_)).to(device)
    bias = torch.from_numpy(np.array(detector.intercept_)).to(device)
    took = seconds(lambda: torch.nn.functional.linear(tensor, weight, bias).logsumexp(1), n)
    report("peer: linear + logsumexp in one call", len(X) / took, single)
    part = tensor[: 20_000 if on_gpu else 256]
    batch = broadcast(part, weight)
    took = seconds(
        lambda: in_batches(part, batch, lambda x: (x[:, None, :] * weight).sum(2).logsumexp(1)), n
    )
    report(f"peer: broadcast product, batches of {batch:,}", len(part) / took, single)


if __name__ == "__main__":
    main()
