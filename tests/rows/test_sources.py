import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from skdice._rows.sources import NumpyRows

# Half precision is read as single.
SPECIAL = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, -5e-324, 65504.0, -65504.0]


@given(
    st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
        lambda dtype: arrays(
            dtype,
            array_shapes(min_dims=2, max_dims=2, max_side=6),
            elements=st.sampled_from([*SPECIAL, float(np.finfo(dtype).max)]).map(
                lambda value: value if np.isinf(value) or np.isnan(value) else dtype(value)
            )
            | st.floats(width=8 * np.dtype(dtype).itemsize),
        )
    )
)
def test_the_first_value_that_is_not_finite_is_named_and_no_other(X):
    bad = np.argwhere(~np.isfinite(X))
    if len(bad):
        with pytest.raises(ValueError, match=f"in row {bad[0, 0]}, column {bad[0, 1]};"):
            NumpyRows(X).read_block(slice(0, len(X)))
    else:
        np.testing.assert_array_equal(NumpyRows(X).read_block(slice(0, len(X))), X)
