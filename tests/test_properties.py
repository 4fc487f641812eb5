"""Properties that hold for any head and any features."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.special import logsumexp

from skdice import DICEDetector, LinearHead
from skdice.shaping import ReAct

# A class without any weight is expected of heads this small, and tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:.*left without any weight")

sparsities = st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 0.99]) | st.floats(0, 0.99)


@st.composite
def problems(draw, min_rows=1, dtypes=(np.float32, np.float64)):
    """Return a head and ReLU-like features of its width."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_classes, n_features = draw(st.integers(1, 8)), draw(st.integers(1, 20))
    n_rows = draw(st.integers(min_rows, 60))
    dtype = draw(st.sampled_from(dtypes))
    head = LinearHead(rng.normal(size=(n_classes, n_features)), rng.normal(size=n_classes))
    return head, np.maximum(rng.normal(0.3, 1, size=(n_rows, n_features)), 0).astype(dtype)


def agree(one, other):
    """Assert equality up to the rounding of the dtype, as the numerical contract has it."""
    tolerance = 1e-5 if one.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@given(problems())
def test_sparsity_zero_is_the_energy_score(problem):
    head, X = problem
    detector = DICEDetector(head, sparsity=0).fit(X)
    assert detector.mask_.all()
    np.testing.assert_array_equal(detector.coef_, head.weight)
    agree(detector.score_samples(X), logsumexp(X.astype(float) @ head.weight.T + head.bias, axis=1))


@given(problems(), sparsities, sparsities)
def test_masks_are_nested(problem, one, other):
    head, X = problem
    low, high = (DICEDetector(head, sparsity=p).fit(X).mask_ for p in sorted([one, other]))
    assert low[high].all()


@given(problems(), sparsities, st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_row_order(problem, sparsity, random):
    head, X = problem
    order = np.array(random.sample(range(len(X)), len(X)))
    detector = DICEDetector(head, sparsity=sparsity).fit(X)
    agree(detector.score_samples(X)[order], detector.score_samples(X[order]))


@given(problems(), sparsities, st.integers(1, 70), st.integers(1, 70))
def test_scores_do_not_depend_on_the_block_size(problem, sparsity, one, other):
    head, X = problem
    a = DICEDetector(head, sparsity=sparsity, batch_size=one).fit(X)
    b = DICEDetector(head, sparsity=sparsity, batch_size=other).fit(X)
    np.testing.assert_array_equal(a.mask_, b.mask_)
    agree(a.score_samples(X), b.score_samples(X))


@given(problems(), sparsities)
def test_scores_do_not_depend_on_the_memory_layout(problem, sparsity):
    head, X = problem
    detector = DICEDetector(head, sparsity=sparsity).fit(X)
    expected = detector.score_samples(X)
    read_only = X.copy()
    read_only.setflags(write=False)
    for layout in (
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        np.repeat(X, 2, axis=1)[:, ::2],
        X[::-1, ::-1][::-1, ::-1],
        X.astype(X.dtype.newbyteorder()),
        read_only,
    ):
        agree(detector.score_samples(layout), expected)


@given(problems(), sparsities, st.floats(-50, 50))
def test_a_constant_on_the_bias_shifts_the_energy(problem, sparsity, constant):
    head, X = problem
    shifted = LinearHead(head.weight, head.bias + constant)
    score = DICEDetector(head, sparsity=sparsity).fit(X).score_samples(X)
    tolerance = 1e-4 if X.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(
        DICEDetector(shifted, sparsity=sparsity).fit(X).score_samples(X),
        score + score.dtype.type(constant),
        atol=tolerance,
    )


@given(problems(), sparsities, st.lists(st.integers(0, 60), max_size=6))
def test_partial_fit_over_any_split_equals_fit(problem, sparsity, cuts):
    head, X = problem
    whole = DICEDetector(head, sparsity=sparsity).fit(X)
    parts = DICEDetector(head, sparsity=sparsity)
    for block in np.array_split(X, sorted(cut for cut in cuts if cut < len(X))):
        if len(block):
            parts.partial_fit(block)
    np.testing.assert_allclose(parts.mean_activation_, whole.mean_activation_, rtol=1e-12)
    assert parts.n_samples_seen_ == len(X)
    agree(parts.score_samples(X), whole.score_samples(X))


@given(problems(), sparsities)
def test_react_with_an_infinite_threshold_changes_nothing(problem, sparsity):
    head, X = problem
    plain = DICEDetector(head, sparsity=sparsity).fit(X)
    clipped = DICEDetector(head, sparsity=sparsity, shaping=ReAct(threshold=np.inf)).fit(X)
    np.testing.assert_array_equal(clipped.score_samples(X), plain.score_samples(X))


@settings(max_examples=200)
@given(problems(min_rows=2, dtypes=(np.float64,)), st.integers(1, 30))
def test_contamination_flags_exactly_its_share(problem, k):
    head, X = problem
    contamination = min(0.5, k / len(X))
    detector = DICEDetector(head, sparsity=0, contamination=contamination).fit(X)
    scores = detector.score_samples(X)
    if len(np.unique(scores)) == len(scores):
        expected = min(k, len(X) // 2)
        assert (detector.predict(X) == -1).sum() == expected
