import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from skdice._sparsify import contribution, threshold_masks

WEIGHT = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
MEAN = np.array([1.0, 0.5, 2.0])


def masks_of(weight, mean_activation, sparsity):
    return threshold_masks(contribution(weight, mean_activation), [sparsity])[0]


def test_contribution_by_hand():
    np.testing.assert_array_equal(contribution(WEIGHT, MEAN), [[1, -1, 6], [4, 2.5, -12]])


def test_contribution_is_float64_for_a_float32_head():
    assert contribution(WEIGHT.astype(np.float32), MEAN).dtype == np.float64


def test_mask_by_hand():
    # Sorted contributions: -12 -1 1 2.5 4 6; the median lies between 1 and 2.5.
    mask, threshold = masks_of(WEIGHT, MEAN, 0.5)
    assert threshold == 1.75
    np.testing.assert_array_equal(mask, [[False, False, True], [True, True, False]])


def test_threshold_on_an_entry_prunes_that_entry():
    # Percentile 0.2 of six entries is exactly the second smallest, and `>` is strict.
    mask, threshold = masks_of(WEIGHT, MEAN, 0.2)
    assert threshold == -1
    assert mask.sum() == 4


def test_sparsity_zero_keeps_the_smallest_entry_too():
    mask, threshold = masks_of(WEIGHT, MEAN, 0)
    assert mask.all()
    assert threshold == -np.inf


def test_ties_that_leave_nothing_keep_the_maximum():
    mask, threshold = masks_of(np.ones((2, 3)), np.ones(3), 0.5)
    assert threshold == 1
    assert mask.all()


def test_contributions_beyond_float64_are_refused():
    with pytest.raises(ValueError, match="exceeds the range of float64"):
        masks_of(np.full((1, 3), 1e300), np.full(3, 1e300), 0.5)


sparsities = st.floats(0, 1, exclude_max=True)
matrices = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 8)),
    elements=st.floats(-1e6, 1e6),
)


@given(matrices, sparsities, sparsities)
def test_masks_are_nested_in_sparsity(values, one, other):
    low, high = sorted([one, other])
    kept_low, kept_high = (
        threshold_masks(values, [low])[0][0],
        threshold_masks(values, [high])[0][0],
    )
    assert kept_low[kept_high].all()


@given(matrices, sparsities)
def test_mask_is_the_definition_and_never_empty(values, sparsity):
    mask, threshold = threshold_masks(values, [sparsity])[0]
    assert mask.any()
    if sparsity > 0:
        assert threshold == np.percentile(values, 100 * sparsity)
        if (values > threshold).any():
            np.testing.assert_array_equal(mask, values > threshold)
