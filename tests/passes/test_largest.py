"""The high quantiles that a pass over rows finds beside their sums."""

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skdice._passes import largest
from skdice._passes.largest import Keeper, merged_largest
from skdice._passes.mean import Wanted, measure
from skdice._rows.door import as_source

anything = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1.0])
matrices = arrays(
    st.sampled_from([np.float32, np.float64]),
    st.tuples(st.integers(1, 60), st.integers(1, 4)),
    elements=anything,
)
levels = st.floats(0.9, 1)


@given(matrices, levels, st.integers(1, 7))
def test_quantiles_of_one_pass_equal_numpy(X, level, batch_size):
    wanted = Wanted(levels=(level, 1.0))
    found = measure(as_source(X), wanted, batch_size=batch_size).quantiles
    assert found == {each: float(np.quantile(X, each)) for each in (level, 1.0)}


@given(matrices, levels, st.integers(1, 250), st.integers(1, 9), st.data())
def test_merged_parts_give_the_quantile_of_all_or_none(X, level, n_kept, spare, data):
    """However few entries the parts keep, what they tell is right."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(X)), max_size=3)))
    parts = []
    with mock.patch.object(largest, "LEAST_SPARE", spare):
        for rows in np.split(X, cuts):
            keeper = Keeper(n_kept, X.dtype)
            for row in rows:
                keeper.add(row[np.newaxis])
            parts.append(keeper.largest())
    merged = merged_largest(parts)
    assert merged.n_values == X.size
    found = merged.quantiles([level])
    assert found in (None, [float(np.quantile(X, level))])
    if n_kept >= X.size:
        assert found is not None


def test_more_entries_than_the_memory_holds_drop_the_smallest(monkeypatch):
    X = np.random.default_rng(0).normal(size=(40_000, 10)).astype(np.float32)
    keeper = Keeper(4001, X.dtype)
    for start in range(0, len(X), 300):
        keeper.add(X[start : start + 300])
    found = keeper.largest()
    assert len(found.entries) < X.size / 2
    assert found.quantiles([0.99, 0.995]) == [float(np.quantile(X, q)) for q in (0.99, 0.995)]
    assert found.quantiles([0.5]) is None
    wanted = Wanted(levels=(0.99,))
    assert measure(as_source(X), wanted).quantiles == {0.99: float(np.quantile(X, 0.99))}
    monkeypatch.setattr(largest, "MOST_BYTES", 1000)
    assert not measure(as_source(X), wanted).quantiles


def test_what_is_not_asked_for_is_not_kept():
    X = np.ones((10, 2))
    assert not measure(as_source(X), Wanted()).quantiles
    counted = Wanted(levels=(0.5, 0.99))  # passes that count are cheaper for the lower one
    assert not measure(as_source(X), counted).quantiles
    weighted = as_source(X).inliers(None, np.ones(10))
    assert not measure(weighted, Wanted(levels=(0.99,))).quantiles


def test_a_part_without_entries_makes_the_whole_unknown():
    keeper = Keeper(3, np.dtype("f4"))
    keeper.add(np.ones((10, 2), "f4"))
    assert merged_largest([keeper.largest(), None]) is None
