"""The choice between the engines of the CPU by their costs."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skdice._engines.costs import cheapest

DTYPES = [np.float32, np.float64]


GRID = [
    (20_000, 2048, 1000),
    (200_000, 342, 10),
    (200_000, 342, 100),
    (50_000, 512, 100),
    (5_000, 2048, 21_841),
]


@pytest.mark.parametrize("dtype", [np.dtype(each) for each in DTYPES])
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_more_pruning_goes_from_dense_to_few_to_sparse(n_threads, dtype):
    for n_rows, n_features, n_classes in GRID:
        chosen = [
            cheapest(
                n_rows,
                n_features,
                n_classes,
                round((1 - sparsity) * n_classes * n_features),
                dtype,
                n_threads,
            )
            for sparsity in (0, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99)
        ]
        # More pruning never leads back to an engine that was left.
        assert chosen == sorted(chosen, key=["dense", "few", "sparse"].index)
        assert chosen[-3:] == (["few"] if n_classes == 10 else ["sparse"]) * 3


@given(
    n_rows=st.integers(1, 100),
    n_features=st.integers(1, 4096),
    n_classes=st.integers(1, 1000),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES).map(np.dtype),
    n_threads=st.integers(1, 64),
)
def test_a_handful_of_rows_is_never_worth_compiling(
    n_rows, n_features, n_classes, share, dtype, n_threads
):
    n_kept = round(share * n_features * n_classes)
    chosen = cheapest(n_rows, n_features, n_classes, n_kept, dtype, n_threads)
    assert chosen == "dense"


def test_choosing_imports_no_numba():
    program = (
        "import sys, numpy as np\n"
        "from skdice._engines.costs import cheapest\n"
        "cheapest(20_000, 2048, 1000, 200_000, np.dtype('f4'), 2)\n"
        "print('numba' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
