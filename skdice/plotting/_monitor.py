"""Displays of what a detector flags over time: along a stream, and batch by batch."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skdice.monitoring import BatchTest, FlagMonitor
from skdice.monitoring._batch import flag_limit
from skdice.monitoring._flags import check_count, check_fraction
from skdice.plotting._style import COLOURS, LEGEND_SIZE, hide_open_spines, obtain_axes

FloatArray = NDArray[np.float64]

# Left, bottom, width and height of the two panels, as shares of the axes.
PANELS = ((0, 0.54, 1, 0.46), (0, 0, 1, 0.46))
BLUE, ORANGE, GREEN = COLOURS[:3]
LEGEND = {"fontsize": LEGEND_SIZE, "edgecolor": "none", "framealpha": 0.7}


class MonitorDisplay:
    """Evidence of a monitor and rate of the flags along a stream, with the alarm.

    The upper panel shows the evidence on a logarithmic axis, the level of the alarm and the row
    that raised it. The lower panel shows the share of flagged rows so far, the band that contains
    the rate at all times with the stated confidence, and the promised rate. Use `from_monitor`,
    which also computes the data. All parameters are stored as attributes.

    Parameters
    ----------
    rows : ndarray of shape (n_points,)
        Numbers of rows after which the values were taken.
    evidence : ndarray of shape (n_points,)
        Evidence after these rows.
    flag_rate, low, high : ndarray of shape (n_points,)
        Share of flagged rows so far, and the bounds of the confidence band.
    rate : float
        The promised rate.
    alarm_level : float
        Evidence at which the alarm is raised.
    level : float
        Confidence of the band.
    alarm_row : int, default=None
        The row, counted from 0, that raised the alarm.
    times : ndarray of shape (n_points,), default=None
        Times or other positions of the values on the x axis; None takes the numbers of rows.
    alarm_time : object, default=None
        Time of the row that raised the alarm, if there are `times`.

    Attributes
    ----------
    evidence_line_, rate_line_ : matplotlib Line2D
        Evidence and share of flagged rows.
    level_line_, promised_line_ : matplotlib Line2D
        Level of the alarm and promised rate.
    band_ : matplotlib FillBetweenPolyCollection
        Confidence band of the rate.
    alarm_lines_ : list of matplotlib Line2D
        The row of the alarm, in each panel; empty without an alarm.
    axes_ : ndarray of two matplotlib Axes
        The panels.
    ax_ : matplotlib Axes
        The axes that hold the panels.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skdice.monitoring.FlagMonitor : The monitor.
    BatchTestDisplay : Batches, each tested by itself.

    Examples
    --------
    >>> import numpy as np
    >>> from skdice.monitoring import FlagMonitor
    >>> from skdice.plotting import MonitorDisplay
    >>> rng = np.random.default_rng(0)
    >>> flags = np.concatenate([rng.random(1000) < 0.05, rng.random(1000) < 0.2])
    >>> display = MonitorDisplay.from_monitor(FlagMonitor(0.05), flags)
    >>> display.alarm_row
    1190
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        rows: NDArray[np.int64],
        evidence: FloatArray,
        flag_rate: FloatArray,
        low: FloatArray,
        high: FloatArray,
        rate: float,
        alarm_level: float,
        level: float,
        alarm_row: int | None = None,
        times: NDArray[Any] | None = None,
        alarm_time: Any = None,
    ) -> None:
        self.rows = rows
        self.evidence = evidence
        self.flag_rate = flag_rate
        self.low = low
        self.high = high
        self.rate = rate
        self.alarm_level = alarm_level
        self.level = level
        self.alarm_row = alarm_row
        self.times = times
        self.alarm_time = alarm_time

    @classmethod
    def from_monitor(
        cls,
        monitor: FlagMonitor,
        flags: Any,
        *,
        times: ArrayLike | None = None,
        level: float = 0.95,
        n_points: int = 400,
        ax: Any = None,
    ) -> Self:
        """Run a new monitor with the settings of `monitor` over flags and draw it.

        A monitor keeps no past, so the flags are needed. `monitor` itself is not changed.

        Parameters
        ----------
        monitor : FlagMonitor
            Its rate, guarantee and detector are used.
        flags : array-like of shape (n_samples,), or features
            The stream from its start: whatever `FlagMonitor.update` of this monitor takes.
        times : array-like of shape (n_samples,), default=None
            Time of each row, in ascending order, for the x axis: datetime64, say. None takes the
            number of the row.
        level : float in (0, 1), default=0.95
            Confidence of the band.
        n_points : int, default=400
            Number of points at which the values are computed, at most.
        ax : matplotlib Axes, default=None
            Where to draw two panels, one above the other; None makes a figure.

        Returns
        -------
        MonitorDisplay

        Raises
        ------
        ValueError
            There are no rows, or `times` does not have one entry for each row.
        """
        level = check_fraction(level, "level")
        n_points = check_count(n_points, "n_points", least=2)
        judged = monitor._flags_of(flags)
        n_rows = len(judged)
        if not n_rows:
            raise ValueError("flags has no rows, expected at least one")
        replay = copy(monitor).reset()  # the copy shares the detector, and gets a state of its own
        rows = np.unique(np.linspace(1, n_rows, n_points).astype(np.int64))
        values = []
        for part in np.split(judged, rows[:-1]):
            replay.update(part)
            share = replay.n_flagged_ / replay.n_samples_
            values.append((replay.evidence_, share, *replay.rate_interval(level)))
        evidence, flag_rate, low, high = np.array(values).T
        row = replay.alarm_row_
        at, alarm_time = None, None
        if times is not None:
            given = np.asarray(times)
            if given.shape != (n_rows,):
                raise ValueError(f"times has shape {given.shape}, expected ({n_rows},)")
            at, alarm_time = given[rows - 1], None if row is None else given[row]
        return cls(
            rows=rows,
            evidence=evidence,
            flag_rate=flag_rate,
            low=low,
            high=high,
            rate=monitor.rate,
            alarm_level=monitor.alarm_level,
            level=level,
            alarm_row=row,
            times=at,
            alarm_time=alarm_time,
        ).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the two panels.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw two panels, one above the other; None makes a figure.

        Returns
        -------
        MonitorDisplay
            The display.
        """
        self.ax_, self.figure_ = obtain_axes(ax, figsize=(7, 5))
        self.ax_.set_axis_off()
        upper, lower = (self.ax_.inset_axes(bounds) for bounds in PANELS)
        self.axes_ = np.array([upper, lower])
        x = self.rows if self.times is None else self.times
        self._draw_evidence(upper, x)
        self._draw_rate(lower, x)
        self.alarm_lines_ = []
        if self.alarm_row is not None:
            at = self.alarm_row + 1 if self.times is None else self.alarm_time
            label = f"alarm, row {self.alarm_row}"
            for panel, name in ((upper, label), (lower, None)):
                line = panel.axvline(at, color="black", linestyle=":", linewidth=1.2, label=name)
                self.alarm_lines_.append(line)
        upper.legend(loc="best", **LEGEND)
        lower.legend(loc="best", **LEGEND)
        return self

    def _draw_evidence(self, panel: Any, x: Any) -> None:
        # Evidence of zero, and evidence beyond any float, have no place on a logarithmic axis.
        shown = np.clip(self.evidence, 1e-300, 1e300)
        panel.set_yscale("log")
        # Evidence of a changed stream grows without end; a few decades above the level are enough.
        # The limits are set before anything is drawn, because margins around 1e300 would overflow.
        panel.set_ylim(max(shown.min() / 3, 1e-4), min(1e4 * self.alarm_level, 1e300))
        (self.evidence_line_,) = panel.plot(x, shown, color=BLUE, label="evidence of a change")
        self.level_line_ = panel.axhline(
            self.alarm_level, color=ORANGE, linestyle="--", label=f"alarm at {self.alarm_level:g}"
        )
        panel.set_ylabel("evidence")
        panel.tick_params(labelbottom=False)
        hide_open_spines(panel)

    def _draw_rate(self, panel: Any, x: Any) -> None:
        self.band_ = panel.fill_between(
            x,
            100 * self.low,
            100 * self.high,
            color=GREEN,
            alpha=0.25,
            linewidth=0,
            label=f"{100 * self.level:g} % confidence, at all times",
        )
        (self.rate_line_,) = panel.plot(
            x, 100 * self.flag_rate, color=GREEN, label="flagged rows so far"
        )
        self.promised_line_ = panel.axhline(
            100 * self.rate,
            color=ORANGE,
            linestyle="--",
            label=f"promised: {100 * self.rate:.3g} %",
        )
        # The band of the first rows reaches from 0 to 100 %; the rest of the stream matters.
        settled = self.rows >= 0.1 * self.rows[-1]
        top = max(self.high[settled].max(), self.rate)
        panel.set_ylim(0, min(100, 150 * top))
        panel.set_xlabel("row" if self.times is None else "time")
        panel.set_ylabel("flagged, %")
        if self.times is not None:
            panel.tick_params(axis="x", labelrotation=20)
        hide_open_spines(panel)


class BatchTestDisplay:
    """Share of flagged rows of each batch, with the limit that good rows rarely reach.

    Use `from_tests`, which also computes the limits. All parameters are stored as attributes.

    Parameters
    ----------
    shares : ndarray of shape (n_batches,)
        Share of flagged rows of each batch.
    expected : ndarray of shape (n_batches,)
        Share of flagged rows that good rows give on average.
    limits : ndarray of shape (n_batches,)
        Smallest share whose p-value is at most `level`.
    level : float
        Probability with which a batch of good rows reaches its limit.
    times : ndarray of shape (n_batches,), default=None
        Times or other positions of the batches; None takes their numbers, from 0.

    Attributes
    ----------
    good_points_, odd_points_ : matplotlib Line2D
        Batches below their limits, and batches at or above them.
    expected_line_, limit_line_ : matplotlib Line2D
        Expected shares and limits.
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure of the axes.

    See Also
    --------
    skdice.monitoring.batch_test : Tests one batch.
    MonitorDisplay : A stream, watched row by row.

    Notes
    -----
    Each batch reaches its limit with probability `level` at most if its rows are good. Of many
    batches some will, and a calibration that was unlucky raises all of them together.

    Examples
    --------
    >>> from skdice.monitoring import BatchTest, batch_pvalue
    >>> from skdice.plotting import BatchTestDisplay
    >>> counts = [9, 14, 8, 31]
    >>> tests = [BatchTest(200, n, 9.98, batch_pvalue(n, 200, 25, 500), 25, 500) for n in counts]
    >>> display = BatchTestDisplay.from_tests(tests)
    >>> display.shares >= display.limits
    array([False, False, False,  True])
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        shares: FloatArray,
        expected: FloatArray,
        limits: FloatArray,
        level: float,
        times: NDArray[Any] | None = None,
    ) -> None:
        self.shares = shares
        self.expected = expected
        self.limits = limits
        self.level = level
        self.times = times

    @classmethod
    def from_tests(
        cls,
        tests: Sequence[BatchTest],
        *,
        times: ArrayLike | None = None,
        level: float = 0.01,
        ax: Any = None,
    ) -> Self:
        """Draw the results of `skdice.monitoring.batch_test` along time.

        Parameters
        ----------
        tests : sequence of BatchTest
            The results, in order.
        times : array-like of shape (n_batches,), default=None
            Time of each batch, for the x axis; None takes the number of the batch, from 0.
        level : float in (0, 1), default=0.01
            Probability with which a batch of good rows may reach its limit.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        BatchTestDisplay

        Raises
        ------
        ValueError
            There are no batches, a batch has no rows, or `times` does not have one entry for each.
        """
        level = check_fraction(level, "level")
        if not tests or not all(test.n_rows for test in tests):
            raise ValueError(
                f"tests has {len(tests)} batches, expected at least one, each with at least one row"
            )
        at = None if times is None else np.asarray(times)
        if at is not None and at.shape != (len(tests),):
            raise ValueError(f"times has shape {at.shape}, expected ({len(tests)},)")
        n_rows = np.array([test.n_rows for test in tests], np.float64)
        limits = [flag_limit(level, test.n_rows, test.rank, test.n_calibration) for test in tests]
        return cls(
            shares=np.array([test.n_flagged for test in tests]) / n_rows,
            expected=np.array([test.expected for test in tests]) / n_rows,
            limits=np.array(limits) / n_rows,
            level=level,
            times=at,
        ).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the batches.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        BatchTestDisplay
            The display.
        """
        self.ax_, self.figure_ = obtain_axes(ax, figsize=(7, 3.5))
        x = np.arange(len(self.shares)) if self.times is None else np.asarray(self.times)
        is_odd = self.shares >= self.limits
        (self.expected_line_,) = self.ax_.plot(
            x, 100 * self.expected, color="0.5", label="expected of good rows"
        )
        (self.limit_line_,) = self.ax_.plot(
            x,
            100 * self.limits,
            color=ORANGE,
            linestyle="--",
            label=f"limit, probability {self.level:g}",
        )
        percent = 100 * self.shares
        (self.good_points_,) = self.ax_.plot(
            x[~is_odd], percent[~is_odd], "o", color=BLUE, label="batch"
        )
        (self.odd_points_,) = self.ax_.plot(
            x[is_odd], percent[is_odd], "^", color=ORANGE, label="batch, odder than promised"
        )
        top = max(self.shares.max(), min(self.limits.max(), 1))
        self.ax_.set_ylim(0, 100 * top * 1.4)  # the legend is above the data
        self.ax_.set_xlabel("batch" if self.times is None else "time")
        self.ax_.set_ylabel("flagged, %")
        self.ax_.legend(loc="upper left", ncols=2, **LEGEND)
        hide_open_spines(self.ax_)
        return self
