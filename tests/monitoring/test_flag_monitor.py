"""The monitor: its formulas, its promises in simulation, its state, and what it refuses."""

import json
import operator
import os
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import beta
from sklearn.exceptions import NotFittedError
from sklearn.svm import OneClassSVM

from skdice.monitoring import FlagMonitor
from skdice.monitoring._evidence import RATE_RATIOS, MixtureEvidence
from skdice.monitoring._state import digest_of

RATE = 0.05
KINDS = [{}, {"run_length": 5000}]


def streams(n_streams, n_rows, rate, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n_streams):
        yield rng.random(n_rows, np.float32) < rate


def state_of(monitor):
    return json.loads(monitor.to_json()) | {"sha256": None}


# The formulas.


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.3])
@pytest.mark.parametrize(("n", "s"), [(0, 0), (1, 1), (20, 3), (5000, 240), (5000, 400), (99, 99)])
def test_the_evidence_is_the_truncated_mixture(rate, n, s):
    a, b = 1, (1 - 2 * rate) / (2 * rate)
    expected = (
        betaln(a + s, b + n - s)
        + beta.logsf(rate, a + s, b + n - s)
        - betaln(a, b)
        - beta.logsf(rate, a, b)
        - s * np.log(rate)
        - (n - s) * np.log1p(-rate)
    )
    assert MixtureEvidence(rate, 0.01).log_value(n, s) == pytest.approx(expected, rel=1e-9)


def test_the_mixture_is_an_integral_over_rates():
    n, s, prior = 200, 17, beta(1, 9)
    ratio = lambda q: (q / RATE) ** s * ((1 - q) / (1 - RATE)) ** (n - s)  # noqa: E731
    integral = quad(lambda q: prior.pdf(q) * ratio(q), RATE, 1, points=[0.1])[0] / prior.sf(RATE)
    monitor = FlagMonitor(RATE).update([True] * s + [False] * (n - s))
    assert monitor.evidence_ == pytest.approx(integral, rel=1e-8)


def shiryaev_roberts(flags):
    """Yield the evidence after each row, by the recursion as it is written in the literature."""
    theta, R = RATE * np.array(RATE_RATIOS), np.zeros(len(RATE_RATIOS))
    for flag in flags:
        R = (R + 1) * (theta / RATE if flag else (1 - theta) / (1 - RATE))
        yield R.mean()


def test_the_sum_of_shiryaev_and_roberts():
    (flags,) = streams(1, 3000, 0.06)
    *_, expected = shiryaev_roberts(flags)
    monitor = FlagMonitor(RATE, run_length=5000).update(flags)
    assert monitor.evidence_ == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rate", [0.3, 0.49, 0.5, 0.66, 0.9, 0.999])
def test_rates_for_which_the_prior_or_some_ratios_do_not_exist(rate):
    monitor = FlagMonitor(rate).update(np.ones(20_000, bool))
    assert monitor.alarm_
    assert not FlagMonitor(rate).update(next(streams(1, 1000, rate, 3))).alarm_
    if rate < 2 / 3:
        assert FlagMonitor(rate, run_length=100).update(np.ones(1000, bool)).alarm_
    else:
        with pytest.raises(ValueError, match="less than 2/3 with run_length"):
            FlagMonitor(rate, run_length=100)


@pytest.mark.parametrize("options", KINDS)
def test_the_alarm_is_raised_by_the_first_row_that_reaches_the_level(options):
    (flags,) = streams(1, 20_000, 0.07)
    reference = FlagMonitor(RATE, **options)
    row = next(
        row
        for row, flag in enumerate(flags)
        if reference.update(flag).evidence_ >= reference.alarm_level
    )
    assert 50 < row < len(flags) - 1
    assert reference.alarm_row_ == row
    assert FlagMonitor(RATE, **options).update(flags).alarm_row_ == row


def test_a_short_run_length_may_alarm_at_a_good_row():
    # Without any evidence the sum grows by about one a row.
    one_by_one, at_once = FlagMonitor(RATE, run_length=10), FlagMonitor(RATE, run_length=10)
    for _ in range(100):
        one_by_one.update(False)
    row = next(row for row, R in enumerate(shiryaev_roberts([False] * 100)) if R >= 10)
    assert one_by_one.alarm_row_ == at_once.update([False] * 100).alarm_row_ == row


def test_the_pvalue_is_of_the_largest_evidence():
    (flags,) = streams(1, 500, 0.15)
    monitor, largest = FlagMonitor(RATE), 1.0
    for flag in [*flags, *[False] * 300]:
        largest = max(largest, monitor.update(flag).evidence_)
        assert monitor.pvalue_ == pytest.approx(1 / largest, rel=1e-12)
    assert monitor.evidence_ < largest / 2
    with pytest.raises(AttributeError, match="needs a monitor with false_alarm"):
        _ = FlagMonitor(RATE, run_length=100).pvalue_


# The promises, in simulation.


def test_false_alarms_at_exactly_the_promised_rate():
    for eta in (0.01, 0.1):
        alarms = [
            FlagMonitor(RATE, false_alarm=eta).update(flags).alarm_
            for flags in streams(1000, 20_000, RATE)
        ]
        assert np.mean(alarms) <= eta + 3 * np.sqrt(eta * (1 - eta) / 1000)
        # A monitor that never alarms would keep the promise, too.
        assert np.mean(alarms) > eta / 10


def test_pvalues_are_valid_at_all_times():
    # The least p-value ever seen is the last one, because pvalue_ never rises.
    pvalues = np.array([FlagMonitor(RATE).update(f).pvalue_ for f in streams(1000, 5000, RATE, 1)])
    for level in (0.02, 0.1, 0.3):
        assert (pvalues <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 1000)


def run_lengths(n_streams, rate, run_length):
    rng = np.random.default_rng(0)
    for _ in range(n_streams):
        monitor = FlagMonitor(RATE, run_length=run_length)
        while not monitor.alarm_:
            monitor.update(rng.random(4096) < rate)
        yield monitor.alarm_row_ + 1


@pytest.mark.slow
def test_run_length_at_exactly_the_promised_rate():
    lengths = np.array([*run_lengths(500, RATE, 5000)])
    error = lengths.std() / np.sqrt(len(lengths))
    assert lengths.mean() >= 5000 - 3 * error
    # The bound is of use: it is not far from what is observed.
    assert lengths.mean() < 25_000


# Median numbers of rows to the alarm, as in the guide "In production".
DELAYS = {0.06: 5808, 0.08: 613, 0.10: 210, 0.20: 34, 0.50: 7}


@pytest.mark.parametrize("rate", DELAYS)
def test_delays_from_the_start(rate):
    alarms = [FlagMonitor(RATE).update(f).alarm_row_ for f in streams(500, 20_000, rate)]
    rows = [np.inf if row is None else row + 1 for row in alarms]
    assert np.median(rows) == pytest.approx(DELAYS[rate], rel=0.15, abs=1)


@pytest.mark.parametrize(("rate", "expected"), [(0.10, 155), (0.20, 37)])
def test_delays_of_a_change_late_in_a_stream(rate, expected):
    rng = np.random.default_rng(0)
    delays = []
    for _ in range(300):
        monitor = FlagMonitor(RATE, run_length=5000).update(rng.random(2000) < RATE)
        if not monitor.alarm_:
            monitor.update(rng.random(3000) < rate)
            delays.append(monitor.alarm_row_ + 1 - 2000)
    assert np.median(delays) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("rate", [RATE, 0.3])
def test_the_interval_covers_the_rate_at_all_times(rate, level):
    # The rate is outside the interval exactly where its martingale reaches 1 / (1 - level); the
    # next test checks that against the interval itself.
    n_streams, t = 500, np.arange(1.0, 5001)
    misses = 0
    for flags in streams(n_streams, len(t), rate, 2):
        s = np.cumsum(flags)
        log_ratio = betaln(1 + s, 9 + t - s) - betaln(1, 9)
        log_ratio -= s * np.log(rate) + (t - s) * np.log1p(-rate)
        misses += bool((log_ratio >= -np.log1p(-level)).any())
    alpha = 1 - level
    assert misses / n_streams <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / n_streams)


@pytest.mark.parametrize(
    ("n", "s"), [(1, 0), (1, 1), (10, 10), (300, 15), (10**6, 50_000), (10**9, 1)]
)
@pytest.mark.parametrize("level", [0.5, 0.95, 1 - 1e-9])
def test_the_bounds_of_the_interval_are_where_the_martingale_reaches_its_level(n, s, level):
    monitor = FlagMonitor(RATE)
    monitor.n_samples_, monitor.n_flagged_ = n, s
    low, high = monitor.rate_interval(level)
    assert 0 <= low <= s / n <= high <= 1
    assert (low == 0) == (s == 0)
    assert (high == 1) == (s == n)
    for q in {low, high} - {0.0, 1.0}:
        log_ratio = betaln(1 + s, 9 + n - s) - betaln(1, 9) - s * np.log(q)
        log_ratio -= (n - s) * np.log1p(-q) if s < n else 0
        assert log_ratio == pytest.approx(-np.log1p(-level), abs=1e-5)


def test_before_the_first_row_nothing_is_known():
    monitor = FlagMonitor(RATE)
    assert monitor.rate_interval() == (0, 1)
    assert (monitor.pvalue_, monitor.alarm_, monitor.alarm_row_) == (1, False, None)
    assert monitor.evidence_ == pytest.approx(1)
    assert FlagMonitor(RATE, run_length=100).evidence_ == 0


# A detector's promise.


def false_alarm_rate(calibrated, n, rank, make):
    """Return the share of 300 calibrations whose monitor alarms on 20,000 good rows."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        detector = calibrated(n, rank)
        share = np.partition(rng.random(n), rank - 1)[rank - 1]
        alarms += make(detector).update(rng.random(20_000) < share).alarm_
    return alarms / 300


@pytest.mark.slow
def test_a_rate_kept_on_average_only_gives_false_alarms(calibrated):
    from_detector = false_alarm_rate(calibrated, 500, 25, FlagMonitor.from_detector)
    assert from_detector <= 0.06 + 3 * np.sqrt(0.06 * 0.94 / 300)
    assert false_alarm_rate(calibrated, 500, 25, lambda _: FlagMonitor(RATE)) > 0.2


def test_the_rate_of_a_detector(calibrated):
    promised = FlagMonitor.from_detector(calibrated(500, 17, confidence=0.9))
    assert (promised.rate, promised.confidence) == (0.05, 0.9)
    # The probability that the share of good rows flagged is below the rate.
    bound = FlagMonitor.from_detector(calibrated(500, 25), confidence=0.8)
    assert beta.cdf(bound.rate, 25, 476) == pytest.approx(0.8)
    assert bound.confidence == 0.8
    assert "of which 0.2 for the promised rate itself" in bound.update([False]).reading
    late = FlagMonitor.from_detector(calibrated(), run_length=1000, false_alarm=0.5)
    assert (late.run_length, late.alarm_level) == (1000, 1000)


def test_features_are_judged_by_the_detector(calibrated):
    rows = np.array([[24.0], [25.0], [np.nan], [30.0]])
    monitor = FlagMonitor.from_detector(calibrated()).update(rows)
    assert (monitor.n_samples_, monitor.n_flagged_) == (4, 2)
    assert monitor.update(rows.tolist()).n_flagged_ == 4
    # Flags are still flags.
    assert monitor.update([True, False]).update(-1).n_flagged_ == 6
    with pytest.raises(ValueError, match=r"flags has shape \(4, 1\).*from_detector"):
        FlagMonitor(RATE).update(rows)


def test_a_detector_without_calibration(calibrated):
    with pytest.raises(NotFittedError, match="call calibrate"):
        FlagMonitor.from_detector(OneClassSVM())


# Any split gives the same state.


@pytest.mark.parametrize("options", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 3000),
    rate=st.sampled_from([0.0, 0.03, 0.05, 0.08, 0.2, 1.0]),
    cuts=st.lists(st.integers(0, 3000), max_size=8),
    seed=st.integers(0, 999),
)
def test_the_state_is_the_same_for_any_split(options, n, rate, cuts, seed):
    (flags,) = streams(1, n, rate, seed)
    whole, parts, single = (FlagMonitor(RATE, **options) for _ in range(3))
    whole.update(flags)
    for part in np.split(flags, sorted(min(cut, n) for cut in cuts)):
        parts.update(part)
    for flag in flags.tolist():
        single.update(flag)
    expected = state_of(whole)
    for monitor in (parts, single):
        state = state_of(monitor)
        if options:  # up to rounding, as its docstring says
            np.testing.assert_allclose(state.pop("evidence"), expected["evidence"], rtol=1e-9)
            assert state == {name: expected[name] for name in state}
        else:
            assert state == expected


@pytest.mark.parametrize("options", KINDS)
def test_a_million_rows_at_once_or_in_blocks(options):
    (flags,) = streams(1, 1_000_000, 0.05)
    flags[500_000:] |= next(streams(1, 500_000, 0.3, 1))
    whole, parts = (FlagMonitor(RATE, **options) for _ in range(2))
    whole.update(flags)
    for part in np.array_split(flags, 37):
        parts.update(part)
    assert parts.alarm_row_ == whole.alarm_row_
    # The evidence is beyond any float.
    assert whole.evidence_ == parts.evidence_ == np.inf
    np.testing.assert_allclose(state_of(parts)["evidence"], state_of(whole)["evidence"], rtol=1e-9)


# Flags of many kinds.


def test_flags_of_many_kinds():
    torch, pd = pytest.importorskip("torch"), pytest.importorskip("pandas")
    flags = [True, False, True, False, False]
    predictions = [-1 if flag else 1 for flag in flags]
    for given_flags in (
        flags,
        tuple(flags),
        np.array(flags),
        np.array(predictions),
        np.array(predictions, np.float32),
        np.array(predictions, np.int8),
        torch.tensor(flags),
        pd.Series(flags),
        pd.Series(predictions),
    ):
        assert FlagMonitor(RATE).update(given_flags).n_flagged_ == 2
    monitor = FlagMonitor(RATE).update(True).update(np.True_).update(-1).update(np.int64(1))
    assert (monitor.n_samples_, monitor.n_flagged_) == (4, 3)
    assert monitor.update([]).update(np.zeros(0, bool)).n_samples_ == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([1, -1, 0], "flags has 0 in row 2; expected booleans"),
        ([1, 2], "flags has 2 in row 1"),
        (0.5, "flags has 0.5 in row 0"),
        ([1.0, np.nan], "flags has nan in row 1"),
        (["a"], "flags has dtype <U1"),
        (None, "flags has dtype object"),
        ([None, True], "mixes booleans with other values"),
        ([True, -1], "mixes booleans with other values"),
        (np.zeros((2, 2), bool), r"flags has shape \(2, 2\)"),
    ],
)
def test_flags_that_are_none_change_nothing(flags, message):
    monitor = FlagMonitor(RATE).update([True, False])
    before = monitor.to_json()
    with pytest.raises(ValueError, match=message):
        monitor.update(flags)
    assert monitor.to_json() == before


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, np.nan, np.inf, "0.05", None, True])
def test_a_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match=f"rate is {re.escape(repr(rate))}, expected a number"):
        FlagMonitor(rate)


def test_other_settings_outside_their_ranges():
    with pytest.raises(ValueError, match=r"rate is 5, .*did you mean 0.05\?"):
        FlagMonitor(5)
    with pytest.raises(ValueError, match="false_alarm is 0, expected"):
        FlagMonitor(RATE, false_alarm=0)
    for run_length in (1, np.inf, np.nan, True, "9"):
        with pytest.raises(ValueError, match=r"run_length is .* expected a number above 1"):
            FlagMonitor(RATE, run_length=run_length)
    with pytest.raises(ValueError, match=r"level is 95, .*did you mean 0.95\?"):
        FlagMonitor(RATE).rate_interval(95)


# After an alarm, reset, merging, words.


@pytest.mark.parametrize("options", KINDS)
def test_after_an_alarm_the_stream_goes_on_counting_and_says_so(options):
    monitor = FlagMonitor(RATE, **options).update([True] * 20)
    row, evidence = monitor.alarm_row_, monitor.evidence_
    assert row < 10
    monitor.update([False] * 80)
    assert (monitor.n_samples_, monitor.n_flagged_, monitor.alarm_row_) == (100, 20, row)
    assert monitor.evidence_ < evidence
    n = row + 1
    assert monitor.reading.startswith(
        f"Alarm, raised by row {row}: the rate most likely rose at row 0, and {n} of the {n} rows "
    )
    assert "Of the whole stream, 20 of 100 rows are flagged" in monitor.reading
    assert f"Counting went on for {99 - row} rows after the alarm" in str(monitor)
    assert monitor.reset().to_json() == FlagMonitor(RATE, **options).to_json()
    assert monitor.reading == "No rows yet; at most 0.05 of good rows are flagged."


def likeliest_change(flags, rate):
    """The start of the rows whose likelihood at twice the rate is largest against the rate."""
    ratios = np.where(flags, np.log(2), np.log((1 - 2 * rate) / (1 - rate)))
    return max(range(len(flags), -1, -1), key=lambda start: ratios[start:].sum())


@pytest.mark.parametrize("options", KINDS)
def test_the_change_is_where_the_likelihood_says(options):
    """It is estimated at the alarm, and later rows change nothing about it."""
    distances = []
    for seed in range(20):
        (good,) = streams(1, 600, RATE, seed)
        (bad,) = streams(1, 400, 0.4, 100 + seed)
        flags = np.concatenate([good, bad])
        monitor = FlagMonitor(RATE, **options)
        assert monitor.update(flags[:50]).change_row_ is None
        monitor.update(flags[50:])
        seen = flags[: monitor.alarm_row_ + 1]
        assert monitor.change_row_ == likeliest_change(seen[:-1], RATE)
        n_recent = int(seen[monitor.change_row_ :].sum())
        assert f"{n_recent} of the {len(seen) - monitor.change_row_} rows" in monitor.reading
        distances.append(abs(monitor.change_row_ - 600))
    assert np.median(distances) < 10


@pytest.mark.parametrize("run_length", [2, 5, 10])
def test_the_change_is_not_after_the_alarm(run_length):
    """With a short run length the alarm may come from a row that is not flagged."""
    for flags in streams(100, 200, RATE):
        at_once = FlagMonitor(RATE, run_length=run_length).update(flags)
        one_by_one = FlagMonitor(RATE, run_length=run_length)
        for flag in flags:
            one_by_one.update(bool(flag))
        assert at_once.change_row_ == one_by_one.change_row_
        assert at_once.reading == one_by_one.reading
        if at_once.alarm_:
            assert at_once.change_row_ <= at_once.alarm_row_


def test_a_rate_next_to_one():
    assert not FlagMonitor(np.nextafter(1, 0)).update([True] * 100).alarm_


def test_after_a_long_good_time_the_reading_tells_of_the_change():
    """The rate of the whole stream may lie below the promised one while the alarm is right."""
    (good,) = streams(1, 3000, 0.02)
    monitor = FlagMonitor(RATE, run_length=5000).update(good)
    monitor.update(([True] + [False] * 2) * 100)
    assert "with 95 % confidence" not in monitor.reading
    assert abs(monitor.change_row_ - 3000) < 30


def test_the_reading_of_a_quiet_stream():
    monitor = FlagMonitor(RATE).update([True] + [False] * 19)
    assert repr(monitor) == "FlagMonitor(0.05, false_alarm=0.01)"
    assert repr(FlagMonitor(RATE, run_length=5000)) == "FlagMonitor(0.05, run_length=5000)"
    assert monitor.reading.startswith("No alarm: 1 of 20 rows are flagged, a rate between 0.")
    assert monitor.reading.endswith("(a false alarm has probability 0.01 at most).")


def test_monitors_are_not_merged():
    one, other = FlagMonitor(RATE), FlagMonitor(RATE)
    for merge in (one.merge, lambda m: operator.add(one, m), lambda m: sum([one, m])):
        with pytest.raises(TypeError, match="an alarm depends on the order of the rows"):
            merge(other)


# The state in a file.


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("n_rows", [0, 3, 5000])
def test_the_state_survives_a_file(tmp_path, options, n_rows):
    (flags,) = streams(1, n_rows, 0.09)
    monitor = FlagMonitor(RATE, **options).update(flags)
    monitor.save(tmp_path / "state.json")
    loaded = FlagMonitor.load(tmp_path / "state.json")
    assert loaded.to_json() == monitor.to_json()
    assert len(monitor.to_json()) < 700
    assert loaded.update(flags).to_json() == monitor.update(flags).to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_an_interrupted_save_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    monitor = FlagMonitor(RATE).update([True])
    monitor.save(path)
    before = path.read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.update([True]).save(path)
    assert path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_loaded_monitor_takes_features_of_its_own_detector_only(calibrated, tmp_path):
    detector, rows = calibrated(), np.zeros((3, 1))
    FlagMonitor.from_detector(detector).update(rows).save(tmp_path / "state.json")
    loaded = FlagMonitor.load(tmp_path / "state.json", detector=detector)
    assert loaded.update(rows).n_flagged_ == 6
    assert loaded.confidence == 0.95
    for other in (calibrated(400, 20), calibrated(500, 24)):
        with pytest.raises(ValueError, match=r"belongs to the calibration digest of 500:25, but"):
            FlagMonitor.load(tmp_path / "state.json", detector=other)
    alone = FlagMonitor.load(tmp_path / "state.json")
    with pytest.raises(ValueError, match="Only a monitor that knows its detector"):
        alone.update(rows)


def test_a_detector_that_is_calibrated_anew_needs_a_new_monitor(calibrated):
    detector, rows = calibrated(), np.zeros((3, 1))
    monitor = FlagMonitor.from_detector(detector).update(rows)
    detector.calibration_ = calibrated(500, 17).calibration_
    with pytest.raises(ValueError, match="the counts of one say nothing about the other"):
        monitor.update(rows)
    assert monitor.n_samples_ == 3


def resealed(**changes):
    """Return a state with other values and a digest that fits them."""
    content = json.loads(FlagMonitor(RATE).update([True, False]).to_json()) | changes
    del content["sha256"]
    return json.dumps(content | {"sha256": digest_of(content)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON, or cut short"),
        (resealed()[:-1], "not JSON, or cut short"),
        ("[" * 5000, "not JSON, or cut short"),
        ("9" * 5000, "not JSON, or cut short"),
        ("{}", "does not name the format"),
        ("[]", "does not name the format"),
        (" " * 20_000, "at most 10000 characters"),
        (None, "expected text"),
        (resealed(schema=2), "schema 2, written by a newer version of skdice"),
        (resealed(schema=0), "was altered"),
        (resealed(schema="1"), "was altered"),
        (resealed().replace('"n_flagged": 1', '"n_flagged": 0'), "was altered"),
        (resealed(more=1), "has other entries"),
        (resealed(n_flagged=3), "n_flagged is 3, expected a whole number from 0 to 2"),
        (resealed(n_samples=-1), "n_samples is -1"),
        (resealed(n_samples=1e300), "n_samples is 1e[+]300"),
        (resealed(alarm_row=2), "alarm_row is 2, expected a whole number from 0 to 1"),
        (resealed(change=3), "change is 3, expected two numbers"),
        (resealed(change=[3, 0]), "change is 3, expected a whole number from 0 to 2"),
        (resealed(change=[1, 2]), "change is 2, expected a whole number from 0 to 1"),
        (resealed(n_flagged_at_alarm=3), "n_flagged_at_alarm is 3"),
        (resealed(evidence=[]), "evidence"),
        (resealed(evidence=[1.0, 2.0]), "evidence"),
        (resealed(evidence=[-1.0]), "evidence is"),
        (resealed(evidence=["1"]), "evidence is"),
        (resealed(evidence=None), "evidence is"),
        (resealed(rate=5), "rate is 5"),
        (resealed(rate="0.05"), "rate is '0.05'"),
        (resealed(run_length=-1), "run_length is -1"),
        (resealed(run_length=100), "expected 5 numbers"),
        (resealed(confidence=2), "confidence is 2"),
        (resealed(calibration=3), "calibration is 3"),
    ],
)
def test_a_state_that_is_refused_with_its_reason(text, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        FlagMonitor.from_json(text)
    if text is not None:
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(ValueError, match=rf"state\.json: .*{reason}"):
            FlagMonitor.load(tmp_path / "state.json")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_mutated_state_is_refused_or_the_same(data):
    text = FlagMonitor(RATE, run_length=100).update([True, False, False]).to_json()
    characters = list(text)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(characters) - 1))
        kind = data.draw(st.sampled_from(["change", "remove", "insert", "cut"]))
        new = data.draw(st.characters(codec="utf-8"))
        if kind == "cut" and place:
            del characters[place:]
        elif kind == "remove" and len(characters) > 1:
            del characters[place]
        elif kind == "insert":
            characters.insert(place, new)
        else:
            characters[place] = new
    try:
        monitor = FlagMonitor.from_json("".join(characters))
    except ValueError:
        return
    assert monitor.to_json() == text  # only white space was changed


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError):
        FlagMonitor.load(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary: .*not UTF-8"):
        FlagMonitor.load(tmp_path / "binary")
    with pytest.raises(ValueError, match="not a regular file"):
        FlagMonitor.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    errors = []

    def load():
        try:
            FlagMonitor.load(tmp_path / "pipe")
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(10)
    assert "not a regular file" in errors[0]
