import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from hypothesis import given, settings
from hypothesis import strategies as st

from skdice._engines.kernels.fused import FUSED_SCORES
from skdice._engines.kernels.layout import COLUMN_BYTES
from skdice._engines.sparse import BLOCK_CLASSES, PANEL_COLUMNS, SparseLayer, pack_head

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def reference(X, coef, intercept):
    """Logits in float64, and the three scores by their definitions."""
    logits = np.asarray(X, float) @ np.asarray(coef, float).T + np.asarray(intercept, float)
    energy = np.logaddexp.reduce(logits, axis=1)
    top = logits.max(axis=1)
    return logits, {"energy": energy, "max_logit": top, "msp": np.exp(top - energy)}


def problem(n_rows, n_features, n_classes, sparsity, dtype, seed=0):
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(n_classes, n_features)) * (
        rng.random((n_classes, n_features)) >= sparsity
    )
    X = np.maximum(rng.normal(size=(n_rows, n_features)), 0)
    return X.astype(dtype), coef.astype(dtype), rng.normal(size=n_classes).astype(dtype)


def check(X, coef, intercept):
    dtype = coef.dtype
    layer = SparseLayer(coef, intercept)
    expected, scores = reference(X, coef, intercept)
    # The error of a sum of terms that cancel is relative to the terms, not to the sum.
    scale = 1 + (np.abs(X, dtype=float) @ np.abs(coef, dtype=float).T).max(axis=1, initial=0)
    logits = layer.logits(X)
    assert logits.dtype == dtype
    assert logits.shape == expected.shape
    assert (np.abs(logits - expected) <= TOLERANCE[dtype] * scale[:, np.newaxis]).all()
    for name, values in scores.items():
        found = layer.scores(X, name)
        assert found.dtype == dtype
        assert found.shape == values.shape
        assert (np.abs(found - values) <= TOLERANCE[dtype] * scale).all(), name


@settings(max_examples=200)
@given(
    n_rows=st.integers(0, 140),
    n_features=st.integers(1, 40) | st.integers(PANEL_COLUMNS - 3, 3 * PANEL_COLUMNS + 3),
    n_classes=st.integers(1, 40),
    sparsity=st.sampled_from([0, 0.3, 0.7, 0.9, 0.99, 1]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_definition(n_rows, n_features, n_classes, sparsity, dtype, seed):
    check(*problem(n_rows, n_features, n_classes, sparsity, dtype, seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [BLOCK_CLASSES, BLOCK_CLASSES + 1, 2 * BLOCK_CLASSES + 700])
def test_many_classes(n_classes, dtype):
    check(*problem(70, 30, n_classes, 0.8, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 1, 7, 150, 298, 299])
def test_all_units_pruned_but_one(column, dtype):
    X, coef, intercept = problem(67, 300, 5, 0, dtype)
    coef[:, np.arange(300) != column] = 0
    check(X, coef, intercept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_without_a_kept_weight(dtype):
    X, coef, intercept = problem(67, 300, 9, 0.5, dtype)
    coef[[0, 3, 8]] = 0
    check(X, coef, intercept)
    logits = SparseLayer(coef, intercept).logits(X)
    assert (logits[:, [0, 3, 8]] == intercept[[0, 3, 8]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_of_memory(dtype):
    X, coef, intercept = problem(130, 50, 7, 0.6, dtype)
    layer = SparseLayer(coef, intercept)
    expected = {name: layer.scores(X, name) for name in FUSED_SCORES}
    packed = np.empty(X.nbytes + 1, np.uint8)[1:].view(dtype).reshape(X.shape)
    packed[...] = X  # not aligned
    read_only = X.copy()
    read_only.flags.writeable = False
    wide = np.repeat(X, 2, axis=1)
    swapped = X.astype(X.dtype.newbyteorder())
    for other in (np.asfortranarray(X), X[::-1][::-1], wide[:, ::2], packed, read_only, swapped):
        for name, values in expected.items():
            assert (layer.scores(other, name) == values).all()
        assert (layer.logits(other) == layer.logits(X)).all()
    for other in (np.asfortranarray(coef), np.repeat(coef, 2, axis=1)[:, ::2]):
        assert (SparseLayer(other, intercept).logits(X) == layer.logits(X)).all()


def test_half_precision_is_computed_in_single():
    X, coef, intercept = problem(70, 50, 7, 0.6, np.float32)
    X = X.astype(np.float16)
    layer = SparseLayer(coef, intercept)
    scores = layer.scores(X, "energy")
    assert scores.dtype == np.float32
    assert (scores == layer.scores(X.astype(np.float32), "energy")).all()


@settings(max_examples=30)
@given(
    n_rows=st.integers(1, 300),
    n_classes=st.sampled_from([1, 10, BLOCK_CLASSES + 5]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_a_row_scores_the_same_bits_in_any_block(n_rows, n_classes, dtype, data):
    X, coef, intercept = problem(n_rows, 130, n_classes, 0.9, dtype)
    layer = SparseLayer(coef, intercept)
    inner = data.draw(st.lists(st.integers(0, n_rows), max_size=6).map(sorted))
    blocks = [X[a:b] for a, b in itertools.pairwise([0, *inner, n_rows])]
    for name in FUSED_SCORES:
        whole = layer.scores(X, name)
        parts = [layer.scores(block, name) for block in blocks]
        assert (np.concatenate(parts) == whole).all()
    parts = [layer.logits(block) for block in blocks]
    assert (np.concatenate(parts) == layer.logits(X)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_threads_at_a_time_change_no_bit(dtype):
    X, coef, intercept = problem(1000, 300, 50, 0.9, dtype)
    layer = SparseLayer(coef, intercept)
    expected = layer.scores(X, "energy")
    blocks = np.array_split(X, 17)
    for n_threads in (1, 2, 5):
        with ThreadPoolExecutor(n_threads) as pool:
            for _ in range(5):
                scores = list(pool.map(lambda block: layer.scores(block, "energy"), blocks))
                assert (np.concatenate(scores) == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [3, 2 * BLOCK_CLASSES])
def test_logits_far_apart(n_classes, dtype):
    rng = np.random.default_rng(1)
    intercept = rng.uniform(-1e4, 1e4, n_classes).astype(dtype)
    X, coef = np.zeros((70, 9), dtype), np.zeros((n_classes, 9), dtype)
    coef[:, 0], X[:, 0] = 1, rng.uniform(-1e4, 1e4, 70)
    expected = reference(X, coef, intercept)[1]
    layer = SparseLayer(coef, intercept)
    for name in ("energy", "max_logit"):
        np.testing.assert_allclose(
            layer.scores(X, name), expected[name], rtol=TOLERANCE[coef.dtype]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_of_very_many_classes(dtype):
    # Added one after the other in float32, the exponentials would be wrong in the fifth digit.
    n_classes = 60_000
    coef, intercept = np.zeros((n_classes, 8), dtype), np.full(n_classes, 0.5, dtype)
    intercept[0] = 0.9
    X = np.ones((3, 8), dtype)
    expected = reference(X, coef, intercept)[1]["energy"]
    scores = SparseLayer(coef, intercept).scores(X, "energy")
    np.testing.assert_allclose(scores, expected, rtol=TOLERANCE[coef.dtype] / 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential_over_its_whole_range(dtype):
    # Two classes, 0 and x: the score is log(1 + exp(x)), of which msp keeps the digits.
    x = -np.concatenate([np.linspace(0, 40, 5000), np.linspace(40, 1000, 500)])
    X = np.zeros((len(x), 8), dtype)
    X[:, 0] = x
    coef = np.zeros((2, 8), dtype)
    coef[1, 0] = 1
    layer = SparseLayer(coef, np.zeros(2, dtype))
    exact = np.exp(X[:, 0].astype(float))
    epsilon = np.finfo(dtype).eps
    np.testing.assert_allclose(layer.scores(X, "msp"), 1 / (1 + exact), rtol=3 * epsilon)
    np.testing.assert_allclose(
        layer.scores(X, "energy"), np.log1p(exact), rtol=3 * epsilon, atol=2 * epsilon
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [4, 2 * BLOCK_CLASSES])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, "huge"])
def test_rows_that_overflow_are_not_finite_and_the_others_are(value, n_classes, dtype):
    X, coef, intercept = problem(130, 20, n_classes, 0, dtype)
    coef = np.abs(coef) + dtype(2)
    bad = [0, 63, 64, 129]
    X[bad] = np.finfo(dtype).max if value == "huge" else value
    layer = SparseLayer(coef, intercept)
    fine = np.setdiff1d(np.arange(130), bad)
    for name in FUSED_SCORES:
        scores = layer.scores(X, name)
        assert not np.isfinite(scores[bad]).any(), name
        assert (scores[fine] == layer.scores(X[fine], name)).all()
    assert not np.isfinite(layer.logits(X)[bad]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", [0, 5, BLOCK_CLASSES + 5])
def test_one_logit_that_is_nan_spoils_its_row(where, dtype):
    X, coef, intercept = problem(70, 20, 2 * BLOCK_CLASSES, 0.5, dtype)
    intercept[where] = np.nan
    for name in FUSED_SCORES:
        assert np.isnan(SparseLayer(coef, intercept).scores(X, name)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, BLOCK_CLASSES])
def test_logits_of_minus_infinity_beside_finite_ones_count_as_nothing(first, dtype):
    # The dense engine computes the same. A whole block of classes may be minus infinity.
    X, coef, intercept = problem(70, 20, 2 * BLOCK_CLASSES, 0.5, dtype)
    gone = slice(first, first + BLOCK_CLASSES)
    finite = np.delete(np.arange(2 * BLOCK_CLASSES), gone)
    intercept[gone] = -np.inf
    layer, other = SparseLayer(coef, intercept), SparseLayer(coef[finite], intercept[finite])
    for name in FUSED_SCORES:
        np.testing.assert_allclose(
            layer.scores(X, name), other.scores(X, name), rtol=TOLERANCE[coef.dtype]
        )


@given(
    n_classes=st.integers(1, 30),
    n_features=st.integers(8, 300),
    sparsity=st.sampled_from([0, 0.5, 0.9, 1]),
    seed=st.integers(0, 1000),
)
def test_a_packed_head_holds_each_kept_weight_once(n_classes, n_features, sparsity, seed):
    _, coef, intercept = problem(0, n_features, n_classes, sparsity, np.float32, seed)
    head = pack_head(coef, intercept)
    assert len(head.weights) == len(head.offsets) == np.count_nonzero(coef)
    unpacked = np.zeros_like(coef)
    column_at = {}
    for panel, (first, stop) in enumerate(itertools.pairwise(head.panel_squares)):
        for square in range(first, stop):
            for i, offset in enumerate(head.square_offsets[square]):
                if offset < PANEL_COLUMNS * COLUMN_BYTES:
                    column = head.square_columns[square] + i
                    assert column_at.setdefault((panel, int(offset)), column) == column
    # Units without a weight are given no place in a panel.
    assert sorted(column_at.values()) == np.flatnonzero((coef != 0).any(axis=0)).tolist()
    for panel, (first, stop) in enumerate(itertools.pairwise(head.first_runs[0, 0])):
        lengths = np.diff(head.run_weights)[first:stop]
        assert (np.diff(lengths) <= 0).all()
        for run in range(first, stop):
            for i in range(head.run_weights[run], head.run_weights[run + 1]):
                column = column_at[panel, int(head.offsets[i])]
                unpacked[head.run_classes[run], column] += head.weights[i]
    assert (unpacked == coef).all()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    n_classes=st.integers(1, 20) | st.just(BLOCK_CLASSES + 3),
    n_features=st.integers(1, 300),
    n_levels=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_levels_are_added_one_after_the_other(n_classes, n_features, n_levels, dtype, seed):
    X, coef, intercept = problem(70, n_features, n_classes, 0.2, dtype, seed)
    level = np.random.default_rng(seed).integers(0, n_levels + 1, coef.shape)
    layer = SparseLayer(coef, intercept, level, n_levels)
    for name in FUSED_SCORES:
        found = layer.level_scores(X, name)
        assert found.shape == (n_levels, len(X))
        for n, values in enumerate(found):
            expected = reference(X, np.where(level <= n, coef, 0), intercept)[1][name]
            np.testing.assert_allclose(
                values, expected, rtol=20 * TOLERANCE[coef.dtype], atol=20 * TOLERANCE[coef.dtype]
            )


@pytest.mark.slow
def test_scores_are_right_where_the_kernel_cannot_be_cached(tmp_path):
    # This is like an installation that cannot be written to, used without a home folder.
    blocked = tmp_path / "a file"
    blocked.touch()
    program = (
        "import numpy as np\n"
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from skdice._engines.sparse import SparseLayer\n"
        "layer = SparseLayer(np.eye(8, dtype=np.float32), np.zeros(8, np.float32))\n"
        "print(layer.scores(np.full((3, 8), 2, np.float32), 'max_logit'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[2. 2. 2.]\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        """
from skdice._engines.sparse import SparseLayer
layer = SparseLayer(np.eye(8, dtype=np.float32), np.zeros(8, np.float32))
print(layer.scores(np.full((3, 8), 2, np.float32), 'max_logit'))
""",
        """
from skdice._passes.sum_kernel import compiled_column_sums
print(compiled_column_sums(np.full((1, 3), 2, np.float32))[0])
""",
    ],
    ids=["scores", "sums"],
)
@pytest.mark.parametrize("damage", ["a full disk", "a file cut short"])
def test_results_are_right_whatever_the_cache_has(tmp_path, use, damage):
    program = "import numpy as np\n" + use
    if damage == "a full disk":
        program = (
            """
from numba.core import caching
def save(*args):
    raise OSError('No space left on device')
caching.IndexDataCacheFile.save = save
"""
            + program
        )

    def run():
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "[2. 2. 2.]\n", done.stderr

    run()
    if damage == "a file cut short":
        cached = list(tmp_path.glob("*/*.nbi"))
        assert cached
        for path in cached:
            path.write_bytes(b"")
        run()


@pytest.mark.parametrize("file", ["few.py", "fused.py", "layout.py", "sparse.py", "vectors.py"])
def test_a_kernel_is_not_taken_from_the_cache_after_a_change_of_its_code(monkeypatch, file):
    from skdice._engines.kernels.vectors import digest_of_sources

    before, read = digest_of_sources(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == file))
    assert digest_of_sources() != before
