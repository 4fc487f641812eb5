"""A monitor of a stream of flags."""

from math import exp
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from skdice.io._atomic import replacing
from skdice.monitoring._evidence import (
    LARGEST_EXPONENT,
    ChangePoint,
    MixtureEvidence,
    ShiryaevRoberts,
    prior_of,
    rate_bounds,
)
from skdice.monitoring._flags import (
    as_flags,
    calibration_of,
    check_count,
    check_fraction,
    flagged_rows,
    last_step,
    ranks_of_classes,
)
from skdice.monitoring._state import check_state, read_sealed, sealed

FORMAT = "skdice.monitoring.FlagMonitor"
# A state has a few hundred characters; a longer text is something else.
MOST_CHARACTERS = 10_000
# Flags are taken in blocks of this size, so that the memory does not grow with an update.
BLOCK_ROWS = 1 << 16


class FlagMonitor:
    """Watch a stream of flags and raise an alarm when more rows are odd than promised.

    After every row you may look at the monitor and act on what it says. It keeps a few numbers,
    not the rows. How the rows are split over calls of `update` does not matter.

    Parameters
    ----------
    rate : float in (0, 1)
        The promised rate: the largest share of good rows that the detector flags.
    false_alarm : float in (0, 1), default=0.01
        The probability of ever raising a false alarm, however long the stream is and however
        often one looks. It is not used if `run_length` is given.
    run_length : float above 1, default=None
        Instead of `false_alarm`: the least number of good rows that pass on average before a
        false alarm. Take it for a stream that may change after a long good time. With
        `false_alarm`, a long good past counts against the evidence of a late change.

    Attributes
    ----------
    alarm_ : bool
        Whether an alarm was raised. It stays, and the monitor goes on counting, until `reset`.
    alarm_row_ : int or None
        The row, counted from 0, that raised the alarm.
    change_row_ : int or None
        The row, counted from 0, at which the rate most likely rose, as of the alarm; None without
        an alarm. It is the maximum-likelihood estimate for a change to twice the promised rate.
    evidence_ : float
        Evidence after the last row that the rate is above the promised one. The alarm is raised
        where it reaches 1 / `false_alarm`, or `run_length`. Infinite above 1e304.
    pvalue_ : float
        Probability that good rows ever give evidence as large as the largest so far. It is
        valid at all times, and only with `false_alarm`.
    n_samples_, n_flagged_ : int
        Numbers of rows and of flagged rows since the start or the last `reset`.
    confidence : float or None
        Confidence in the promised rate, of a monitor made by `from_detector`.

    See Also
    --------
    batch_test : Tests one batch, exactly.
    skdice.plotting.MonitorDisplay : Draws evidence and rate along the stream.

    Notes
    -----
    **Guarantee.** If each row is flagged with probability at most `rate` given the rows before
    it, the probability of ever raising an alarm is at most `false_alarm`; or, with `run_length`,
    the average number of rows before an alarm is at least `run_length`. Independent good rows
    meet the condition. The frames of one video, bursts of one customer and repeated rows do not:
    there the guarantee does not hold.

    The evidence of `false_alarm` is the likelihood ratio of a mixture of rates above the promised
    one, with a Beta(1, b) prior truncated to (`rate`, 1) and b = (1 - 2 `rate`) / (2 `rate`) (0.1
    where that is less); it depends on the numbers of rows and flagged rows alone. The evidence of
    `run_length` is the Shiryaev-Roberts sum over the row of the change, a mean over rates of 1.5,
    2, 3, 5 and 10 times the promised one.

    The state is the same for any split of the stream into updates: bit for bit with
    `false_alarm`, up to rounding (1e-9 relative) with `run_length`. Memory does not grow with
    the stream. A monitor is not safe to update from several threads at once.

    References
    ----------
    Ville, "Etude critique de la notion de collectif", 1939.

    Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change
    detection", arXiv:2203.03532.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice.monitoring import FlagMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = FlagMonitor(0.05)
    >>> monitor.update(rng.random(1000) < 0.05).alarm_
    False
    >>> monitor.update(rng.random(1000) < 0.20).alarm_row_
    1190
    """

    n_samples_: int
    n_flagged_: int
    alarm_row_: int | None
    _evidence: MixtureEvidence | ShiryaevRoberts
    # It is left as it is from the alarm on, with the number of flagged rows until the alarm.
    _change: ChangePoint
    _n_flagged_at_alarm: int

    def __init__(
        self, rate: float, *, false_alarm: float = 0.01, run_length: float | None = None
    ) -> None:
        self.rate = check_fraction(rate, "rate")
        self.false_alarm = check_fraction(false_alarm, "false_alarm")
        if run_length is not None:
            is_number = isinstance(run_length, Real) and not isinstance(run_length, bool)
            if not is_number or not 1 < run_length < float("inf"):
                raise ValueError(f"run_length is {run_length!r}, expected a number above 1 or None")
            run_length = float(run_length)
        self.run_length = run_length
        self.confidence: float | None = None
        self._detector: Any = None
        self._calibration: str | None = None
        self.reset()

    @classmethod
    def from_detector(
        cls,
        detector: Any,
        *,
        false_alarm: float = 0.01,
        run_length: float | None = None,
        confidence: float = 0.95,
    ) -> Self:
        """Make a monitor of the rate that a detector's calibration promises.

        A calibration with a confidence promises its contamination: with that confidence, the
        detector flags at most that share of good rows. A calibration without one promises the
        contamination on average over calibrations only; about half of all calibrations flag more,
        and a monitor of that rate would then raise an alarm on good rows sooner or later. So the
        monitor takes the rate that this calibration keeps with `confidence`, which is a little
        above the contamination. In both cases **the probability of a false alarm is at most
        `false_alarm` plus 1 - confidence**.

        After ``calibrate(..., by="prediction")`` the rate is one that all predicted classes keep
        at once with the confidence, so that the promise holds for every mix of classes. It is
        the largest rate of a class at the confidence 1 - (1 - confidence) / n_classes, which is
        well above the contamination for classes of few rows. A calibration with classes that have
        no threshold of their own is refused, because nothing is known about their rate.

        Parameters
        ----------
        detector : outlier detector of skdice
            A calibrated detector, or a Pipeline that ends in one. The monitor keeps it, and
            `update` then takes features, too.
        false_alarm : float in (0, 1), default=0.01
            The probability of ever raising a false alarm, if the promised rate holds.
        run_length : float above 1, default=None
            Instead of `false_alarm`: the least average number of good rows before a false alarm.
        confidence : float in (0, 1), default=0.95
            Confidence in the promised rate, if the detector was calibrated without one.

        Returns
        -------
        FlagMonitor

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The detector is not calibrated.
        ValueError
            The detector was calibrated with ``by="prediction"``, and some classes have no
            threshold of their own.

        Examples
        --------
        >>> from skdice import DICEDetector
        >>> from skdice.datasets import load_fashion_mnist_ood
        >>> from skdice.monitoring import FlagMonitor
        >>> data = load_fashion_mnist_ood()
        >>> detector = DICEDetector(data.head, sparsity=0.1).fit(data.id_train)
        >>> detector = detector.calibrate(data.id_test[:1500], 0.05, method="conformal")
        >>> monitor = FlagMonitor.from_detector(detector)
        >>> round(monitor.rate, 4)
        0.0595
        >>> monitor.update(data.id_test[1500:]).alarm_
        False
        >>> monitor.update(data.ood["mnist"]).alarm_
        True
        """
        calibration = calibration_of(detector)
        if getattr(calibration, "by", None) is not None:
            if calibration.confidence is None:
                confidence = check_fraction(confidence, "confidence")
            else:
                confidence = calibration.confidence
            rate = _rate_of_classes(detector, confidence)
        elif calibration.confidence is not None:
            rate, confidence = calibration.contamination, calibration.confidence
        else:
            confidence = check_fraction(confidence, "confidence")
            rank, n = calibration.rank, calibration.n_samples
            rate = float(betaincinv(rank, n + 1 - rank, confidence))
        monitor = cls(rate, false_alarm=false_alarm, run_length=run_length)
        monitor.confidence = confidence
        monitor._detector = detector
        monitor._calibration = _identity(detector)
        return monitor

    def update(self, flags: Any) -> Self:
        """Take the next row or rows of the stream, in order.

        Parameters
        ----------
        flags : bool, int, or array-like of shape (n_samples,)
            Booleans, True = flagged, or predictions, -1 = flagged and +1 = good. A monitor made
            by `from_detector` also takes features, an array-like or source of rows of shape
            (n_samples, n_features), which its detector judges: a row is flagged where the
            decision function is negative or not finite.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A flag is neither a boolean nor +1 or -1. Nothing of this update is counted then.
        """
        if isinstance(flags, bool | np.bool_):
            self._add_one(bool(flags))
            return self
        flags = self._flags_of(flags)
        if len(flags) == 1:
            self._add_one(bool(flags[0]))
            return self
        for start in range(0, len(flags), BLOCK_ROWS):
            block = flags[start : start + BLOCK_ROWS]
            row = self._evidence.add_block(block, self.n_samples_, self.n_flagged_)
            if self.alarm_row_ is None:
                # The row of the alarm does not count, so that the change is not after it.
                self._change.add_block(block[:row], self.n_samples_, self.n_flagged_)
                if row is not None:
                    self.alarm_row_ = self.n_samples_ + row
                    self._n_flagged_at_alarm = self.n_flagged_ + int(block[: row + 1].sum())
            self.n_samples_ += len(block)
            self.n_flagged_ += int(np.count_nonzero(block))
        return self

    def reset(self) -> Self:
        """Forget all rows and the alarm; rate, guarantee and detector stay.

        Reset after the cause of an alarm is mended. Each reset starts a new stream with a
        guarantee of its own.

        Returns
        -------
        self
        """
        self.n_samples_ = self.n_flagged_ = self._n_flagged_at_alarm = 0
        self.alarm_row_ = None
        self._change = ChangePoint(self.rate)
        self._evidence = self._new_evidence()
        return self

    def merge(self, other: Any) -> NoReturn:
        """Refuse to merge two monitors.

        Parameters
        ----------
        other : object
            Another monitor.

        Raises
        ------
        TypeError
            Always, with the reason.
        """
        raise TypeError(
            "monitors cannot be merged: an alarm depends on the order of the rows, which two "
            "monitors do not tell, and the sum of two streams is not a stream that anyone looked "
            "at. Send the flags of all sources to one monitor in the order of time, or keep a "
            "monitor for each source and divide false_alarm by the number of monitors"
        )

    __add__ = __radd__ = merge

    def rate_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return a confidence interval of the rate of flags.

        Parameters
        ----------
        level : float in (0, 1), default=0.95
            Probability that the interval contains the rate after every row, all at once, if the
            rate does not change: a confidence sequence. Reset the monitor to see the rate since
            a change.

        Returns
        -------
        low, high : float
            Lower and upper bound, as fractions; (0, 1) before the first row.

        Examples
        --------
        >>> from skdice.monitoring import FlagMonitor
        >>> monitor = FlagMonitor(0.05).update(([True] + [False] * 9) * 30)
        >>> low, high = monitor.rate_interval()
        >>> f"{low:.3f} to {high:.3f}"
        '0.055 to 0.162'
        """
        level = check_fraction(level, "level")
        return rate_bounds(self.n_samples_, self.n_flagged_, prior_of(self.rate), level)

    @property
    def alarm_(self) -> bool:
        """Whether an alarm was raised."""
        return self.alarm_row_ is not None

    @property
    def change_row_(self) -> int | None:
        """The row at which the rate most likely rose, as of the alarm."""
        return None if self.alarm_row_ is None else self._change.row

    @property
    def evidence_(self) -> float:
        """Evidence after the last row that the rate is above the promised one."""
        value = self._evidence.log_value(self.n_samples_, self.n_flagged_)
        return exp(value) if value < LARGEST_EXPONENT else float("inf")

    @property
    def pvalue_(self) -> float:
        """Probability that good rows ever give evidence as large as the largest so far."""
        if isinstance(self._evidence, ShiryaevRoberts):
            raise AttributeError(
                "pvalue_ needs a monitor with false_alarm: with run_length an alarm on good rows "
                "is certain sooner or later, so that there is no such probability"
            )
        return exp(-self._evidence.peak)

    @property
    def alarm_level(self) -> float:
        """Evidence at which the alarm is raised: 1 / `false_alarm`, or `run_length`."""
        return 1 / self.false_alarm if self.run_length is None else self.run_length

    @property
    def reading(self) -> str:
        """The state as one or two sentences for a reader who has not seen the stream."""
        if not self.n_samples_:
            return f"No rows yet; at most {self.rate:.3g} of good rows are flagged."
        low, high = self.rate_interval()
        counted = f"{self.n_flagged_} of {self.n_samples_} rows are flagged"
        bounds = (
            f"a rate between {low:.2%} and {high:.2%} with 95 % confidence if it did not change"
        )
        promised = f"where at most {self.rate:.2%} is promised"
        if self.run_length is None:
            chance = self.false_alarm + (1 - self.confidence if self.confidence else 0)
            promise = f"a false alarm has probability {chance:.3g} at most"
            if self.confidence is not None:
                promise += f", of which {1 - self.confidence:.3g} for the promised rate itself"
        else:
            promise = f"{self.run_length:g} good rows or more pass on average before a false alarm"
            if self.confidence is not None:
                promise += f", if the promised rate holds (confidence {self.confidence:g})"
        if self.alarm_row_ is None:
            return f"No alarm: {counted}, {bounds}, {promised} ({promise})."
        n_recent = self.alarm_row_ + 1 - self._change.row
        n_flagged = self._n_flagged_at_alarm - self._change.n_flagged
        # After a long good time the rate of the whole stream says nothing about the change.
        whole = f"{counted}, {bounds}" if self.run_length is None else counted
        return (
            f"Alarm, raised by row {self.alarm_row_}: the rate most likely rose at row "
            f"{self._change.row}, and {n_flagged} of the {n_recent} rows from there to the alarm "
            f"are flagged, {promised} ({promise}). Of the whole stream, {whole}. Counting went on "
            f"for {self.n_samples_ - 1 - self.alarm_row_} rows after the alarm."
        )

    def __str__(self) -> str:
        return self.reading

    def __repr__(self) -> str:
        promise = (
            f"false_alarm={self.false_alarm:g}"
            if self.run_length is None
            else f"run_length={self.run_length:g}"
        )
        return f"FlagMonitor({self.rate:.6g}, {promise})"

    def to_json(self) -> str:
        """Return the state as JSON text of a few hundred characters.

        Returns
        -------
        str
            Everything but the detector, with a schema number and a digest.

        Examples
        --------
        >>> from skdice.monitoring import FlagMonitor
        >>> monitor = FlagMonitor(0.05).update([True, False, True])
        >>> FlagMonitor.from_json(monitor.to_json()).n_flagged_
        2
        """
        return sealed(FORMAT, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "false_alarm": self.false_alarm,
            "run_length": self.run_length,
            "confidence": self.confidence,
            "calibration": self._calibration,
            "n_samples": self.n_samples_,
            "n_flagged": self.n_flagged_,
            "alarm_row": self.alarm_row_,
            "n_flagged_at_alarm": self._n_flagged_at_alarm,
            "change": [self._change.row, self._change.n_flagged],
            "evidence": self._evidence.state,
        }

    @classmethod
    def from_json(cls, text: str, *, detector: Any = None) -> Self:
        """Return the monitor that `to_json` described.

        Parameters
        ----------
        text : str
            What `to_json` returned.
        detector : outlier detector of skdice, default=None
            The detector of the monitor, so that `update` takes features. Its calibration has to
            be the one that the monitor was made from.

        Returns
        -------
        FlagMonitor

        Raises
        ------
        ValueError
            The text is not the whole and unaltered state of a monitor, was written by a newer
            version of skdice, or belongs to another calibration of the detector.
        """
        name = "the state of a FlagMonitor"
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
            raise ValueError(f"not {name}: expected text of at most {MOST_CHARACTERS} characters")
        content = read_sealed(text, FORMAT, name)
        names = cls(0.5)._content()
        if set(content) != set(names):
            raise ValueError(f"not {name}: it has other entries than {', '.join(sorted(names))}")
        try:
            monitor = cls(
                content["rate"],
                false_alarm=content["false_alarm"],
                run_length=content["run_length"],
            )
            if content["confidence"] is not None:
                monitor.confidence = check_fraction(content["confidence"], "confidence")
            n = check_count(content["n_samples"], "n_samples", least=0, most=2**53)
            monitor.n_samples_ = n
            monitor.n_flagged_ = check_count(content["n_flagged"], "n_flagged", least=0, most=n)
            if content["alarm_row"] is not None:
                row = check_count(content["alarm_row"], "alarm_row", least=0, most=n - 1)
                monitor.alarm_row_ = row
            monitor._change = _change_of(content["change"], monitor)
            monitor._n_flagged_at_alarm = check_count(
                content["n_flagged_at_alarm"], "n_flagged_at_alarm", least=0, most=n
            )
            state = check_state(content["evidence"], len(monitor._evidence.state))
            monitor._evidence = monitor._new_evidence(state)
            calibration = content["calibration"]
            if not isinstance(calibration, str | None):
                raise ValueError(f"calibration is {calibration!r}, expected text or null")
            monitor._calibration = calibration
        except ValueError as error:
            raise ValueError(f"not {name}: {error}") from None
        if detector is not None:
            monitor._detector = detector
            monitor._check_calibration()
        return monitor

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file, at once or not at all.

        Parameters
        ----------
        path : str or Path
            The file. An interrupted save leaves the old file or none.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, detector: Any = None) -> Self:
        """Return the monitor that `save` wrote.

        Parameters
        ----------
        path : str or Path
            The file.
        detector : outlier detector of skdice, default=None
            The detector of the monitor, as in `from_json`.

        Returns
        -------
        FlagMonitor

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is not the state of a monitor; the reasons are those of `from_json`.
        """
        path = Path(path)
        if path.exists() and not path.is_file():  # opening a named pipe would block
            raise ValueError(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(MOST_CHARACTERS + 1)
        try:
            return cls.from_json(data.decode("utf-8"), detector=detector)
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not the state of a FlagMonitor: not UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _flags_of(self, flags: Any) -> NDArray[np.bool_]:
        """Return the flags that `update` counts, True = flagged."""
        if self._detector is not None:
            # Not np.ndim where there is a shape: it would read a whole file into memory.
            ndim = len(flags.shape) if hasattr(flags, "shape") else np.ndim(flags)
            if ndim == 2:
                self._check_calibration()
                return flagged_rows(self._detector, flags)
        return as_flags(flags)

    def _check_calibration(self) -> None:
        """Raise if the detector was calibrated anew, or is another one."""
        given = _identity(self._detector)
        if given != self._calibration:
            raise ValueError(
                f"the monitor belongs to the calibration {self._calibration}, but the detector "
                f"has the calibration {given}: the counts of one say nothing about the other. "
                "Begin a new monitor"
            )

    def _add_one(self, flagged: bool) -> None:
        self.n_samples_ += 1
        self.n_flagged_ += flagged
        reached = self._evidence.add_one(flagged, self.n_samples_, self.n_flagged_)
        if self.alarm_row_ is None:
            if reached:
                self.alarm_row_ = self.n_samples_ - 1
                self._n_flagged_at_alarm = self.n_flagged_
            else:
                self._change.add_one(self.n_samples_, self.n_flagged_)

    def _new_evidence(self, state: list[float] | None = None) -> MixtureEvidence | ShiryaevRoberts:
        if self.run_length is None:
            return MixtureEvidence(self.rate, self.false_alarm, state)
        return ShiryaevRoberts(self.rate, self.run_length, state)


def _rate_of_classes(detector: Any, confidence: float) -> float:
    """Return a rate that no predicted class exceeds, of all of them at once with a confidence."""
    fallback = last_step(detector).fallback_classes_
    if len(fallback):
        raise ValueError(
            f"{len(fallback)} predicted classes have no threshold of their own (the first is class "
            f"{fallback[0]}), and nothing is known about the rate of false alarms of one class "
            "under the threshold of all rows: calibrate with more rows, or without "
            "by='prediction', or give a rate yourself by FlagMonitor(rate)"
        )
    ranks = ranks_of_classes(detector).values()
    # Each class fails with this probability at most, and so all of them with 1 - confidence.
    each = 1 - (1 - confidence) / len(ranks)
    return max(float(betaincinv(rank, n + 1 - rank, each)) for rank, n in ranks)


def _identity(detector: Any) -> str:
    """Return text that differs between the thresholds of two calibrations."""
    calibration = calibration_of(detector)
    # The same scores may have been calibrated twice, for two contaminations.
    by = getattr(calibration, "by", None)
    return f"{calibration.digest}:{calibration.rank}" + (f":{by}" if by else "")


def _change_of(counts: Any, monitor: FlagMonitor) -> ChangePoint:
    """Return the change point from its numbers of rows and of flagged rows, or raise."""
    if not isinstance(counts, list) or len(counts) != 2:
        raise ValueError(f"change is {counts!r}, expected two numbers of rows")
    row = check_count(counts[0], "change", least=0, most=monitor.n_samples_)
    n_flagged = check_count(counts[1], "change", least=0, most=min(row, monitor.n_flagged_))
    return ChangePoint(monitor.rate, row, n_flagged)
