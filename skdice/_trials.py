"""What a fold of the search measures: rows to fit on, and rows to tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdice._engines.scoring import masked_layer
from skdice._head import LinearHead
from skdice._pseudo_outliers import GENERATORS
from skdice._rows.sources import Rows, SelectedRows, iterate_blocks, load_block, scoring_dtype

# Takes a class away from the head instead of making rows.
LEAVE_OUT = "leave-one-class-out"
PSEUDO_OUTLIERS = (*GENERATORS, LEAVE_OUT)
# Rows of a fold that pseudo-outliers are made of, at most.
PSEUDO_ROWS = 10_000
# Classes of a fold that are left out, one after the other, at most.
LEFT_OUT_CLASSES = 10


@dataclass(frozen=True)
class Trial:
    """One measurement of every candidate.

    Parameters
    ----------
    head : LinearHead
        The last linear layer.
    fitted : source of rows
        In-distribution rows that a candidate is fitted on.
    sources : list of sources of rows
        Rows that it scores.
    y_true : ndarray of shape (n_scored,)
        +1 for those that are in-distribution, -1 for outliers.
    """

    head: LinearHead
    fitted: Rows
    sources: list[Rows]
    y_true: NDArray[np.int_]


def predicted_classes(head: LinearHead, rows: Rows) -> NDArray[np.intp]:
    """Return the class that the head gives each row."""
    layer = masked_layer(head.weight, head.bias, None, scoring_dtype(rows.dtype))
    return np.concatenate([layer(block).argmax(axis=1) for _, block in iterate_blocks(rows)])


def fold_trials(
    head: LinearHead,
    rows: Rows,
    labels: NDArray[np.int_],
    fold: tuple[NDArray[Any], NDArray[Any]],
    outliers: Any = None,
    classes: NDArray[np.intp] | None = None,
) -> Iterator[Trial]:
    """Yield the trials of one fold: several where classes are left out, else one.

    Parameters
    ----------
    head : LinearHead
        The last linear layer.
    rows : source of rows
        All rows.
    labels : ndarray of shape (n_samples,)
        +1 for in-distribution rows, -1 for known outliers.
    fold : tuple of two ndarrays
        Indices, or a mask, of the rows to train on and of those to test.
    outliers : source of rows, str or None
        Outliers that are scored besides, or the name of pseudo-outliers.
    classes : ndarray of shape (n_samples,), default=None
        The class of each row, for those that leave classes out.

    Raises
    ------
    ValueError
        There is nothing to fit on, or one of the two kinds of rows is missing.
    """
    train, test = (_selected(each, len(labels)) for each in fold)
    train &= labels == 1
    if not train.any():
        raise ValueError("a fold has no in-distribution row to fit on; shuffle the folds")
    inside = test & (labels == 1)
    rng = np.random.default_rng(0)
    if isinstance(outliers, str) and outliers == LEAVE_OUT:
        assert classes is not None
        for left_out in _left_out(classes, train, inside, rng):
            is_left_out = classes == left_out
            yield Trial(
                _without(head, left_out),
                SelectedRows(rows, train & ~is_left_out),
                [SelectedRows(rows, test)],
                np.where(is_left_out, -1, labels)[test],
            )
        return
    sources: list[Rows] = [SelectedRows(rows, test)]
    if isinstance(outliers, str):
        known = SelectedRows(rows, inside)
        block = load_block(known, slice(0, min(known.shape[0], PSEUDO_ROWS)))
        sources.append(GENERATORS[outliers](block, head, rng))
    elif outliers is not None:
        sources.append(outliers)
    y_true = np.concatenate([labels[test], *(np.full(each.shape[0], -1) for each in sources[1:])])
    for label, what in ((1, "in-distribution rows"), (-1, "outliers")):
        if label not in y_true:
            raise ValueError(f"a fold has no {what} to score; shuffle and stratify the folds")
    yield Trial(head, SelectedRows(rows, train), sources, y_true)


def _left_out(
    classes: NDArray[np.intp],
    train: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Return the classes that a fold leaves out: with rows of theirs, and others, to score."""
    found = np.unique(classes[inside])
    found = found[[(classes[train] != each).any() for each in found]]
    if len(np.unique(classes[inside])) < 2 or not len(found):
        raise ValueError(
            f"outliers={LEAVE_OUT!r} needs rows of two classes to fit on and to score, but the "
            f"head takes all {np.count_nonzero(inside)} in-distribution rows that a fold scores "
            f"for {'one class' if len(found) else 'none that can be left out'}"
        )
    if len(found) > LEFT_OUT_CLASSES:
        found = np.sort(rng.choice(found, LEFT_OUT_CLASSES, replace=False))
    return found


def _without(head: LinearHead, left_out: int) -> LinearHead:
    """Return the head without one of its classes."""
    return LinearHead(np.delete(head.weight, left_out, axis=0), np.delete(head.bias, left_out))


def _selected(indices: NDArray[Any], n_rows: int) -> NDArray[np.bool_]:
    selected = np.zeros(n_rows, np.bool_)
    selected[indices] = True
    return selected
