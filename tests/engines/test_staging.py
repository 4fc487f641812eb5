"""Rows that go through staging buffers, on a stand-in for a device whose work is done late.

A GPU hides that something is not waited for where it happens to be there in time. Here every
order can happen that the streams allow, so it is read too early, or overwritten too early.
"""

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from streams import Machine

from skdice._engines import torch as torch_engine

CUDA = torch.device("cuda")
seeds = pytest.mark.parametrize("seed", range(3))
hastes = pytest.mark.parametrize("haste", [0.0, 0.5, 0.95])


def squares(block):
    return (block.double() ** 2).sum(1)


def through(machine, read, block_rows, dtype=torch.float32, n_scratch=0):
    function = machine.computed(squares, n_scratch)
    return torch_engine.blocks_from_host(function, read, 103, block_rows, 3, dtype, CUDA)


def scores(blocks):
    """Return them all, each read when it comes; the slices have to be consecutive."""
    found = np.full(103, np.nan)
    n_rows = 0
    for rows, result in blocks:
        assert rows.start == n_rows
        found[rows] = result.numpy()
        n_rows = rows.stop
    assert n_rows == 103
    return found


@seeds
@hastes
@pytest.mark.parametrize("block_rows", [10, 1000])
@pytest.mark.parametrize("kind", ["array", "tensor", "page-locked tensor"])
def test_every_row_is_scored_in_any_order_of_the_streams(
    seed, haste, block_rows, kind, monkeypatch
):
    X = torch.randn(103, 3)
    machine = Machine(monkeypatch, seed, haste)
    source = X.numpy() if kind == "array" else X
    if kind == "page-locked tensor":
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: True)
    found = scores(through(machine, source.__getitem__, block_rows))
    np.testing.assert_array_equal(found, squares(X))
    assert machine.in_use == 0


@seeds
@hastes
def test_a_file_may_give_every_block_in_the_same_memory(seed, haste, monkeypatch):
    X = np.random.default_rng(0).normal(size=(103, 3)).astype(np.float32)
    memory = np.empty((10, 3), np.float32)

    def read(rows):
        memory[: rows.stop - rows.start] = X[rows]
        return memory[: rows.stop - rows.start]

    found = scores(through(Machine(monkeypatch, seed, haste), read, 10))
    np.testing.assert_array_equal(found, squares(torch.from_numpy(X)))


@seeds
@hastes
@pytest.mark.parametrize("n_floats", [30, 200, 300, 400])
def test_rows_of_any_order_go_through_little_memory(seed, haste, n_floats, monkeypatch):
    X = torch.randn(103, 3)
    machine = Machine(monkeypatch, seed, haste, n_floats)
    found = scores(through(machine, X.__getitem__, 50, n_scratch=5))
    np.testing.assert_array_equal(found, squares(X))
    assert machine.in_use == 0
    assert machine.most_in_use > n_floats / 3


@seeds
@hastes
def test_results_that_are_kept_stay_as_they_are(seed, haste, monkeypatch):
    X = torch.randn(103, 3)
    blocks = list(through(Machine(monkeypatch, seed, haste), X.__getitem__, 10))
    found = torch.cat([result.as_subclass(torch.Tensor) for _, result in blocks])
    np.testing.assert_array_equal(found, squares(X))


@seeds
@hastes
def test_one_who_stops_early_leaves_nothing_behind(seed, haste, monkeypatch):
    X = torch.randn(103, 3)
    machine = Machine(monkeypatch, seed, haste)
    blocks = through(machine, X.__getitem__, 10)
    rows, result = next(blocks)
    np.testing.assert_array_equal(result, squares(X[rows]))
    blocks.close()
    assert machine.is_idle()
    assert machine.in_use == 0


@seeds
@hastes
@pytest.mark.parametrize("bad", [0, 1, 5, 10])
def test_an_error_of_the_source_is_the_callers(seed, haste, bad, monkeypatch):
    X = torch.randn(103, 3)
    machine = Machine(monkeypatch, seed, haste)

    def read(rows):
        if rows.start == 10 * bad:
            raise OSError("the disk is gone")
        return X[rows]

    # Who catches it may keep its traceback, and with it all that was alive.
    with pytest.raises(OSError, match="the disk is gone") as error:
        scores(through(machine, read, 10))
    assert machine.is_idle()
    assert machine.in_use <= 20  # results of two blocks, and none of the buffers
    assert error.tb is not None
