"""How many threads this process may take."""

from functools import cache

from joblib import cpu_count, effective_n_jobs
from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    # Finding the libraries takes milliseconds, and asking them takes microseconds.
    return ThreadpoolController()


def block_threads(n_jobs: int | None) -> int:
    """Return how many threads of this process work on blocks of rows.

    The number is that of joblib, but at most a positive `n_jobs`, or else the processors of this
    machine, because joblib's context may name a cluster with many more.

    Parameters
    ----------
    n_jobs : int or None
        The parameter of the detector.
    """
    limit = n_jobs if n_jobs is not None and n_jobs > 0 else cpu_count()
    return int(min(effective_n_jobs(n_jobs), limit))


def available_threads() -> int:
    """Return how many threads a matrix product of NumPy takes at most, at the moment.

    The number follows ``threadpoolctl.threadpool_limits``, the variables that limit a BLAS,
    joblib's limit on the threads of its workers, and the processors that the process may use. The
    smallest limit counts if several libraries have one. The limits of OpenMP count if the BLAS is
    not known, as Apple's is not.
    """
    pools = _controller().info()
    limits = [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]
    limits = limits or [pool["num_threads"] for pool in pools]
    return int(max(1, min([cpu_count(), *limits])))
