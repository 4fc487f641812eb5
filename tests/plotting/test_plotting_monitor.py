"""The displays of a monitored stream and of batches along time."""

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from drawing import drawn

from skdice.monitoring import BatchTest, FlagMonitor, batch_pvalue
from skdice.plotting import BatchTestDisplay, MonitorDisplay

pytestmark = pytest.mark.usefixtures("matplotlib_left_alone")


@pytest.fixture(scope="module")
def flags():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.random(1000) < 0.05, rng.random(1000) < 0.3])


@pytest.mark.parametrize("options", [{}, {"run_length": 5000}])
def test_the_values_are_those_of_the_monitor(flags, options, ax):
    monitor = FlagMonitor(0.05, **options).update([True] * 7)
    before = monitor.to_json()
    display = drawn(MonitorDisplay.from_monitor(monitor, flags, n_points=50, ax=ax), ax)
    assert monitor.to_json() == before
    assert (display.rows[0], display.rows[-1], len(display.rows)) == (1, 2000, 50)
    for i in (0, 20, 30):
        until = FlagMonitor(0.05, **options).update(flags[: display.rows[i]])
        assert display.evidence[i] == pytest.approx(until.evidence_, rel=1e-9)
        assert display.flag_rate[i] == until.n_flagged_ / until.n_samples_
        assert (display.low[i], display.high[i]) == pytest.approx(until.rate_interval())
    whole = FlagMonitor(0.05, **options).update(flags)
    assert display.alarm_row == whole.alarm_row_ > 1000
    assert [line.get_xdata()[0] for line in display.alarm_lines_] == [whole.alarm_row_ + 1] * 2
    upper, lower = display.axes_
    assert upper.get_yscale() == "log"
    assert set(display.level_line_.get_ydata()) == {whole.alarm_level}
    assert set(display.promised_line_.get_ydata()) == {5}
    assert upper.get_ylim()[1] > whole.alarm_level
    assert lower.get_xlabel() == "row"


def test_times_are_shown_instead_of_rows(flags, ax):
    times = np.datetime64("2026-01-01") + np.arange(2000) * np.timedelta64(1, "h")
    display = drawn(MonitorDisplay.from_monitor(FlagMonitor(0.05), flags, times=times, ax=ax), ax)
    assert display.alarm_time == times[display.alarm_row]
    np.testing.assert_array_equal(display.times, times[display.rows - 1])
    assert display.axes_[1].get_xlabel() == "time"
    with pytest.raises(ValueError, match=r"times has shape \(3,\), expected \(2000,\)"):
        MonitorDisplay.from_monitor(FlagMonitor(0.05), flags, times=times[:3], ax=ax)


@pytest.mark.parametrize(
    ("monitor", "stream"),
    [
        (FlagMonitor(0.05), [True]),
        (FlagMonitor(0.05), [False]),
        # The evidence of these is zero, or beyond any float.
        (FlagMonitor(0.5), [False] * 5000),
        (FlagMonitor(0.001), [True] * 5000),
        (FlagMonitor(0.05, false_alarm=1e-200), [True] * 500),
        (FlagMonitor(0.05, run_length=1e200), [True] * 500),
    ],
)
def test_streams_at_the_ends_of_what_can_be_drawn(monitor, stream, ax):
    display = drawn(MonitorDisplay.from_monitor(monitor, stream, ax=ax), ax)
    assert len(display.alarm_lines_) == (0 if display.alarm_row is None else 2)


def test_plotting_again_and_data_alone(flags, ax):
    data = {
        "rows": np.array([10, 20]),
        "evidence": np.array([1.0, 200.0]),
        "flag_rate": np.array([0.1, 0.2]),
        "low": np.array([0.0, 0.1]),
        "high": np.array([0.4, 0.5]),
    }
    display = MonitorDisplay(**data, rate=0.05, alarm_level=100, level=0.95)
    assert not hasattr(display, "ax_")
    assert drawn(display.plot(ax), ax) is display
    assert not display.alarm_lines_


def test_what_cannot_be_drawn(flags, ax):
    with pytest.raises(ValueError, match="flags has no rows"):
        MonitorDisplay.from_monitor(FlagMonitor(0.05), [], ax=ax)
    with pytest.raises(ValueError, match="level is 95"):
        MonitorDisplay.from_monitor(FlagMonitor(0.05), flags, level=95, ax=ax)
    with pytest.raises(ValueError, match="n_points is 1"):
        MonitorDisplay.from_monitor(FlagMonitor(0.05), flags, n_points=1, ax=ax)
    with pytest.raises(TypeError, match="expected one matplotlib Axes"):
        MonitorDisplay.from_monitor(FlagMonitor(0.05), flags, ax="axes")


def batches(counts, n_rows=200):
    return [
        BatchTest(n_rows, n, n_rows * 25 / 501, batch_pvalue(n, n_rows, 25, 500), 25, 500)
        for n in counts
    ]


def test_a_batch_is_odd_where_its_pvalue_is_at_most_the_level(ax):
    tests = batches(range(10, 30))
    display = drawn(BatchTestDisplay.from_tests(tests, level=0.05, ax=ax), ax)
    expected = [test.pvalue <= 0.05 for test in tests]
    assert (display.shares >= display.limits).tolist() == expected
    np.testing.assert_allclose(display.odd_points_.get_ydata(), np.arange(10, 30)[expected] / 2)
    assert len(display.good_points_.get_xdata()) == expected.count(False)
    np.testing.assert_allclose(display.expected_line_.get_ydata(), 100 * 25 / 501)


def test_batches_along_time(ax):
    times = np.array(["2026-01-01", "2026-01-02"], "datetime64[D]")
    display = drawn(BatchTestDisplay.from_tests(batches([9, 99]), times=times, ax=ax), ax)
    assert ax.get_xlabel() == "time"
    assert display.odd_points_.get_xdata() == times[1]
    with pytest.raises(ValueError, match=r"times has shape \(2,\), expected \(1,\)"):
        BatchTestDisplay.from_tests(batches([9]), times=times, ax=ax)
    for tests in ([], batches([0], n_rows=0)):
        with pytest.raises(ValueError, match="expected at least one, each with at least one row"):
            BatchTestDisplay.from_tests(tests, ax=ax)
