"""Several detectors that score each block of rows together, so that every block is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from skdice._compat.arrays import to_numpy
from skdice._engines.geometric import score_function
from skdice._engines.layer import FDBDLayer, ViMLayer
from skdice._engines.run import Engine, Options, choose, choose_for_cpu
from skdice._rows.sources import SlicedRows, scoring_dtype


@dataclass(frozen=True, eq=False)
class Member:
    """One of several detectors: a fitted layer, or the `score_samples` of another library.

    Parameters
    ----------
    name : str
        Name of the detector for messages.
    layer : layer of an engine or None
        What an engine computes; None where `score_samples` is given.
    score_samples : callable or None
        Function of a NumPy block of rows to their scores.
    """

    name: str
    layer: Any = None
    score_samples: Callable[[NDArray[Any]], Any] | None = None


def run_together(
    members: Sequence[Member], options: Options, rows: SlicedRows
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the slice of each block of rows, and the scores of all members, in order.

    Parameters
    ----------
    members : sequence of Member
        The detectors.
    options : Options
        What the user asked for.
    rows : SlicedRows
        The rows.

    Yields
    ------
    row_slice : slice
        Rows of the block.
    scores : ndarray of shape (n_samples, n_members), float64
        Their scores, a column for each member.

    Raises
    ------
    ValueError
        A feature or a score is not finite; the message names the row and the member.
    """
    if not len(rows):  # an empty chunk of a Dask array
        return
    engines = _engines_of(members, rows, options)
    known = [engine for engine in engines if engine is not None]
    all_known = len(known) == len(members)
    native = all_known and all(engine.native for engine in known)
    slices = known[0].slices if known else rows.slices(options.batch_size)
    functions = [
        member.score_samples if engine is None else engine.compute
        for member, engine in zip(members, engines, strict=True)
    ]
    shared = {} if native else _sharing(members, scoring_dtype(rows.dtype))

    def score_block(block: Any) -> NDArray[np.float64]:
        columns: list[Any] = [None] * len(members)
        logits = None
        for n, score in shared.items():
            # These members need the product of the block with the same head.
            logits = _logits(members[n].layer, block) if logits is None else logits
            with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
                columns[n] = score(block, logits)
        for n, function in enumerate(functions):
            if n not in shared:
                columns[n] = cast(Callable[[Any], Any], function)(block)
        return np.stack([_column(each, len(block)) for each in columns], axis=1)

    blocks = rows.map_blocks(
        score_block,
        slices,
        native=native,
        # Detectors of other libraries need not be safe to call from several threads.
        n_threads=min(engine.n_threads for engine in known) if all_known else 1,
        description="scores",
        verbose=options.verbose,
    )
    try:
        for row_slice, scores in blocks:
            for n, member in enumerate(members):
                rows.check_values(scores[:, n], row_slice, f"score by {member.name!r}")
            yield row_slice, scores
    finally:
        for engine in known:
            if engine.finish is not None:
                engine.finish()


def _engines_of(
    members: Sequence[Member], rows: SlicedRows, options: Options
) -> list[Engine | None]:
    """Return the engine of each member, all for the same blocks; None for another library's."""
    layers = [member.layer for member in members]
    selector: Callable[[Any, SlicedRows, Options], Engine] = choose
    engines = [None if layer is None else choose(layer, rows, options) for layer in layers]
    if any(engine is None or not engine.native for engine in engines):
        # One of them needs NumPy's blocks, so all are given these.
        selector = choose_for_cpu
        engines = [None if layer is None else selector(layer, rows, options) for layer in layers]
    sizes = {len(range(len(rows))[engine.slices[0]]) for engine in engines if engine is not None}
    if len(sizes) > 1:
        same = replace(options, batch_size=min(sizes))
        engines = [None if layer is None else selector(layer, rows, same) for layer in layers]
    return engines


def _sharing(
    members: Sequence[Member], dtype: np.dtype[Any]
) -> dict[int, Callable[[Any, Any], Any]]:
    """Return the functions of the members that need the logits of one unmasked head, by place.

    There are none if fewer than two members need them, or their heads are different objects.
    """
    chosen = {
        n: member.layer
        for n, member in enumerate(members)
        if isinstance(member.layer, FDBDLayer | ViMLayer)
    }
    heads = {(id(layer.weight), id(layer.bias)) for layer in chosen.values()}
    if len(chosen) < 2 or len(heads) > 1:
        return {}
    return {n: score_function(layer, dtype) for n, layer in chosen.items()}


def _logits(layer: FDBDLayer | ViMLayer, block: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of the unmasked head of a layer."""
    with np.errstate(all="ignore"):  # `check_values` reports an overflow with its row
        logits: NDArray[Any] = block @ layer.weight.T.astype(block.dtype, copy=False)
        logits += layer.bias.astype(block.dtype, copy=False)
    return logits


def _column(scores: Any, n_rows: int) -> NDArray[np.float64]:
    """Return the scores of a member as NumPy's, one for each row."""
    column = np.asarray(to_numpy(scores), dtype=np.float64)
    if column.shape != (n_rows,):
        raise ValueError(f"score_samples returned shape {column.shape}, expected ({n_rows},)")
    return column
