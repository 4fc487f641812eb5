"""Evidence that the rate of flags is above the promised one, updated row by row.

Two kinds, of one interface: `MixtureEvidence` bounds the probability of ever raising a false
alarm, `ShiryaevRoberts` the average number of rows between false alarms. Everything is kept as
logarithms, because the evidence of a stream that has changed grows beyond any float.
"""

from math import exp, inf, lgamma, log, log1p, nextafter
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincc, expit, gammaln

FloatArray = NDArray[np.float64]

# exp overflows for arguments above 709.
LARGEST_EXPONENT = 700.0
# The rates, as multiples of the promised one, that the Shiryaev-Roberts evidence looks for.
RATE_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0)


def log_beta(a: float, b: float) -> float:
    """Return the logarithm of the beta function."""
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def prior_of(rate: float) -> float:
    """Return b of the Beta(1, b) prior of a changed rate, whose mean is twice the promised rate.

    The least b is 0.1: for promised rates near one half and above, the formula gives a prior
    that does not exist, or that expects a rate of one. Any prior keeps the guarantee.
    """
    return max((1 - 2 * rate) / (2 * rate), 0.1)


class MixtureEvidence:
    """Likelihood ratio of a mixture of rates above the promised one, a test martingale.

    On good rows it is a nonnegative supermartingale that starts at 1. By Ville's inequality the
    probability that it ever reaches 1 / false_alarm is at most false_alarm. The prior of the
    changed rate is Beta(1, b) truncated to (rate, 1).

    Parameters
    ----------
    rate : float
        The promised rate.
    false_alarm : float
        The probability of ever raising a false alarm.
    state : list of float, default=None
        The largest logarithm of the evidence so far; None starts anew.
    """

    def __init__(self, rate: float, false_alarm: float, state: list[float] | None = None) -> None:
        self.rate, self.b = rate, prior_of(rate)
        self.log_level = -log(false_alarm)
        # This is log B(1, b) plus the log of the prior probability of (rate, 1).
        self._log_norm = -log(self.b) + self.b * log1p(-rate)
        self._log_flagged, self._log_good = log(rate), log1p(-rate)
        (self.peak,) = [0.0] if state is None else state

    @property
    def state(self) -> list[float]:
        """All that has to be kept, beside the numbers of rows and flags."""
        return [self.peak]

    def log_value(self, n_samples: int, n_flagged: int) -> float:
        """Return the logarithm of the evidence after these numbers of rows and flagged rows."""
        a, b = 1.0 + n_flagged, self.b + (n_samples - n_flagged)
        log_tail = self._log_tail(a, b)
        return self._log_bound(n_samples, n_flagged) + log_tail

    def add_one(self, flagged: bool, n_samples: int, n_flagged: int) -> bool:
        """Take one row, after which the numbers are as given; True if the level is reached."""
        # A good row multiplies the evidence by the mean of (1 - theta) / (1 - rate), theta > rate,
        # so that only a flagged row can make it larger than ever before.
        if flagged and self._log_bound(n_samples, n_flagged) > self.peak:
            self.peak = max(self.peak, self.log_value(n_samples, n_flagged))
        return self.peak >= self.log_level

    def add_block(self, flags: NDArray[np.bool_], n_samples: int, n_flagged: int) -> int | None:
        """Take rows; return the first at which the level is reached.

        The numbers are those before the block. `add_one` of each row gives the same state, bit
        for bit: the same function computes every value that enters it.
        """
        at = np.flatnonzero(flags)
        t = n_samples + 1.0 + at
        s = n_flagged + 1.0 + np.arange(len(at))
        bounds = (
            gammaln(1 + s)
            + gammaln(self.b + t - s)
            - gammaln(1 + self.b + t)
            - self._log_norm
            - s * self._log_flagged
            - (t - s) * self._log_good
        )
        # This slack covers the rounding in which gammaln and lgamma differ.
        bounds += 1e-9 + 1e-12 * t

        def value(i: Any) -> float:
            return self.log_value(int(t[i]), int(s[i]))

        before = self.peak
        candidates = np.flatnonzero(bounds > before)
        for i in candidates[np.argsort(-bounds[candidates])]:
            if bounds[i] <= self.peak:
                break
            self.peak = max(self.peak, value(i))
        if not before < self.log_level <= self.peak:
            return None
        high = np.flatnonzero(bounds >= self.log_level)
        return int(at[next(i for i in high if value(i) >= self.log_level)])

    def _log_bound(self, n_samples: int, n_flagged: int) -> float:
        """Return the evidence without the truncation to (rate, 1), which is never smaller."""
        n_good = n_samples - n_flagged
        return (
            log_beta(1.0 + n_flagged, self.b + n_good)
            - self._log_norm
            - n_flagged * self._log_flagged
            - n_good * self._log_good
        )

    def _log_tail(self, a: float, b: float) -> float:
        """Return the logarithm of the probability that Beta(a, b) is above the promised rate."""
        mean = a / (a + b)
        if mean > self.rate:
            # Chernoff's bound of the probability of the other side: where it is far below the
            # precision of a float, the incomplete beta function, which is slow, is not needed.
            distance = mean * log(mean / self.rate) + (1 - mean) * log((1 - mean) / (1 - self.rate))
            if (a + b - 1) * distance > 50:
                return 0.0
        tail = float(betaincc(a, b, self.rate))
        return log(tail) if tail > 0 else -inf


class ShiryaevRoberts:
    """Sum of the evidence of a change at any row so far, a mean over several changed rates.

    At the promised rate the sum minus the number of rows is a martingale, so that on average at
    least `run_length` good rows pass before the sum reaches `run_length`.

    Parameters
    ----------
    rate : float
        The promised rate.
    run_length : float
        The least average number of good rows between false alarms.
    state : list of float, default=None
        log(1 + R) for each changed rate; None starts anew, with R = 0.

    References
    ----------
    Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change
    detection", arXiv:2203.03532.
    """

    def __init__(self, rate: float, run_length: float, state: list[float] | None = None) -> None:
        self._level = run_length
        changed = [rate * ratio for ratio in RATE_RATIOS if rate * ratio < 1]
        if not changed:
            raise ValueError(
                f"rate is {rate:g}, expected less than 2/3 with run_length, because that looks for "
                "rates of at least 1.5 times the promised one"
            )
        self._log_flagged = [log(theta / rate) for theta in changed]
        self._log_good = [log1p(-theta) - log1p(-rate) for theta in changed]
        self.state: list[float] = [0.0] * len(changed) if state is None else list(state)

    def log_value(self, n_samples: int, n_flagged: int) -> float:
        """Return the logarithm of the evidence."""
        largest = max(self.state)
        if largest < LARGEST_EXPONENT:
            mean = sum(np.expm1(self.state)) / len(self.state)
            return log(mean) if mean > 0 else -inf
        return largest + log(sum(exp(u - largest) for u in self.state) / len(self.state))

    def add_one(self, flagged: bool, n_samples: int, n_flagged: int) -> bool:
        """Take one row; True if the evidence reaches the level."""
        factors = self._log_flagged if flagged else self._log_good
        try:
            evidence = list(map(exp, map(add, self.state, factors)))  # R of the new row
        except OverflowError:
            # Where exp overflows, log(1 + R) is log R to all digits.
            log_evidence = map(add, self.state, factors)
            self.state = [x if x > LARGEST_EXPONENT else log1p(exp(x)) for x in log_evidence]
            return True
        self.state = list(map(log1p, evidence))
        return sum(evidence) >= self._level * len(evidence)

    def add_block(self, flags: NDArray[np.bool_], n_samples: int, n_flagged: int) -> int | None:
        """Take rows; return the first at which the level is reached.

        With V = 1 + R and L the factor of a row, V <- 1 + L V. Divided by the product P of all
        factors so far, this is a running sum: V / P = V_0 + sum of 1 / P. It differs from
        `add_one` of each row by rounding alone: P has a logarithm of at most 10,000 in a block,
        which is known to 2e-12, and V forgets earlier errors as fast as it forgets rows.
        """
        first = None
        for start in range(0, len(flags), 4096):
            block = flags[start : start + 4096]
            n = np.arange(1.0, len(block) + 1)
            s = np.cumsum(block, dtype=np.float64)
            log_product = np.outer(self._log_flagged, s) + np.outer(self._log_good, n - s)
            terms = np.column_stack([self.state, -log_product])
            log_sum = np.logaddexp.accumulate(terms, axis=1)
            self.state = np.maximum(log_product[:, -1] + log_sum[:, -1], 0).tolist()
            if first is None:
                log_evidence = log_product + log_sum[:, :-1]
                with np.errstate(over="ignore"):  # infinity is above the level, too
                    mean = np.exp(log_evidence).mean(axis=0)
                rows = np.flatnonzero(mean >= self._level)
                first = start + int(rows[0]) if len(rows) else None
        return first


class ChangePoint:
    """The row before which the rate of flags most likely was at most the promised one.

    It is the maximum-likelihood estimate for a change from the promised rate to twice that rate,
    or halfway to 1 where that is less: the last row at which the log-likelihood ratio of all rows
    so far is least.

    Parameters
    ----------
    rate : float
        The promised rate.
    row : int
        Number of rows before the change.
    n_flagged : int
        Number of flagged rows among them.
    """

    def __init__(self, rate: float, row: int = 0, n_flagged: int = 0) -> None:
        # (1 + rate) / 2 may round to 1.
        changed = min(2 * rate, (1 + rate) / 2, nextafter(1, 0))
        self._log_flagged = log(changed / rate)
        self._log_good = log1p(-changed) - log1p(-rate)
        self.row, self.n_flagged = row, n_flagged
        self._least = self._log_ratio(row, n_flagged)

    def _log_ratio(self, n_samples: Any, n_flagged: Any) -> Any:
        # The counts are exact, so the result does not depend on how the rows were split.
        return n_flagged * self._log_flagged + (n_samples - n_flagged) * self._log_good

    def add_one(self, n_samples: int, n_flagged: int) -> None:
        """Take one row, after which there are so many rows and flagged rows."""
        value = self._log_ratio(n_samples, n_flagged)
        if value <= self._least:
            self.row, self.n_flagged, self._least = n_samples, n_flagged, value

    def add_block(self, flags: NDArray[np.bool_], n_samples: int, n_flagged: int) -> None:
        """Take rows, before which there were so many rows and flagged rows."""
        if not len(flags):
            return
        rows = n_samples + np.arange(1, len(flags) + 1)
        flagged = n_flagged + np.cumsum(flags)
        values = self._log_ratio(rows, flagged)
        last = len(values) - 1 - int(np.argmin(values[::-1]))
        if values[last] <= self._least:
            self.row, self.n_flagged = int(rows[last]), int(flagged[last])
            self._least = float(values[last])


def rate_bounds(n_samples: int, n_flagged: int, b: float, level: float) -> tuple[float, float]:
    """Return a confidence interval of the rate of flags that holds at all times together.

    For every rate q, the likelihood ratio of the Beta(1, b) mixture to q is a test martingale
    while q is the true rate. The interval is where it has not reached 1 / (1 - level).
    """
    n_good = n_samples - n_flagged
    # log_beta(1, b) is -log(b).
    log_ratio = log_beta(1.0 + n_flagged, b + n_good) + log(b) + log1p(-level)

    def excess(logit: float) -> float:
        # In this form log q and log (1 - q) keep their digits for rates near 0 and near 1.
        log_q, log_rest = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
        return float(log_ratio - n_flagged * log_q - n_good * log_rest)

    # The observed share is inside, because no mixture is likelier than the best single rate.
    end = LARGEST_EXPONENT
    inside = log(n_flagged / n_good) if n_flagged and n_good else (end if n_flagged else -end)
    low = float(expit(brentq(excess, -end, inside, xtol=1e-12))) if n_flagged else 0.0
    high = float(expit(brentq(excess, inside, end, xtol=1e-12))) if n_good else 1.0
    return low, high
