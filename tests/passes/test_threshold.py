"""The threshold on the scores, unweighted and weighted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skdice._passes.threshold import score_threshold, weighted_threshold


@given(st.integers(1, 400), st.floats(0, 0.5, exclude_min=True), st.randoms())
def test_threshold_flags_exactly_the_share(n, contamination, random):
    scores = np.array(random.sample(range(10 * n), n), dtype=float)
    below = int((scores < score_threshold(scores, contamination)).sum())
    assert below / n <= contamination < (below + 1) / n


@pytest.mark.parametrize(
    ("share", "below"), [(0.05, 5), (0.29, 29), (0.07, 7), (0.5, 50), (1e-9, 0)]
)
def test_threshold_by_hand(share, below):
    assert score_threshold(np.arange(100.0)[::-1], share) == below


def test_threshold_with_ties_is_the_smallest_with_more_than_the_share_at_or_below():
    assert score_threshold(np.array([1.0, 1.0, 1.0, 2.0]), 0.25) == 1
    assert score_threshold(np.array([1.0, 1.0, 2.0, 2.0]), 0.5) == 2


@given(st.data())
def test_integer_weights_equal_repeated_scores(data):
    # Few different scores, so that many tie.
    scores = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=30)), float)
    weights = data.draw(
        st.lists(st.integers(0, 5), min_size=len(scores), max_size=len(scores)).filter(any)
    )
    contamination = data.draw(st.integers(1, 50)) / 100
    expected = score_threshold(np.repeat(scores, weights), contamination)
    assert weighted_threshold(scores, np.array(weights, float), contamination) == expected
