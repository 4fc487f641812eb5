"""Scaling over worker processes, bytes over the network, and load of the scheduler.

    python benchmarks/scaling.py [--rows 200000] [--features 1024] [--classes 1000]

Strong scaling takes the same rows with 1 and 2 workers of one thread each, weak scaling so many
rows per worker. The chunks, of float16, are made by the workers; making them is timed by itself
(``read``). Bytes are those that leave any process: to the client, from the client and the
scheduler, and between workers. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
from distributed import Client, LocalCluster, wait

from skdice import DICEDetector, LinearHead

GB = 1e9


def make_block(block_id: Any = None, shape: Any = None) -> Any:
    """Return a chunk of ReLU-like features; cheap, as reading from storage is no CPU's work."""
    rng = np.random.default_rng(block_id[0])
    tile = np.maximum(rng.standard_normal((997, shape[1]), np.float32), 0).astype(np.float16)
    return np.tile(tile, (-(-shape[0] // len(tile)), 1))[: shape[0]]


def features(n_rows: int, n_features: int, chunk_rows: int) -> Any:
    chunks = da.core.normalize_chunks((chunk_rows, -1), (n_rows, n_features))
    return da.map_blocks(
        make_block,
        chunks=chunks,
        dtype=np.float16,
        meta=np.empty((0, 0), np.float16),
        shape=(chunk_rows, n_features),
    )


def sent_by_workers(client: Client) -> int:
    """Return the bytes that the workers have sent one another."""

    def sent(dask_worker: Any) -> int:
        return sum(each["total"] for each in dask_worker.transfer_outgoing_log)

    return sum(client.run(sent).values())


def loopback_bytes() -> int:
    """Return the bytes that all processes have sent on this machine's own network."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def measure(
    client: Client, function: Callable[[], Any], repeats: int
) -> tuple[float, float, float, int]:
    """Return median seconds, bytes between workers, bytes on the network, and tasks."""
    seconds, between, network, tasks = [], [], [], []
    for _ in range(repeats):
        scheduler = client.cluster.scheduler
        transitions, workers = count_tasks(scheduler), sent_by_workers(client)
        bytes_before = loopback_bytes()
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
        network.append(loopback_bytes() - bytes_before)
        between.append(sent_by_workers(client) - workers)
        tasks.append(count_tasks(scheduler) - transitions)
        del result
    return (
        statistics.median(seconds),
        statistics.median(between),
        statistics.median(network),
        int(statistics.median(tasks)),
    )


def count_tasks(scheduler: Any) -> int:
    """Return how many tasks have been finished since the scheduler started."""
    return sum(prefix.state_counts["memory"] for prefix in scheduler.task_prefixes.values())


def increment(n: int) -> int:
    return n + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--chunk-rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    dask.config.set({"distributed.worker.memory.terminate": False})
    rng = np.random.default_rng(0)
    head = LinearHead(rng.standard_normal((arguments.classes, arguments.features), np.float32))
    row_bytes = 2 * arguments.features
    print(
        f"{arguments.features} float16 features, {arguments.classes} classes, sparsity 0.7, "
        f"chunks of {arguments.chunk_rows} rows ({arguments.chunk_rows * row_bytes / 1e6:.1f} MB)"
    )
    print(
        f"{'':8}{'workers':>8}{'rows':>10}{'seconds':>9}{'MB/s':>8}{'tasks/GB':>10}"
        f"{'bytes/row':>11}{'between workers':>17}"
    )
    fitted = DICEDetector(head).fit(make_block((0,), (arguments.chunk_rows, arguments.features)))
    runs = [("strong", arguments.rows, 1), ("strong", arguments.rows, 2)]
    runs += [("weak", arguments.rows // 2, 1)]
    for kind, n_rows, n_workers in runs:
        with (
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            X = features(n_rows, arguments.features, arguments.chunk_rows)
            steps = {
                "read": lambda X=X: X.map_blocks(touch, chunks=(1, 1), dtype=int).sum().compute(),
                "mean": lambda X=X: DICEDetector(head).partial_fit(X),
                "score": lambda X=X: fitted.score_samples(X).compute(),
            }
            fitted.score_samples(X[: arguments.chunk_rows]).compute()  # imports on the workers
            for name, step in steps.items():
                seconds, between, network, tasks = measure(client, step, arguments.repeats)
                print(
                    f"{name:8}{n_workers:8}{n_rows:10}{seconds:9.2f}"
                    f"{n_rows * row_bytes / seconds / 1e6:8.0f}"
                    f"{tasks / (n_rows * row_bytes / GB):10.1f}"
                    f"{network / n_rows:11.2f}{between / n_rows:17.3f}   {kind}",
                    flush=True,
                )
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        head_bytes = head.weight.nbytes
        X = features(arguments.rows // 4, arguments.features, 1000)
        network = measure(client, lambda: fitted.score_samples(X).compute(), 1)[2]
        print(
            f"\nbytes on the network to score {X.numblocks[0]} chunks by 2 workers: "
            f"{network / 1e6:.1f} MB, of which scores {4 * X.shape[0] / 1e6:.1f} MB; the masked "
            f"weight has {head_bytes / 1e6:.1f} MB"
        )
        n_tasks = 2000
        wait(client.map(increment, range(100), key="warm"))
        started = time.perf_counter()
        wait(client.map(increment, range(n_tasks), pure=False))
        per_task = (time.perf_counter() - started) / n_tasks
        print(f"scheduler, client and worker per empty task: {per_task * 1e6:.0f} microseconds")
        chunks = features(n_tasks, 8, 1)
        started = time.perf_counter()
        DICEDetector("identity", sparsity=0).partial_fit(chunks)
        seconds = time.perf_counter() - started
        print(
            f"mean of {n_tasks} chunks of one row: {seconds / n_tasks * 1e6:.0f} microseconds each"
        )


def touch(block: Any) -> Any:
    return np.array([[len(block)]])


if __name__ == "__main__":
    main()
