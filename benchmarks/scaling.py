"""Scaling over worker processes, bytes over the network, and load of the scheduler.

    python benchmarks/scaling.py [--rows 200000] [--features 1024] [--classes 1000]

Strong scaling takes the same rows with 1 and 2 workers of one thread each, weak scaling so many
rows per worker. The chunks, of float16, are made by the workers; making them is timed by itself
(``read``). Bytes are those that leave any process: to the client, from the client and the
scheduler, and between workers. Medians of the repeats.

On a machine whose processors are shared with others, the wall time says little, so the processor
time of the workers is measured too, in user and in system mode. If two workers take as much
processor time in sum as one, the work itself scales, and what is missing in wall time is waiting.
If they take more, they hinder one another: at the memory or in the system. The same chunks in one
and in two processes without Dask show how much of that is the machine's.
"""

import argparse
import multiprocessing
import os
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
from skdice._rows.sources import ChunkRows

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


def worker_seconds(client: Client) -> tuple[float, float]:
    """Return the processor seconds of all workers so far, in user and in system mode."""
    times = client.run(os.times).values()
    return sum(time.user for time in times), sum(time.system for time in times)


def measure(client: Client, function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return the medians of what one call takes: seconds, bytes, and tasks."""
    calls: list[dict[str, float]] = []
    for _ in range(repeats):
        scheduler = client.cluster.scheduler
        transitions, workers = count_tasks(scheduler), sent_by_workers(client)
        user, system = worker_seconds(client)
        bytes_before, client_before = loopback_bytes(), time.process_time()
        started = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - started
        call = {"seconds": seconds, "client": time.process_time() - client_before}
        call["network"] = loopback_bytes() - bytes_before
        user_after, system_after = worker_seconds(client)
        call |= {"user": user_after - user, "system": system_after - system}
        call["between"] = sent_by_workers(client) - workers
        call["tasks"] = count_tasks(scheduler) - transitions
        calls.append(call)
        del result
    return {name: statistics.median(call[name] for call in calls) for name in calls[0]}


def count_tasks(scheduler: Any) -> int:
    """Return how many tasks have been finished since the scheduler started."""
    return sum(prefix.state_counts["memory"] for prefix in scheduler.task_prefixes.values())


def score_chunks(
    detector: DICEDetector, shape: tuple[int, int], n_chunks: int, barrier: Any
) -> tuple[float, float, float]:
    """Make and score chunks in this process; return seconds, and processor seconds of each half."""
    detector.score_samples(make_block((0,), shape))  # imports, and packs the weights
    barrier.wait()
    started, used = time.perf_counter(), time.process_time()
    making = 0.0
    for n in range(n_chunks):
        before = time.process_time()
        block = make_block((n,), shape)
        making += time.process_time() - before
        # As in a task of a cluster: one thread, which reads nothing ahead.
        for _ in detector._block_values()(ChunkRows(block)):
            pass
    return time.perf_counter() - started, making, time.process_time() - used - making


def without_dask(detector: DICEDetector, shape: tuple[int, int], n_chunks: int) -> None:
    """Print what the same chunks take in one process and in two, without Dask."""
    # The same number of threads of the matrix library as on a worker.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    context = multiprocessing.get_context("spawn")
    for n_processes in (1, 2):
        with context.Manager() as manager, context.Pool(n_processes) as pool:
            barrier = manager.Barrier(n_processes)
            task = (detector, shape, n_chunks // n_processes, barrier)
            times = np.array(pool.starmap(score_chunks, [task] * n_processes, 1))
        print(
            f"{n_processes} processes without Dask, {n_chunks} chunks: {times[:, 0].max():.2f} s; "
            f"processor seconds in sum: {times[:, 1].sum():.2f} to make the rows, "
            f"{times[:, 2].sum():.2f} to score them",
            flush=True,
        )


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
        f"{'':8}{'workers':>8}{'rows':>10}{'seconds':>9}{'user':>8}{'system':>8}{'client':>8}"
        f"{'MB/s':>8}{'tasks/GB':>10}{'bytes/row':>11}{'between workers':>17}"
    )
    first = make_block((0,), (arguments.chunk_rows, arguments.features))
    fitted = DICEDetector(head, sparsity=0.7).fit(first)
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
                call = measure(client, step, arguments.repeats)
                print(
                    f"{name:8}{n_workers:8}{n_rows:10}{call['seconds']:9.2f}"
                    f"{call['user']:8.2f}{call['system']:8.2f}{call['client']:8.2f}"
                    f"{n_rows * row_bytes / call['seconds'] / 1e6:8.0f}"
                    f"{call['tasks'] / (n_rows * row_bytes / GB):10.1f}"
                    f"{call['network'] / n_rows:11.2f}{call['between'] / n_rows:17.3f}   {kind}",
                    flush=True,
                )
    for _ in range(arguments.repeats):
        without_dask(fitted, first.shape, arguments.rows // arguments.chunk_rows)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        head_bytes = head.weight.nbytes
        X = features(arguments.rows // 4, arguments.features, 1000)
        network = measure(client, lambda: fitted.score_samples(X).compute(), 1)["network"]
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
