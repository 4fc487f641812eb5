"""What the monitor and the batch test promise, and what happens where the promise does not hold.

    python benchmarks/monitoring.py

Simulates flags alone: a good row is flagged with the promised rate. The tables are those of the
guide "In production". Takes about a minute.
"""

import time

import numpy as np
from scipy.stats import binom

from skdice.monitoring import FlagMonitor, batch_pvalue

RATE = 0.05
N_STREAMS, N_ROWS = 1000, 20_000
RUN_LENGTH, LONG_RUN_LENGTH = 5000, 50_000


def alarms(monitor, make_flags, n_streams=N_STREAMS):
    """Return the rows of the alarms, counted from 1; infinity without an alarm."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n_streams):
        row = monitor.reset().update(make_flags(rng)).alarm_row_
        rows.append(np.inf if row is None else row + 1)
    return np.array(rows)


def good(rng, n_rows=N_ROWS):
    return rng.random(n_rows) < RATE


def frames(length):
    """Good rows in groups, such as the frames of a video, that are flagged all or none."""
    return lambda rng: np.repeat(good(rng, N_ROWS // length), length)


def similar(correlation):
    """Good rows whose scores follow an autoregression: each is like the one before."""

    def make(rng):
        noise = rng.normal(size=N_ROWS) * np.sqrt(1 - correlation**2)
        scores = np.empty(N_ROWS)
        scores[0] = rng.normal()
        for i in range(1, N_ROWS):
            scores[i] = correlation * scores[i - 1] + noise[i]
        return scores < -1.6448536269514722

    return make


def batch_errors():
    print("\nfalse alarms of a batch of 500 good rows at a nominal 1 %, percent")
    print("n_calibration  binomial  beta-binomial")
    rng = np.random.default_rng(0)
    for n in (100, 300, 500, 1500, 5000):
        rank = int(0.05 * (n + 1))
        # The share of good rows below the k-th of n uniform scores.
        counts = rng.binomial(500, rng.beta(rank, n + 1 - rank, 100_000))
        known, inverse = np.unique(counts, return_inverse=True)
        exact = np.array([batch_pvalue(int(c), 500, rank, n) for c in known])
        naive = binom.sf(known - 1, 500, RATE)
        print(f"{n:13}  {100 * (naive[inverse] <= 0.01).mean():8.1f}", end="")
        print(f"  {100 * (exact[inverse] <= 0.01).mean():13.1f}")


def main():
    monitor = FlagMonitor(RATE)
    print(f"false alarms in {N_STREAMS} streams of {N_ROWS} good rows, percent")
    cases = {"independent": good, "frames, 2 alike": frames(2), "frames, 5 alike": frames(5)}
    cases |= {"frames, 25 alike": frames(25)}
    cases |= {f"autoregression {r}": similar(r) for r in (0.3, 0.6, 0.9)}
    for name, make in cases.items():
        n_streams = N_STREAMS if "auto" not in name else 300
        print(f"  {name:20} {100 * np.isfinite(alarms(monitor, make, n_streams)).mean():5.1f}")
    one_of_25 = lambda rng: frames(25)(rng)[::25]  # noqa: E731
    print(f"  one frame of 25      {100 * np.isfinite(alarms(monitor, one_of_25)).mean():5.1f}")

    print("\nrows to the alarm, median (90 % of the streams)")
    print(
        "flagged  false_alarm=0.01, from the start  after 2,000 good  run_length=5000, after 2,000"
        "  run_length=50000"
    )
    late = FlagMonitor(RATE, run_length=RUN_LENGTH)
    latest = FlagMonitor(RATE, run_length=LONG_RUN_LENGTH)
    for rate in (0.06, 0.08, 0.1, 0.2, 0.5):
        shown = []
        for watch, n_good in ((monitor, 0), (monitor, 2000), (late, 2000), (latest, 2000)):

            def make(rng, rate=rate, n_good=n_good):
                return np.concatenate([good(rng, n_good), rng.random(60_000) < rate])

            rows = alarms(watch, make, 500) - n_good
            rows = rows[rows > 0]  # an earlier alarm was a false one
            shown.append(f"{np.median(rows):8.0f} ({np.quantile(rows, 0.9):.0f})")
        print(f"{rate:7.0%}  " + "  ".join(f"{each:>24}" for each in shown))

    lengths = alarms(late, lambda rng: good(rng, 200_000), 500)
    print(f"\nrun_length={RUN_LENGTH}: on average {lengths.mean():.0f} good rows to a false alarm")

    batch_errors()

    print("\nupdates")
    flags = good(np.random.default_rng(0), 1_000_000)
    few = flags[:100_000].tolist()
    for watch in (monitor, late):
        start = time.perf_counter()
        watch.reset().update(flags)
        block = time.perf_counter() - start
        watch.reset()
        start = time.perf_counter()
        for flag in few:
            watch.update(flag)
        single = (time.perf_counter() - start) / len(few)
        print(f"  {watch!r}: {1 / block:.1f} million rows a second in blocks,", end="")
        print(f" {1e6 * single:.2f} microseconds for a single flag")


if __name__ == "__main__":
    main()
